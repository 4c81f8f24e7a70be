use std::borrow::Cow;
use std::path::PathBuf;

use crate::load::HIDDEN;
use crate::sources::Places;
use crate::yaml;

/// The untyped value that a source gives to a key. Scalars keep their text, so that the text `1.10` is
/// not read as a number.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Raw {
    Null,
    Text(String),
    List(Vec<Raw>),
    Map(Vec<(String, Raw)>),
}

impl Raw {
    #[cfg(test)]
    pub(crate) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    /// Returns the value of a variable or an argument: text, except `null`.
    pub(crate) fn from_text(text: &str) -> Self {
        if text == "null" {
            Self::Null
        } else {
            Self::Text(text.to_owned())
        }
    }

    /// Returns the scalar without surrounding blanks.
    pub(crate) fn word(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text.trim()),
            _ => None,
        }
    }

    /// Whether the value stands for the default: null, or blank if the type has no blank values.
    pub(crate) fn means_default(&self, takes_empty: bool) -> bool {
        *self == Self::Null || (!takes_empty && self.word() == Some(""))
    }

    /// Returns the value for messages, without the user and password of a URL.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Text(text) => match text.split_once("://") {
                Some((scheme, rest)) => yaml::quote(&format!("{scheme}://{}", without_user(rest))),
                None => yaml::quote(text),
            },
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// A type that keys can have.
pub(crate) trait Value: Clone + PartialEq {
    /// True if an empty text is a value of the type. Otherwise it stands for the default.
    const TAKES_EMPTY: bool = false;

    /// Names the type for the reference, in one or two words.
    fn kind() -> String;

    /// Describes the accepted values, for messages after "expected".
    fn accepts() -> String;

    /// Parses a value of this type.
    fn parse(raw: &Raw, places: &Places) -> Option<Self>;

    /// Renders the value in one line of YAML, from which [`Value::parse`] reads the same value.
    fn render(&self) -> String;

    /// Returns the text that messages show for `raw`, which may not be a value of this type.
    fn shown(raw: &Raw) -> String {
        raw.shown()
    }

    /// Returns the text shown in place of a value that holds a secret.
    fn masked(&self) -> Option<String> {
        None
    }
}

impl Value for bool {
    fn kind() -> String {
        "yes/no".to_owned()
    }

    fn accepts() -> String {
        "true or false (also yes/no, on/off, 1/0)".to_owned()
    }

    fn parse(raw: &Raw, _: &Places) -> Option<Self> {
        match raw.word()?.to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "on" | "1" => Some(true),
            "false" | "f" | "no" | "n" | "off" | "0" => Some(false),
            _ => None,
        }
    }

    fn render(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    const TAKES_EMPTY: bool = true;

    fn kind() -> String {
        "text".to_owned()
    }

    fn accepts() -> String {
        "one line of text".to_owned()
    }

    fn parse(raw: &Raw, _: &Places) -> Option<Self> {
        raw.word()
            .filter(|text| !text.contains(char::is_control))
            .map(str::to_owned)
    }

    fn render(&self) -> String {
        yaml::quote(self)
    }
}

/// A path, made absolute; empty if none is set.
impl Value for PathBuf {
    fn kind() -> String {
        "path".to_owned()
    }

    fn accepts() -> String {
        "a path (`~` at its start needs HOME to be set)".to_owned()
    }

    fn parse(raw: &Raw, places: &Places) -> Option<Self> {
        places.resolve(raw.word().filter(|text| !text.contains('\0'))?)
    }

    fn render(&self) -> String {
        yaml::quote(&self.to_string_lossy())
    }
}

impl Value for Vec<String> {
    const TAKES_EMPTY: bool = true;

    fn kind() -> String {
        "list".to_owned()
    }

    fn accepts() -> String {
        "a list: [a, b] or a, b".to_owned()
    }

    fn parse(raw: &Raw, places: &Places) -> Option<Self> {
        match raw {
            Raw::List(items) => items
                .iter()
                .map(|item| String::parse(item, places))
                .collect(),
            Raw::Text(text) if text.trim_start().starts_with('[') => match yaml::parse(text) {
                Ok(Raw::List(items)) => Self::parse(&Raw::List(items), places),
                _ => None,
            },
            Raw::Text(text) => {
                let items = split_commas(text).map(|item| Raw::Text(item.to_owned()));
                items.map(|item| String::parse(&item, places)).collect()
            }
            Raw::Null | Raw::Map(_) => None,
        }
    }

    fn render(&self) -> String {
        let items: Vec<_> = self.iter().map(|item| yaml::quote(item)).collect();
        format!("[{}]", items.join(", "))
    }
}

/// Returns the authority of a URL with its user and password hidden.
pub(crate) fn without_user(authority: &str) -> Cow<'_, str> {
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{HIDDEN}@{host}").into(),
        None => authority.into(),
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
        Value::parse(&Raw::text(text), &Places::for_tests())
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
            assert_eq!(
                bool::parse(&Raw::text(text), &Places::for_tests()),
                expected,
                "{text}"
            );
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
        assert_eq!(
            String::parse(&Raw::text("a\nb"), &Places::for_tests()),
            None
        );
    }
}
