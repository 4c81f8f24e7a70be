use std::{path::PathBuf, str::FromStr};

use crate::number::all_digits;
use crate::places::Places;
use crate::raw::Raw;
use crate::yaml::{self, quote};

/// A type that keys can have.
pub(crate) trait Value: Clone + PartialEq {
    /// The name of the type in the reference.
    const KIND: &'static str;

    /// The accepted values, for messages after "expected".
    const ACCEPTS: &'static str;

    /// The name of a list of such values, and the accepted ones.
    const LIST: (&'static str, &'static str) = ("list", "a list: [a, b] or a, b");

    /// True if an empty text is a value of the type. Otherwise it stands for the default.
    const TAKES_EMPTY: bool = false;

    /// Parses a scalar without surrounding blanks.
    fn from_word(word: &str, places: &Places) -> Option<Self>;

    /// Parses a value of this type.
    fn parse(raw: &Raw, places: &Places) -> Option<Self> {
        Self::from_word(raw.word()?, places)
    }

    /// Renders the value in one line of YAML, from which [`Value::parse`] reads the same value; a secret
    /// is hidden.
    fn render(&self) -> String;

    /// Returns the text that messages show for `raw`, which may not be a value of this type.
    fn shown(raw: &Raw) -> String {
        raw.shown()
    }

    /// Whether the value holds a secret.
    fn is_secret(&self) -> bool {
        false
    }
}

/// Implements [`Value`] for types that render as they are displayed.
macro_rules! plain_value {
    ($type:ty, $kind:literal, $accepts:expr, $from_word:expr) => {
        impl Value for $type {
            const KIND: &'static str = $kind;
            const ACCEPTS: &'static str = $accepts;

            fn from_word(word: &str, _: &Places) -> Option<Self> {
                $from_word(word)
            }

            fn render(&self) -> String {
                self.to_string()
            }
        }
    };
}

plain_value!(
    bool,
    "yes/no",
    "true or false (also yes/no, on/off, 1/0)",
    boolean
);
plain_value!(u16, "number", "a whole number from 0 to 65535", whole);
plain_value!(u32, "number", "a whole number from 0 to 4294967295", whole);
plain_value!(f64, "fraction", "a number such as 0.9", finite);

fn boolean(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "on" | "1" => Some(true),
        "false" | "f" | "no" | "n" | "off" | "0" => Some(false),
        _ => None,
    }
}

fn whole<T: FromStr>(word: &str) -> Option<T> {
    let digits = Some(word).filter(|word| all_digits(word));
    digits?.parse().ok()
}

fn finite(word: &str) -> Option<f64> {
    word.parse().ok().filter(|number: &f64| number.is_finite())
}

impl Value for String {
    const KIND: &'static str = "text";
    const ACCEPTS: &'static str = "one line of text";
    const TAKES_EMPTY: bool = true;

    fn from_word(word: &str, _: &Places) -> Option<Self> {
        (!word.contains(char::is_control)).then(|| word.to_owned())
    }

    fn render(&self) -> String {
        quote(self)
    }
}

/// A path, made absolute; empty if none is set.
impl Value for PathBuf {
    const KIND: &'static str = "path";
    const ACCEPTS: &'static str = "a path (`~` at its start needs HOME to be set)";

    fn from_word(word: &str, places: &Places) -> Option<Self> {
        places.resolve(Some(word).filter(|word| !word.contains('\0'))?)
    }

    fn render(&self) -> String {
        quote(&self.to_string_lossy())
    }
}

impl<T: Value> Value for Vec<T> {
    const KIND: &'static str = T::LIST.0;
    const ACCEPTS: &'static str = T::LIST.1;
    const TAKES_EMPTY: bool = true;

    fn from_word(word: &str, places: &Places) -> Option<Self> {
        if word.starts_with('[') {
            return Self::parse(&yaml::parse(word).ok()?, places);
        }
        let items = split_commas(word).map(|item| T::from_word(item, places));
        items.collect()
    }

    fn parse(raw: &Raw, places: &Places) -> Option<Self> {
        match raw {
            Raw::List(items) => items.iter().map(|item| T::parse(item, places)).collect(),
            raw => Self::from_word(raw.word()?, places),
        }
    }

    fn render(&self) -> String {
        let items: Vec<_> = self.iter().map(Value::render).collect();
        format!("[{}]", items.join(", "))
    }
}

/// Splits a list at commas and skips blank items.
pub(crate) fn split_commas(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Option<Vec<String>> {
        Value::from_word(text, &Places::default())
    }

    #[test]
    fn booleans_take_the_spellings_of_yaml_and_go() {
        for (text, expected) in [
            ("true", Some(true)),
            ("Yes", Some(true)),
            ("ON", Some(true)),
            ("1", Some(true)),
            ("False", Some(false)),
            ("no", Some(false)),
            ("off", Some(false)),
            ("0", Some(false)),
            ("2", None),
            ("", None),
        ] {
            assert_eq!(boolean(text), expected, "{text}");
        }
    }

    #[test]
    fn lists_are_read_from_commas_or_yaml() {
        let ab = Some(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(list("a, b"), ab);
        assert_eq!(list("a,,b,"), ab);
        assert_eq!(list(r#"["a", b]"#), ab);
        assert_eq!(list(""), Some(vec![]));
        assert_eq!(list("[a"), None);
        assert_eq!(list("[[a]]"), None);
    }

    #[test]
    fn texts_with_control_characters_are_refused() {
        assert_eq!(String::from_word("a\nb", &Places::default()), None);
    }
}
