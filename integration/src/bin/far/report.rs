//! The table of results.

use std::{
    fmt::{self, Display},
    time::Duration,
};

/// The measurements, one row each.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<Row>);

#[derive(Debug)]
struct Row {
    what: String,
    yardstick: &'static str,
    without: Times,
    with: Times,
}

/// The times of repetitions of one operation.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Report {
    /// Adds the times `without` the proxy, measured on `yardstick`, and `with` it.
    pub(crate) fn add(
        &mut self,
        what: &str,
        yardstick: &'static str,
        (without, with): (Times, Times),
    ) {
        self.0.push(Row {
            what: what.to_owned(),
            yardstick,
            without,
            with,
        });
    }
}

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Returns the median, or the larger of the middle two.
    fn median(&self) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = [
            "what",
            "compared with",
            "its ms",
            "proxy ms",
            "ratio",
            "more ms",
        ];
        writeln!(f, "| {} |", header.join(" | "))?;
        writeln!(f, "|---|---|---:|---:|---:|---:|")?;
        for row in &self.0 {
            let [without, with] =
                [&row.without, &row.with].map(|times| times.median().as_secs_f64() * 1e3);
            writeln!(
                f,
                "| {} | {} | {without:.2} | {with:.2} | {:.2} | {:.2} |",
                row.what,
                row.yardstick,
                with / without,
                with - without,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(millis: &[u64]) -> Times {
        Times(millis.iter().copied().map(Duration::from_millis).collect())
    }

    #[test]
    fn medians_are_compared() {
        let mut report = Report::default();
        let measured = (times(&[40, 900, 1]), times(&[50, 49, 51]));
        report.add("cold read", "direct", measured);
        let text = report.to_string();
        let row = text.lines().last().unwrap();
        assert_eq!(row, "| cold read | direct | 40.00 | 50.00 | 1.25 | 10.00 |");
    }
}
