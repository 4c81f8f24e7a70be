//! The user information of URLs, which can be a password.

use std::{borrow::Cow, sync::LazyLock};

use regex::Regex;

use crate::builds::REDACTED;

/// User information in a URL.
static USER_INFO: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"([A-Za-z][A-Za-z0-9+.\-]*:(?:\\*/){2})[^/?#\s"'<>\\]*@"#).ok());

/// Replaces the user information of each URL in `text` by [`REDACTED`].
pub(crate) fn redacted(text: &str) -> Cow<'_, str> {
    if !text.contains('@') {
        return Cow::Borrowed(text);
    }
    match &*USER_INFO {
        Some(pattern) => pattern.replace_all(text, format!("${{1}}{REDACTED}@")),
        None => Cow::Owned(REDACTED.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_user_information_of_urls_is_redacted() {
        for (given, expected) in [
            ("https://me:pw@host/@a", "https://[redacted]@host/@a"),
            (
                "git+ssh://pw@host x://a@b",
                "git+ssh://[redacted]@host x://[redacted]@b",
            ),
            ("https://[redacted]@host/", "https://[redacted]@host/"),
            ("@repo//pkg:a@b", "@repo//pkg:a@b"),
        ] {
            assert_eq!(redacted(given), expected);
        }
    }
}
