//! Redaction of secrets in command lines and environments, before anything is recorded or shown.
//!
//! A value is hidden because of the name before it: that of an environment variable, a platform property, a flag, a
//! header, a key of JSON, XML or a script. When it is unclear where the value ends, the rest of the text is hidden;
//! when it is unclear whether there is one, the next word or argument is. Hidden as well are the user information of
//! URLs, and every further occurrence of a hidden value in the same command. Names without a value, paths and labels
//! stay readable.
//!
//! Not covered are secrets without a matching name right before them: positional arguments, text piped to a command,
//! text in an encoding (`%3A`, base64), the last words of a sentence, comparisons (`$TOKEN -eq X`), `//pkg/token:X`,
//! which reads as a label, `token::X`, the path of an item, the word after a path or file (`a/token X`), and files
//! that the command reads. Names themselves, such as labels, paths and ids, only lose the user information of URLs.

mod reading;

use std::sync::Arc;

use gorego_storage::DigestFunction;
use regex::{Regex, RegexSet};
use tokio::{sync::Semaphore, task::spawn_blocking};

use self::reading::{Place, Word, is_name_part, is_name_start, structure, word};
use crate::user_info;

/// The replacement of a secret.
pub const REDACTED: &str = "[redacted]";

/// The shortest value of which other occurrences are replaced. Shorter ones occur by chance.
const MIN_SECRET: usize = 6;
/// The most values of one command whose other occurrences are replaced.
const MAX_SECRETS: usize = 64;
/// The characters between a name and its value: the end of the name, and an operator. Lines may be continued.
const SEPARATOR: &str = r#"^(?<close>[\\"'\])}]*)(?:\s|\\\s)*(?<operator>[.!+*/%^?:|&~-]{0,2}=[=>~]?|:|[;,>&|]{1,2}|<{1,3})?(?:\s|\\\s)*"#;
/// The ends of file names that have no value, even if the rest of the name reads like that of a secret.
const FILES: &[&str] = &[
    "a", "bzl", "c", "cc", "class", "cpp", "d", "go", "h", "hpp", "jar", "java", "js", "json",
    "kt", "o", "proto", "py", "rs", "sh", "so", "swift", "ts", "txt", "yaml",
];
/// The most threads that redact commands at once. A command of 1 MB takes tenths of a second.
const MAX_RUNNING: usize = 2;
/// The first words of credentials that consist of two.
const SCHEMES: &[&str] = &["basic", "bearer", "digest", "negotiate"];

/// The patterns of names whose values are secret.
#[derive(Clone, Debug)]
pub struct Redaction {
    names: RegexSet,
    separator: Regex,
    running: Arc<Semaphore>,
}

/// A pattern that is no regular expression, or too large a one.
#[derive(Debug, thiserror::Error)]
#[error("{pattern:?}: {reason}; accepted: regular expressions of names, such as (?i)token|secret")]
pub struct InvalidPattern {
    pattern: String,
    reason: String,
}

/// A command without its secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RedactedCommand {
    pub(crate) arguments: Vec<String>,
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) properties: Vec<(String, String)>,
}

impl InvalidPattern {
    fn new(pattern: String, error: &regex::Error) -> Self {
        // The lines before the last repeat the pattern, with a mark below the fault.
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default();
        let reason = reason.trim_start_matches("error: ").to_owned();
        Self { pattern, reason }
    }
}

fn regex(pattern: &str) -> Result<Regex, InvalidPattern> {
    Regex::new(pattern).map_err(|error| InvalidPattern::new(pattern.to_owned(), &error))
}

impl Redaction {
    /// Creates the redaction of values whose names match any of `patterns`.
    pub fn new<P: AsRef<str>>(patterns: &[P]) -> Result<Self, InvalidPattern> {
        // The error of a set does not name the pattern.
        for pattern in patterns {
            regex(pattern.as_ref())?;
        }
        let all = || {
            patterns
                .iter()
                .map(AsRef::as_ref)
                .collect::<Vec<_>>()
                .join(", ")
        };
        Ok(Self {
            names: RegexSet::new(patterns).map_err(|error| InvalidPattern::new(all(), &error))?,
            separator: regex(SEPARATOR)?,
            running: Arc::new(Semaphore::new(MAX_RUNNING)),
        })
    }

    /// Returns a hash of the patterns, as hexadecimal digits.
    pub(crate) fn fingerprint(&self) -> String {
        let patterns = self.names.patterns().join("\0");
        DigestFunction::Sha256.digest(patterns.as_bytes()).hex()
    }

    /// Runs `work`, which redacts commands, on a thread that may block. Waits while too many run, those whose callers
    /// are gone included. `None` if it panicked, or the runtime shuts down.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let permit = Arc::clone(&self.running).acquire_owned().await.ok()?;
        let redaction = self.clone();
        let running = spawn_blocking(move || {
            let _permit = permit;
            work(&redaction)
        });
        running.await.ok()
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

    /// Redacts a text without a name: the values that names in it have, and user information of URLs.
    pub fn text(&self, text: &str) -> String {
        self.values(text, &mut Vec::new()).0
    }

    /// Redacts a name that is shown, such as a label or a path: only user information of URLs.
    pub fn name(&self, name: &str) -> String {
        user_info::redacted(name).into_owned()
    }

    fn is_secret(&self, name: &str) -> bool {
        self.names.is_match(name)
    }

    fn value(&self, name: &str, value: &str, secrets: &mut Vec<String>) -> String {
        if self.is_secret(name) {
            return hide(value, secrets);
        }
        self.values(value, secrets).0
    }

