use crate::places::Places;
use crate::value::Value;

/// A part of a whole, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Fraction(f64);

impl Fraction {
    /// None.
    pub const NONE: Self = Self(0.0);

    /// Returns the number, from 0 to 1.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl Value for Fraction {
    const KIND: &'static str = "fraction";
    const ACCEPTS: &'static str = "a fraction from 0 to 1 (0.01) or a percentage (1%)";

    fn from_word(word: &str, _: &Places) -> Option<Self> {
        let number = |text: &str| text.trim_end().parse::<f64>().ok();
        let fraction = match word.strip_suffix('%') {
            Some(percentage) => number(percentage)? / 100.0,
            None => number(word)?,
        };
        (0.0..=1.0).contains(&fraction).then_some(Self(fraction))
    }

    fn render(&self) -> String {
        self.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(word: &str) -> Option<f64> {
        let places = Places::new("/".into(), None, None, false);
        Fraction::from_word(word, &places).map(Fraction::get)
    }

    #[test]
    fn fractions_and_percentages_are_accepted() {
        for (word, fraction) in [
            ("0", 0.0),
            ("1", 1.0),
            ("0.25", 0.25),
            ("50%", 0.5),
            ("0.5 %", 0.005),
        ] {
            assert_eq!(parse(word), Some(fraction), "{word}");
        }
        for word in ["", "%", "-1%", "101%", "1.1", "nan", "inf", "1%%"] {
            assert_eq!(parse(word), None, "{word}");
        }
    }
}
