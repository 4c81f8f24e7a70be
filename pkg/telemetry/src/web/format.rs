//! Numbers as people read them.

/// A space that breaks no line, between a number and its unit.
const SPACE: char = '\u{a0}';

/// Renders a size in its largest binary unit.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn bytes(bytes: u64) -> String {
    size(bytes as f64)
}

/// Renders a size that need not be whole.
pub fn size(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes.max(0.0);
    let mut units = UNITS.iter();
    let mut unit = units.next();
    // A value that would be rounded to 1024 belongs to the next unit.
    while value >= 999.5 && units.len() > 0 {
        value /= 1024.0;
        unit = units.next();
    }
    let digits = match (unit, value) {
        (Some(&"B"), _) => 0,
        (_, value) if value < 9.95 => 2,
        (_, value) if value < 99.5 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{SPACE}{}", unit.unwrap_or(&"B"))
}

/// Renders a count with a narrow space between thousands.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Renders a count of things. `noun` is one of them.
pub fn counted(value: u64, noun: &str) -> String {
    format!("{} {}", count(value), number_of(value, noun))
}

/// Returns the singular of a noun for 1, else its plural.
pub fn number_of(value: u64, noun: &str) -> String {
    let end = match (value, noun.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{noun}{end}")
}

/// Renders a share from 0 to 1. Only all is 100 %, and only nothing is 0 %.
pub fn percent(share: f64) -> String {
    let percent = share.clamp(0.0, 1.0) * 100.0;
    let shown = match percent {
        p if p > 0.0 && p < 0.1 => 0.1,
        p if p > 99.9 && p < 100.0 => 99.9,
        p => p,
    };
    let digits = usize::from(shown.fract() >= 0.05 && shown < 99.95);
    format!("{shown:.digits$}{SPACE}%")
}

/// Renders a duration in seconds with one unit.
pub fn seconds(seconds: f64) -> String {
    let (value, unit) = match seconds.max(0.0) {
        s if s < 0.000_999_5 => (s * 1e6, "µs"),
        s if s < 0.9995 => (s * 1e3, "ms"),
        s if s < 120.0 => (s, "s"),
        s if s < 7200.0 => (s / 60.0, "min"),
        s if s < 172_800.0 => (s / 3600.0, "h"),
        s => (s / 86_400.0, "days"),
    };
    let digits = usize::from(value < 9.95 && value.fract() >= 0.05);
    format!("{value:.digits$}{SPACE}{unit}")
}

/// Renders a rate without a unit.
pub fn rate(value: f64) -> String {
    let digits = usize::from(value < 9.95 && value.fract() >= 0.05);
    format!("{value:.digits$}")
}

/// Renders a time in milliseconds since the Unix epoch as a date and time in UTC.
pub fn time(ms: u64) -> String {
    let seconds = ms / 1000;
    let (year, month, day) = date(seconds / 86_400);
    let of_day = seconds % 86_400;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}{SPACE}UTC")
}

/// Returns the date of a day since the Unix epoch. Counts in years that begin in March, so that a leap day
/// is the last of its year.
const fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + (month <= 2) as u64;
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        text.replace([SPACE, '\u{202f}'], " ")
    }

    #[test]
    fn sizes_have_three_digits_and_a_unit() {
        for (value, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1023, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (10 << 20, "10.0 MiB"),
            (123 << 30, "123 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(plain(&bytes(value)), text);
        }
    }

    #[test]
    fn thousands_are_separated() {
        for (value, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1 000"),
            (12_345_678, "12 345 678"),
        ] {
            assert_eq!(plain(&count(value)), text);
        }
    }

    #[test]
    fn nouns_have_the_number_of_their_count() {
        assert_eq!(plain(&counted(0, "miss")), "0 misses");
        assert_eq!(plain(&counted(1, "miss")), "1 miss");
        assert_eq!(
            plain(&counted(1000, "further difference")),
            "1 000 further differences"
        );
    }

    #[test]
    fn a_share_is_rounded_neither_to_all_nor_to_nothing() {
        for (share, text) in [
            (0.0, "0 %"),
            (0.000_01, "0.1 %"),
            (0.5, "50 %"),
            (0.923, "92.3 %"),
            (0.999_99, "99.9 %"),
            (1.0, "100 %"),
        ] {
            assert_eq!(plain(&percent(share)), text);
        }
    }

    #[test]
    fn durations_have_the_unit_that_fits() {
        for (value, text) in [
            (0.000_25, "250 µs"),
            (0.0032, "3.2 ms"),
            (1.0, "1 s"),
            (90.0, "90 s"),
            (600.0, "10 min"),
            (9.0 * 3600.0, "9 h"),
            (3.2 * 86_400.0, "3.2 days"),
        ] {
            assert_eq!(plain(&seconds(value)), text);
        }
    }

    #[test]
    fn times_are_dates_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_200, "2024-03-01 00:00:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(plain(&time(seconds * 1000)), text);
        }
    }
}
