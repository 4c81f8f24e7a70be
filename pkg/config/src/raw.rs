//! The untyped values of all sources.

use std::borrow::Cow;

use crate::yaml::quote;

/// The text shown in place of a secret.
pub(crate) const HIDDEN: &str = "<hidden>";

/// The untyped value that a source gives to a key. Scalars keep their text, so that the text `1.10` is
/// not read as a number. Mappings keep their order and their duplicates.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Raw {
    Null,
    Text(String),
    List(Vec<Raw>),
    Map(Vec<Pair>),
}

/// A key of a mapping with its line and its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pair {
    pub(crate) key: String,
    pub(crate) line: u64,
    pub(crate) value: Raw,
}

impl Raw {
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

    /// Returns the value for messages, without the user and password of a URL.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Text(text) => match text.split_once("://") {
                Some((scheme, rest)) => quote(&format!("{scheme}://{}", without_user(rest))),
                None => quote(text),
            },
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// Returns the authority of a URL with its user and password hidden.
pub(crate) fn without_user(authority: &str) -> Cow<'_, str> {
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{HIDDEN}@{host}").into(),
        None => authority.into(),
    }
}
