//! Parsing of decimal numbers with units.

/// The number of digits after the point that count: more than any unit has.
const FRACTION_DIGITS: usize = 18;

/// Parses digits with at most one point and multiplies them by `unit`, rounding down. Returns `None` for
/// other texts and for results that do not fit.
pub(crate) fn scaled(text: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.len() + fraction.len() == 0 || !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let fraction = fraction.get(..FRACTION_DIGITS).unwrap_or(fraction);
    let digits = u32::try_from(fraction.len()).ok()?;
    // Either part may be empty.
    let scale = |digits: &str| {
        let number: u64 = format!("0{digits}").parse().ok()?;
        Some(u128::from(number) * u128::from(unit))
    };
    u64::try_from(scale(whole)? + scale(fraction)? / 10_u128.pow(digits)).ok()
}

/// Splits `text` after its leading digits and points.
pub(crate) fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    text.split_at(end.unwrap_or(text.len()))
}

pub(crate) fn all_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact_and_rounded_down() {
        assert_eq!(scaled("0.3", 1 << 30), Some(322_122_547));
        assert_eq!(scaled("1.999999999999999999999", 1000), Some(1999));
        assert_eq!(scaled("18446744073709551615", 1), Some(u64::MAX));
        assert_eq!(scaled("18446744073709551615.9", 1), Some(u64::MAX));
    }

    #[test]
    fn numbers_that_are_malformed_or_too_large_are_refused() {
        for text in [
            "",
            ".",
            "1.2.3",
            "-1",
            "+1",
            "1e3",
            "٣",
            "18446744073709551616",
        ] {
            assert_eq!(scaled(text, 1), None, "{text}");
        }
        assert_eq!(scaled("18446744073709551615", 2), None);
    }
}
