use std::time::Duration;

use crate::number::{scaled, split_number};
use crate::places::Places;
use crate::value::Value;

/// Units that are written, longest first, in nanoseconds.
const UNITS: [(&str, u64); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", SECOND),
    ("ms", 1_000_000),
    ("us", 1000),
    ("ns", 1),
];
/// Units that are only read.
const MORE_UNITS: [(&str, u64); 3] = [
    ("d", 86_400 * SECOND),
    ("µs", 1000), // the micro sign
    ("μs", 1000), // the Greek letter
];
const SECOND: u64 = 1_000_000_000;

impl Value for Duration {
    const KIND: &'static str = "duration";
    const ACCEPTS: &'static str =
        "a duration: seconds (5) or numbers with units (500ms, 3h, 1h30m)";

    fn from_word(word: &str, _: &Places) -> Option<Self> {
        // At most 500 years, which can be added to a clock without overflow.
        let nanos = scaled(word, SECOND).or_else(|| sum_of_parts(word))?;
        Some(Self::from_nanos(nanos))
    }

    fn render(&self) -> String {
        if *self == Self::ZERO {
            return "0s".to_owned();
        }
        let mut rest = self.as_nanos();
        let parts = UNITS.map(|(name, unit)| {
            let count = rest / u128::from(unit);
            rest %= u128::from(unit);
            match count {
                0 => String::new(),
                count => format!("{count}{name}"),
            }
        });
        parts.concat()
    }
}

/// Parses `1h2m3.5s`, one or more numbers with units in any order, to nanoseconds.
fn sum_of_parts(mut text: &str) -> Option<u64> {
    let mut sum: u64 = 0;
    loop {
        let (number, rest) = split_number(text);
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, rest) = rest.split_at(end.unwrap_or(rest.len()));
        let mut units = UNITS.iter().chain(&MORE_UNITS);
        let (_, nanos) = units.find(|(name, _)| *name == unit)?;
        sum = sum.checked_add(scaled(number, *nanos)?)?;
        if rest.is_empty() {
            return Some(sum);
        }
        text = rest;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Option<Duration> {
        Duration::from_word(text, &Places::default())
    }

    #[test]
    fn a_bare_number_is_seconds() {
        assert_eq!(parse("5"), Some(Duration::from_secs(5)));
        assert_eq!(parse("0.25"), Some(Duration::from_millis(250)));
        assert_eq!(parse("0"), Some(Duration::ZERO));
    }

    #[test]
    fn units_add_up() {
        assert_eq!(parse("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse("3h"), Some(Duration::from_hours(3)));
        assert_eq!(parse("1h30m"), Some(Duration::from_mins(90)));
        assert_eq!(parse("1h2m3.5s"), Some(Duration::from_millis(3_723_500)));
        assert_eq!(parse("500µs"), parse("500us"));
        assert_eq!(parse("500μs"), Some(Duration::from_micros(500)));
        assert_eq!(parse("7d"), parse("168h"));
        assert_eq!(parse("10ns"), Some(Duration::from_nanos(10)));
    }

    #[test]
    fn texts_other_than_durations_are_refused() {
        for text in [
            "",
            "h",
            "-1s",
            "+1s",
            "1 h",
            "1h30",
            "1x",
            "soon",
            "1.2.3s",
            "99999999999h",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_written_with_the_largest_units() {
        assert_eq!(Duration::from_hours(24).render(), "24h");
        assert_eq!(Duration::from_secs(90).render(), "1m30s");
        assert_eq!(Duration::from_millis(500).render(), "500ms");
        assert_eq!(Duration::ZERO.render(), "0s");
    }

    proptest! {
        #[test]
        fn every_duration_can_be_written_and_read(nanos: u64) {
            let duration = Duration::from_nanos(nanos);
            prop_assert_eq!(parse(&duration.render()), Some(duration));
        }

        #[test]
        fn no_text_panics(text in "[0-9.dhmsnuµ]{0,40}|\\PC{0,20}") {
            let _ = parse(&text);
        }
    }
}
