//! Charts as inline SVG, without styles of their own.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::history::SPAN;

/// The height of a chart in its own units. Its width is one for each second.
const HEIGHT: f64 = 60.0;
/// The space above the highest value, for the width of its line.
const MARGIN: f64 = 2.0;

/// A line of a chart.
pub(super) struct Line {
    /// The class: `read` or `written`.
    pub(super) class: &'static str,
    /// The age in seconds and the value of each point, the oldest first. A point without a value is a gap.
    pub(super) points: Vec<(f64, Option<f64>)>,
}

/// Renders lines over the last five minutes, with `top` as the highest value. `label` describes the chart
/// to screen readers.
pub(super) fn chart(label: &str, top: f64, lines: &[Line]) -> Markup {
    let width = SPAN.as_secs_f64();
    let view = format!("0 0 {width} {HEIGHT}");
    html! {
        svg.chart viewBox=(view) preserveAspectRatio="none" role="img" aria-label=(label) {
            @for y in [0.25, 0.5, 0.75] {
                line.grid x1="0" x2=(width) y1=(y * HEIGHT) y2=(y * HEIGHT) {}
            }
            @for line in lines {
                path class={ "line " (line.class) } d=(path(width, top, &line.points)) {}
            }
        }
    }
}

fn path(width: f64, top: f64, points: &[(f64, Option<f64>)]) -> String {
    let mut path = String::new();
    let mut is_open = false;
    for (age, value) in points {
        let Some(value) = value else {
            is_open = false;
            continue;
        };
        let x = (width - age).max(0.0);
        let share = (value / top.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
        let y = HEIGHT - 1.0 - share * (HEIGHT - 1.0 - MARGIN);
        let command = if is_open { 'L' } else { 'M' };
        let _ = write!(path, "{command}{x:.1} {y:.1}");
        if !is_open {
            // A point without neighbours is a dot.
            path.push_str("h.1");
        }
        is_open = true;
    }
    path
}

/// Renders a share from 0 to 1 as a horizontal bar. The text beside it has the number.
pub(super) fn bar(share: f64, class: &str) -> Markup {
    let width = format!("{:.1}%", share.clamp(0.0, 1.0) * 100.0);
    html! {
        svg class={ "bar " (class) } aria-hidden="true" {
            rect.track width="100%" height="100%" {}
            rect.fill width=(width) height="100%" {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_at_the_right_and_stay_inside() {
        let points = [(300.0, Some(0.0)), (100.0, Some(10.0)), (0.0, Some(99.0))];
        assert_eq!(
            path(300.0, 10.0, &points),
            "M0.0 59.0h.1L200.0 2.0L300.0 2.0"
        );
    }

    #[test]
    fn a_gap_interrupts_the_line() {
        let points = [(2.0, Some(1.0)), (1.0, None), (0.0, Some(1.0))];
        assert_eq!(path(300.0, 1.0, &points), "M298.0 2.0h.1M300.0 2.0h.1");
    }

    #[test]
    fn nothing_is_drawn_without_a_scale() {
        assert_eq!(path(300.0, 0.0, &[(0.0, Some(0.0))]), "M300.0 59.0h.1");
        let bar = bar(f64::NAN, "").into_string();
        assert!(!bar.contains("<script"), "{bar}");
    }
}
