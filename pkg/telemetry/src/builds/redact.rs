//! Redaction of secrets in command lines and environments, before anything is recorded or shown.
//!
//! Covered are values of environment variables, platform properties, flags (`--api-key=X`, `--token X`,
//! `-DFOO_TOKEN=X`), assignments and headers within an argument (`TOKEN=X cmd`, `Authorization: X`) whose name
//! matches a pattern; the user information of URLs; and every further occurrence of such a value in the same
//! command. Not covered are secrets without a name that matches, such as a positional argument. Names themselves,
//! such as labels, paths and ids, only lose the user information of URLs in them.

use regex::{Regex, RegexSet};

/// The replacement of a secret.
pub const REDACTED: &str = "[redacted]";

/// The shortest value of which other occurrences are replaced. Shorter ones occur by chance.
const MIN_SECRET: usize = 6;
/// The most values of one command whose other occurrences are replaced.
const MAX_SECRETS: usize = 64;
/// User information in a URL.
const USER_INFO: &str = r#"([A-Za-z][A-Za-z0-9+.\-]*://)[^/?#\s"'<>\\]*@"#;

/// The patterns of names whose values are secret.
#[derive(Clone, Debug)]
pub struct Redaction {
    names: RegexSet,
    user_info: Regex,
}

/// A pattern that is no regular expression, or too large a one.
#[derive(Debug, thiserror::Error)]
#[error("{0}; accepted: regular expressions of names, such as (?i)token|secret")]
pub struct InvalidPattern(#[from] regex::Error);

/// A command without its secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RedactedCommand {
    pub(crate) arguments: Vec<String>,
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) properties: Vec<(String, String)>,
}

impl Redaction {
    /// Creates the redaction of values whose names match any of `patterns`.
    pub fn new<P: AsRef<str>>(patterns: &[P]) -> Result<Self, InvalidPattern> {
        Ok(Self {
            names: RegexSet::new(patterns)?,
            user_info: Regex::new(USER_INFO)?,
        })
    }

    /// Redacts the whole of a command. Items stay at their places.
    pub(crate) fn command(
        &self,
        arguments: &[String],
        variables: &[(String, String)],
        properties: &[(String, String)],
    ) -> RedactedCommand {
        let mut secrets = Vec::new();
        let mut pairs = |pairs: &[(String, String)]| -> Vec<_> {
            let pair = |(name, value): &(String, String)| {
                (name.clone(), self.value(name, value, &mut secrets))
            };
            pairs.iter().map(pair).collect()
        };
        let (mut variables, mut properties) = (pairs(variables), pairs(properties));
        let mut arguments = self.arguments(arguments, &mut secrets);
        // A longer secret may contain a shorter one.
        secrets.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        let values = variables.iter_mut().chain(&mut properties);
        for text in values.map(|(_, value)| value).chain(&mut arguments) {
            for secret in &secrets {
                if text.contains(secret.as_str()) {
                    *text = text.replace(secret.as_str(), REDACTED);
                }
            }
        }
        RedactedCommand {
            arguments,
            variables,
            properties,
        }
    }

    /// Redacts a text without a name: assignments in it, and user information of URLs.
    pub fn text(&self, text: &str) -> String {
        self.assignments(text, &mut Vec::new())
    }

    /// Redacts a name that is shown, such as a label or a path: only user information of URLs.
    pub fn name(&self, name: &str) -> String {
        if !name.contains("://") {
            return name.to_owned();
        }
        let replacement = format!("${{1}}{REDACTED}@");
        self.user_info.replace_all(name, replacement).into_owned()
    }

    fn is_secret(&self, name: &str) -> bool {
        self.names.is_match(name)
    }

    fn value(&self, name: &str, value: &str, secrets: &mut Vec<String>) -> String {
        if self.is_secret(name) {
            return hide(value, secrets);
        }
        self.assignments(value, secrets)
    }

    fn arguments(&self, arguments: &[String], secrets: &mut Vec<String>) -> Vec<String> {
        let mut follows_flag = false;
        let mut redacted = Vec::with_capacity(arguments.len());
        for argument in arguments {
            let is_value = follows_flag && !argument.starts_with('-');
            redacted.push(if is_value {
                hide(argument, secrets)
            } else {
                self.assignments(argument, secrets)
            });
            follows_flag = argument.starts_with('-')
                && !argument.contains(['=', ' ', ':'])
                && self.is_secret(argument);
        }
        redacted
    }