    fn arguments(&self, arguments: &[String], secrets: &mut Vec<String>) -> Vec<String> {
        let mut is_value = false;
        let mut redacted = Vec::with_capacity(arguments.len());
        for (position, argument) in arguments.iter().enumerate() {
            let (shown, lacks_value) = self.values(argument, secrets);
            redacted.push(if is_value {
                hide(argument, secrets)
            } else {
                shown
            });
            // Flags that pass the next argument on, and schemes, stand between a name and its value.
            let passes = argument.starts_with("-X")
                || SCHEMES.contains(&argument.to_ascii_lowercase().as_str());
            let is_program =
                position == 0 && !argument.starts_with('-') && argument.chars().all(is_name_part);
            is_value = lacks_value && !is_program || is_value && passes;
        }
        redacted
    }

    /// Hides the values of secret names in `text`. The second value is whether `text` ends where one is expected.
    fn values(&self, text: &str, secrets: &mut Vec<String>) -> (String, bool) {
        let text = self.name(text);
        let mut redacted = String::with_capacity(text.len());
        let mut place = Place::new(&text);
        let mut rest = text.as_str();
        let mut lacks_value = false;
        while let Some(start) = rest.find(is_name_start) {
            let (before, named) = rest.split_at(start);
            place.advance(before);
            let is_expansion = place.is_expansion();
            let is_part = |c| is_name_part(c) && !(is_expansion && c == '-');
            let end = named.find(|c| !is_part(c)).unwrap_or(named.len());
            let (name, after) = named.split_at(end.max(1));
            redacted.push_str(before);
            redacted.push_str(name);
            let found = self
                .is_secret(name)
                .then(|| self.find_value(&place, name, after));
            place.advance(name);
            rest = after;
            let Some(Some((separator, length))) = found else {
                continue;
            };
            let (separator, after) = after.split_at(separator);
            let (value, after) = after.split_at(length);
            redacted.push_str(separator);
            if !value.is_empty() {
                redacted.push_str(&hide(value, secrets));
            }
            lacks_value = value.is_empty() && after.is_empty();
            place.advance(separator);
            place.advance(value);
            rest = after;
        }
        redacted.push_str(rest);
        (redacted, lacks_value)
    }

    /// Returns the lengths of the separator and of the value that follow a secret name; `None` if it has no value.
    fn find_value(&self, place: &Place, name: &str, after: &str) -> Option<(usize, usize)> {
        let parts = self.separator.captures(after)?;
        let part = |name| parts.name(name).map_or("", |it| it.as_str());
        let (close, operator) = (part("close"), part("operator"));
        let separator = parts.get(0)?.len();
        let rest = after.get(separator..)?;
        let end = name.rsplit('.').next().unwrap_or(name);
        let is_file = !name.starts_with('-') && FILES.contains(&end);
        let is_substitution = place.word == Word::Substitution;
        let is_path = matches!(place.word, Word::Path | Word::Label)
            || place.word == Word::Repository && separator == 0 && !after.is_empty()
            || after.starts_with('/') && !is_substitution;
        if separator == 1 && operator == ":" {
            let is_item = rest.starts_with("//") || rest.starts_with(':');
            if is_item || place.word == Word::Label || is_path && is_file {
                return None;
            }
        }
        let is_assigned = operator.contains(['=', ':']);
        let is_reference = place.last == '$' || place.is_expansion() && after.starts_with('}');
        let is_used = is_assigned || after.starts_with(['(', '[', '>']);
        if !is_used && (is_path || is_file || is_reference || is_macro(name)) {
            return None;
        }
        let open = place.quoting.open;
        let quotes = close.matches(['"', '\'']).count();
        if quotes > 0 && matches!(operator, ":" | ",") {
            return Some((separator, structure(rest)));
        }
        let quote = open.filter(|&open| !close.contains(open));
        let is_spaced = separator > close.len() + operator.len();
        let owns_rest = place.is_flag
            || place.last == '<'
            || place.is_expansion()
            || is_substitution
            || name.ends_with("-----")
            || quotes > 1
            || quotes == 1 && open.is_none()
            || operator.contains(['<', '>'])
            || is_assigned && place.is_first
            || operator.contains(':') && quote.is_none()
            || operator.contains('=') && is_spaced && quote.is_none() && !is_reference;
        let (word, after) = rest.split_at(word(rest, quote));
        if owns_rest || self.goes_on(word, after) {
            return Some((separator, rest.len()));
        }
        let ends_quote = quote.is_some_and(|quote| word.ends_with(quote));
        Some((separator, word.len() - usize::from(ends_quote)))
    }

    /// Returns whether a value may continue after its first word: after a list, a substitution, a word of signs only,
    /// an escape for another reader, a part of a name, or a second name with a value of its own.
    fn goes_on(&self, word: &str, after: &str) -> bool {
        let bare = word.trim_matches(['"', '\'']);
        word.contains(['(', '[', '{', '`'])
            || !word.contains(char::is_alphanumeric)
            || word.starts_with('\\')
            || word.ends_with([':', '=', ','])
            || after.trim_start().starts_with([':', '='])
            || SCHEMES.contains(&bare.to_ascii_lowercase().as_str())
            || bare.chars().all(is_name_part) && self.is_secret(bare)
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

/// Returns whether the name belongs to a flag such as `-DUSE_TOKENS`. Its value is in the same argument.
fn is_macro(name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    name.strip_prefix("-D")
        .is_some_and(|name| name.chars().all(is_part))
}

#[cfg(test)]
mod tests;
