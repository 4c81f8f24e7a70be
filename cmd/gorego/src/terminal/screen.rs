//! The drawing of the live numbers.

use gorego_telemetry::{
    builds::RecentBuilds,
    web::{History, Rate, Snapshot},
};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Paragraph, Sparkline},
};

use super::{
    address::Address,
    stats,
    text::{Table, clean, count, fit, hit_rate, percent, rate, span, throughput},
};

/// The columns of the name and the value of a gauge, before its curve.
const GAUGE: u16 = 26;

/// The longest name of a tool.
const TOOL: usize = 20;
/// The columns of the bar of a hit rate.
const BAR: usize = 10;

/// The statistics of one moment.
#[derive(Debug)]
pub(super) struct Statistics {
    pub(super) snapshot: Snapshot,
    /// The recent builds, if they are recorded.
    pub(super) builds: Option<RecentBuilds>,
}

/// The numbers on the screen.
#[derive(Debug)]
pub(super) struct Screen {
    address: Address,
    history: History,
    numbers: Option<Statistics>,
    /// The reason why the numbers are not the latest.
    pub(super) problem: Option<String>,
}

impl Screen {
    /// Returns a screen without numbers.
    pub(super) fn new(address: Address) -> Self {
        Self {
            address,
            history: History::default(),
            numbers: None,
            problem: None,
        }
    }

    /// Replaces the numbers.
    pub(super) fn update(&mut self, numbers: Statistics) {
        self.history.add(&numbers.snapshot);
        self.numbers = Some(numbers);
        self.problem = None;
    }
}

/// Draws the numbers on a screen of any size.
pub(super) fn draw(frame: &mut Frame<'_>, screen: &Screen) {
    let Some(numbers) = &screen.numbers else {
        return;
    };
    let snapshot = &numbers.snapshot;
    let mut head = vec![Line::from(stats::title(&screen.address, &snapshot.status))];
    let problems = stats::problems(&snapshot.status).into_iter();
    let problems = problems.chain(screen.problem.clone());
    head.extend(problems.map(|line| Line::styled(line, Color::Red)));
    head.push(Line::from(""));
    let body = body(numbers);
    let [top, gauges, rest, foot] = Layout::vertical([
        Constraint::Length(length(&head)),
        Constraint::Length(4),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(head), top);
    draw_gauges(frame, gauges, &screen.history.rates());
    frame.render_widget(Paragraph::new(body), rest);
    let keys = Line::styled("q, Esc or Ctrl-C quits", Modifier::DIM);
    frame.render_widget(keys, foot);
}

fn length(lines: &[Line<'_>]) -> u16 {
    u16::try_from(lines.len()).unwrap_or(u16::MAX)
}

fn body(numbers: &Statistics) -> Vec<Line<'static>> {
    let snapshot = &numbers.snapshot;
    let mut lines = vec![Line::from("")];
    lines.extend(table(stats::lookups(&snapshot.traffic).lines()));
    lines.push(Line::from(""));
    lines.extend(stats::storage(snapshot).into_iter().map(Line::from));
    lines.push(Line::from(""));
    match &numbers.builds {
        Some(builds) => lines.extend(table(recent(builds, snapshot.at_ms).lines())),
        None => lines.push(Line::from("Builds are not recorded.")),
    }
    lines
}

/// Returns the recent builds.
fn recent(builds: &RecentBuilds, now_ms: u64) -> Table {
    let header = [
        "Last call",
        "client",
        "",
        "hit rate",
        "hits",
        "misses",
        "build",
    ];
    let mut table = Table::new(3, header);
    table.rows.extend(builds.builds.iter().map(|build| {
        let total = &build.total;
        let share = hit_rate(total);
        let tool = format!("{} {}", clean(&build.tool), clean(&build.tool_version));
        vec![
            format!("{} ago", span(build.last_call_ms, now_ms)),
            fit(tool.trim(), TOOL),
            bar(share),
            percent(share),
            count(total.hits),
            count(total.misses.saturating_add(total.incomplete)),
            clean(&build.id),
        ]
    }));
    table
}

/// Draws a share from 0 to 1.
fn bar(share: Option<f64>) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "the share is from 0 to 1"
    )]
    let full = (share.unwrap_or(0.0).clamp(0.0, 1.0) * BAR as f64).round() as usize;
    "█".repeat(full) + &"·".repeat(BAR.saturating_sub(full))
}

/// Marks the first line as the header.
fn table(lines: Vec<String>) -> impl Iterator<Item = Line<'static>> {
    let styles =
        std::iter::once(Style::from(Modifier::BOLD)).chain(std::iter::repeat(Style::new()));
    lines
        .into_iter()
        .zip(styles)
        .map(|(line, style)| Line::styled(line, style))
}