    /// Redacts the values that follow secret names in `text`.
    fn assignments(&self, text: &str, secrets: &mut Vec<String>) -> String {
        let text = self.name(text);
        let mut redacted = String::with_capacity(text.len());
        let mut rest = text.as_str();
        let mut at_start = true;
        while let Some(start) = rest.find(is_name_start) {
            let (before, named) = rest.split_at(start);
            let is_whole = at_start && before.is_empty();
            let end = named.find(|c| !is_name_part(c)).unwrap_or(named.len());
            let (name, after) = named.split_at(end);
            redacted.push_str(before);
            redacted.push_str(name);
            rest = after;
            at_start = false;
            if !self.is_secret(name) {
                continue;
            }
            let Some((separator, value)) = split_value(name, after, is_whole) else {
                continue;
            };
            redacted.push_str(separator);
            if !value.is_empty() {
                redacted.push_str(&hide(value, secrets));
            }
            rest = after
                .get(separator.len() + value.len()..)
                .unwrap_or_default();
        }
        redacted.push_str(rest);
        redacted
    }
}

/// Hides a value, and remembers it in order to hide its other occurrences.
fn hide(value: &str, secrets: &mut Vec<String>) -> String {
    let bare = value.trim_matches(['"', '\'']);
    if bare.len() >= MIN_SECRET && bare != REDACTED && secrets.len() < MAX_SECRETS {
        secrets.push(bare.to_owned());
    }
    REDACTED.to_owned()
}

/// Whether a name may begin with this character. The dashes of a flag are part of its name.
const fn is_name_start(c: char) -> bool {
    c.is_ascii_alphabetic() || matches!(c, '_' | '-')
}

const fn is_name_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// Splits what follows a secret name into the separator and the value; `None` if no value follows. A name at the
/// start of an argument owns the rest of it.
fn split_value<'a>(name: &str, after: &'a str, is_whole: bool) -> Option<(&'a str, &'a str)> {
    let unquoted = after.trim_start_matches(['"', '\'', '\\']);
    let was_quoted = unquoted.len() < after.len();
    let separated = |length: usize| {
        let length = after.len() - unquoted.len() + length;
        Some((after.get(..length)?, after.get(length..)?))
    };
    let blank = |text: &str| text.len() - text.trim_start_matches([' ', '\t']).len();
    if unquoted.starts_with('=') {
        let (separator, rest) = separated(1)?;
        let value = if is_whole && !was_quoted {
            rest
        } else {
            word(rest)
        };
        return Some((separator, value));
    }
    if let Some(rest) = unquoted.strip_prefix(':') {
        let spaces = blank(rest);
        if spaces == 0 && !was_quoted && !is_whole {
            return None;
        }
        let (separator, rest) = separated(1 + spaces)?;
        return Some((separator, if was_quoted { json(rest) } else { line(rest) }));
    }
    let spaces = blank(after);
    if name.starts_with('-') && spaces > 0 {
        let (separator, rest) = separated(spaces)?;
        return (!rest.starts_with('-')).then(|| (separator, word(rest)));
    }
    None
}

/// Returns the start of `text` up to the end of a line or the quotes around it.
fn line(text: &str) -> &str {
    let end = text.find(['"', '\'', '\n']).unwrap_or(text.len());
    text.get(..end).unwrap_or_default()
}

/// Returns the JSON value at the start of `text`, if it is a string or a number.
fn json(text: &str) -> &str {
    let end = match text.strip_prefix('"') {
        Some(inner) => inner.find('"').map(|end| end + 2),
        None => text.find([',', '}', ' ', '\n']),
    };
    text.get(..end.unwrap_or(text.len())).unwrap_or_default()
}

/// Returns the first word of `text` as a shell reads it, with quoted parts and escaped characters.
fn word(text: &str) -> &str {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if escaped {
            escaped = false;
            continue;
        }
        match (quote, c) {
            (_, '\\') => escaped = true,
            (Some(open), _) if open == c => quote = None,
            (None, '"' | '\'') if at == 0 || closes_later(text, at, c) => quote = Some(c),
            (None, '"' | '\'' | '&' | ';' | '|' | ')' | '`') => {
                return text.get(..at).unwrap_or_default();
            }
            (None, c) if c.is_whitespace() => return text.get(..at).unwrap_or_default(),
            _ => {}
        }
    }
    text
}

/// Whether the quote at `at` begins a part of a word, rather than ending the text around the word.
fn closes_later(text: &str, at: usize, quote: char) -> bool {
    let rest = text.get(at + 1..).unwrap_or_default();
    rest.split_whitespace()
        .next()
        .is_some_and(|word| word.contains(quote))
}

#[cfg(test)]
mod tests;
