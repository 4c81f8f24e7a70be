//! The table of figures and their aims.

use std::time::Duration;

/// An aim for a figure.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aim {
    /// No aim: the figure is for comparison.
    None,
    AtMost(f64, Unit),
    Below(f64, Unit),
    AtLeast(f64, Unit),
}

/// The unit of a figure.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    /// A ratio, with three digits.
    Ratio,
    Milliseconds,
    Seconds,
    /// A number of events in a second.
    PerSecond,
    /// Actions that were lost, answered twice, or have a wrong result.
    Actions,
    Bytes,
    BytesPerSecond,
    Mebibytes,
}

impl Unit {
    fn text(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{value:.3}"),
            Self::Milliseconds => format!("{value:.1} ms"),
            Self::Seconds => format!("{value:.2} s"),
            Self::PerSecond => format!("{value:.0}/s"),
            Self::Actions => format!("{value:.0} actions"),
            Self::Bytes => format!("{value:.0} bytes"),
            Self::BytesPerSecond => format!("{value:.0} bytes/s"),
            Self::Mebibytes => format!("{value:.1} MiB"),
        }
    }
}

impl Aim {
    fn text(self) -> String {
        match self {
            Self::None => String::new(),
            Self::AtMost(most, unit) => format!("≤ {}", unit.text(most)),
            Self::Below(limit, unit) => format!("< {}", unit.text(limit)),
            Self::AtLeast(least, unit) => format!("≥ {}", unit.text(least)),
        }
    }

    fn is_met(self, value: f64) -> bool {
        match self {
            Self::None => true,
            Self::AtMost(most, _) => value <= most,
            Self::Below(limit, _) => value < limit,
            Self::AtLeast(least, _) => value >= least,
        }
    }
}

pub(crate) fn print_header() {
    println!("| what | aim | measured | |");
    println!("|---|---|---|---|");
}

/// Prints a figure beside its aim, with a remark.
pub(crate) fn print(what: &str, aim: Aim, value: f64, unit: Unit, remark: &str) {
    let missed = if aim.is_met(value) { "" } else { " (missed)" };
    let (aim, value) = (aim.text(), unit.text(value));
    println!("| {what} | {aim} | {value}{missed} | {remark} |");
}

/// Prints the median and the 99th percentile of times beside their aims.
pub(crate) fn print_percentiles(what: &str, aims: [Aim; 2], times: &mut [Duration]) {
    times.sort_unstable();
    let remark = format!("of {}", times.len());
    for (percent, aim) in [50, 99].into_iter().zip(aims) {
        let at = (times.len() * percent).div_ceil(100).saturating_sub(1);
        let time = times.get(at).copied().unwrap_or_default();
        let what = format!("{what}: p{percent}");
        print(&what, aim, ms(time), Unit::Milliseconds, &remark);
    }
}

/// Returns a time in milliseconds.
pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