/// A name, the latest value, the function that reads a value, and the highest value if it is fixed.
type Gauge = (&'static str, String, fn(&Rate) -> Option<f64>, Option<f64>);

/// Draws the rates of the last second, and their curves.
fn draw_gauges(frame: &mut Frame<'_>, area: Rect, rates: &[Rate]) {
    let latest = |value: fn(&Rate) -> f64| rates.last().map_or(0.0, value);
    let gauges: [Gauge; 4] = [
        (
            "Hit rate",
            percent(rates.last().and_then(|rate| rate.hit_rate)),
            |rate| rate.hit_rate,
            Some(1.0),
        ),
        (
            "Sent",
            throughput(latest(|rate| rate.read)),
            |rate| Some(rate.read),
            None,
        ),
        (
            "Received",
            throughput(latest(|rate| rate.written)),
            |rate| Some(rate.written),
            None,
        ),
        (
            "Calls",
            rate(latest(|rate| rate.calls)),
            |rate| Some(rate.calls),
            None,
        ),
    ];
    let rows = Layout::vertical([Constraint::Length(1); 4]).split(area);
    for (row, (name, value, read, most)) in rows.iter().zip(gauges) {
        let [text, curve] =
            Layout::horizontal([Constraint::Length(GAUGE), Constraint::Fill(1)]).areas(*row);
        frame.render_widget(Line::from(format!("{name:12}{value:>11}")), text);
        let values = rates.iter().map(read).collect::<Vec<_>>();
        let most = most.unwrap_or_else(|| values.iter().flatten().copied().fold(0.0, f64::max));
        let bars = bars(&values, most, usize::from(curve.width));
        let curve_style = Style::from(Color::Cyan);
        let chart = Sparkline::default()
            .data(bars)
            .max(RESOLUTION)
            .style(curve_style);
        frame.render_widget(chart, curve);
    }
}

/// The height of the highest bar.
const RESOLUTION: u64 = 1000;

/// Returns the heights of the last values, the newest at the right end.
fn bars(values: &[Option<f64>], most: f64, columns: usize) -> Vec<Option<u64>> {
    let shown = values.get(values.len().saturating_sub(columns)..);
    let shown = shown.unwrap_or_default();
    let missing = columns.saturating_sub(shown.len());
    let height = |value: &Option<f64>| {
        let share = (*value)? / most.max(f64::MIN_POSITIVE);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "the share is from 0 to 1"
        )]
        Some((share.clamp(0.0, 1.0) * RESOLUTION as f64) as u64)
    };
    let bars = shown.iter().map(height);
    std::iter::repeat_n(None, missing).chain(bars).collect()
}

#[cfg(test)]
mod tests {
    use gorego_telemetry::builds::{BuildHead, Tally};
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::terminal::tests::{address, snapshot};

    fn numbers(at_ms: u64, hits: u64) -> Statistics {
        let mut snapshot = snapshot();
        snapshot.at_ms = at_ms;
        for (index, found) in snapshot.traffic.lookups.iter_mut().enumerate() {
            found.hits = if index == 0 { hits } else { 0 };
            found.misses = 0;
        }
        let build = BuildHead {
            id: "3f2a\u{1b}[2J".to_owned(),
            tool: "bazel".to_owned(),
            tool_version: "8.4.2".to_owned(),
            last_call_ms: at_ms.saturating_sub(120_000),
            total: Tally {
                hits: 3,
                misses: 1,
                ..Tally::default()
            },
            ..BuildHead::default()
        };
        let builds = RecentBuilds {
            builds: vec![build],
            ..RecentBuilds::default()
        };
        Statistics {
            snapshot,
            builds: Some(builds),
        }
    }

    fn drawn(screen: &Screen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, screen)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_screen_shows_rates_tiers_and_recent_builds() {
        let mut screen = Screen::new(address());
        screen.update(numbers(1_700_000_000_000, 10));
        screen.update(numbers(1_700_000_001_000, 30));
        let text = drawn(&screen, 100, 40);
        for part in [
            "gorego 1.2.3",
            "backing cache: does not answer",
            "Hit rate          100 %",
            "█",
            "Clients  blobs    100 %    30",
            "Local tier     8.00 GiB of 10.0 GiB (80 %)",
            "2 min ago  bazel 8.4.2  ████████··      75 %     3       1  3f2a",
            "q, Esc or Ctrl-C quits",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn a_failed_request_leaves_the_last_numbers() {
        let mut screen = Screen::new(address());
        screen.update(numbers(1_700_000_000_000, 10));
        screen.problem = Some("nothing answers".to_owned());
        let text = drawn(&screen, 80, 24);
        assert!(
            text.contains("nothing answers") && text.contains("Lookups"),
            "{text}"
        );
        screen.update(numbers(1_700_000_001_000, 10));
        assert!(!drawn(&screen, 80, 24).contains("nothing answers"));
    }

    #[test]
    fn a_screen_of_any_size_is_drawn() {
        let mut screen = Screen::new(address());
        for second in 0..400 {
            screen.update(numbers(1_700_000_000_000 + second * 1000, second));
        }
        for (width, height) in [(1, 1), (2, 3), (30, 5), (80, 24), (400, 100)] {
            drawn(&screen, width, height);
        }
    }

    #[test]
    fn the_newest_value_is_at_the_right_end() {
        let values = [Some(1.0), None, Some(2.0)];
        assert_eq!(
            bars(&values, 2.0, 5),
            [None, None, Some(500), None, Some(1000)]
        );
        assert_eq!(bars(&values, 2.0, 1), [Some(1000)]);
        assert_eq!(bars(&[Some(0.0)], 0.0, 1), [Some(0)]);
        assert_eq!(bars(&values, 2.0, 0), []);
    }
}
