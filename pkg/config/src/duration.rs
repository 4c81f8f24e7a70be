use std::time::Duration;

use crate::number::{scaled, split_number};
use crate::sources::Places;
use crate::value::{Raw, Value};

/// The units in nanoseconds, longest first. Of several names for a unit, the first is written.
const UNITS: [(&str, u64); 8] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", SECOND),
    ("ms", 1_000_000),
    ("us", 1000),
    ("µs", 1000), // the micro sign
    ("μs", 1000), // the Greek letter
    ("ns", 1),
];

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400 * SECOND;

impl Value for Duration {
    fn kind() -> String {
        "duration".to_owned()
    }

    fn accepts() -> String {
        "a duration: seconds (5) or numbers with units (500ms, 3h, 1h30m)".to_owned()
    }

    fn parse(raw: &Raw, _: &Places) -> Option<Self> {
        let text = raw.word().filter(|text| !text.is_empty())?;
        // At most 500 years, which can be added to a clock without overflow.
        let nanos = scaled(text, SECOND).or_else(|| sum_of_parts(text))?;
        Some(Self::from_nanos(nanos))
    }

    fn render(&self) -> String {
        let mut rest = self.as_nanos();
        let parts = UNITS.map(|(name, unit)| {
            let count = rest / u128::from(unit);
            rest %= u128::from(unit);
            if count == 0 {
                String::new()
            } else {
                format!("{count}{name}")
            }
        });
        if *self == Self::ZERO {
            "0s".to_owned()
        } else {
            parts.concat()
        }
    }
}

/// Parses `1h2m3.5s`, one or more numbers with units in any order, to nanoseconds.
fn sum_of_parts(mut text: &str) -> Option<u64> {
    let mut sum: u64 = 0;
    while !text.is_empty() {
        let (number, rest) = split_number(text);
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, rest) = rest.split_at(end.unwrap_or(rest.len()));
        sum = sum.checked_add(scaled(number, nanoseconds(unit)?)?)?;
        text = rest;
    }
    Some(sum)
}

fn nanoseconds(unit: &str) -> Option<u64> {
    if unit == "d" {
        return Some(DAY);
    }
    UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, nanos)| *nanos)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Option<Duration> {
        Duration::parse(&Raw::text(text), &Places::for_tests())
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
