//! The table of all keys and sections with their documentation.

use crate::Config;
use crate::section::{Section, Visitor};
use crate::value::Value;

/// The prefix of all environment variables of gorego.
pub(crate) const VARIABLE_PREFIX: &str = "GOREGO_";

/// Variables with the same prefix for the scripts in `tools`. A server inherits them under
/// `tools/bazel run`, for example.
pub(crate) const VARIABLES_OF_TOOLS: [&str; 5] = [
    "GOREGO_BAZEL",
    "GOREGO_BAZEL_CONTAINED",
    "GOREGO_BAZEL_REGISTRY",
    "GOREGO_CLIENT_ROOT",
    "GOREGO_REQUIRE_CLIENT_ROOT",
];

/// A key or a section, with its documentation.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The full name: `local_cache.dir`.
    pub(crate) name: String,
    /// The documentation, line by line.
    pub(crate) about: &'static [&'static str],
    /// The details of a key; none for a section.
    pub(crate) key: Option<Key>,
}

/// The type and default of a key, as the reference shows them.
#[derive(Debug)]
pub(crate) struct Key {
    /// The type.
    pub(crate) kind: String,
    /// The default in YAML.
    pub(crate) default: String,
}

/// All keys and sections, in the order of the file, each section before its keys.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) entries: Vec<Entry>,
}

impl Table {
    pub(crate) fn new() -> Self {
        let mut table = Self::default();
        Config::default().visit("", &mut table);
        table
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// Returns the keys with the names of their variables.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (String, &Entry)> {
        let keys = self.entries.iter().filter(|entry| entry.key.is_some());
        keys.map(|entry| (variable(&entry.name), entry))
    }

    /// Lists the short names of the keys and sections directly in `section`.
    pub(crate) fn inside(&self, section: &str) -> String {
        let prefix = format!("{section}.");
        let short = |entry: &Entry| {
            let rest = entry.name.strip_prefix(&prefix)?;
            (!rest.contains('.')).then(|| rest.to_owned())
        };
        self.entries
            .iter()
            .filter_map(short)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Returns the name that was probably meant by `name`: the only key with this short name in another
    /// section, or else the most similar name.
    pub(crate) fn nearest(&self, name: &str) -> Option<String> {
        let names = || self.entries.iter().map(|entry| entry.name.as_str());
        let mut namesakes = names().filter(|known| known.rsplit('.').next() == Some(name));
        if let (Some(namesake), None) = (namesakes.next(), namesakes.next()) {
            return Some(namesake.to_owned());
        }
        nearest(name, names()).map(str::to_owned)
    }
}

impl Visitor for Table {
    fn section(&mut self, name: String, about: &'static [&'static str]) {
        self.entries.push(Entry {
            name,
            about,
            key: None,
        });
    }

    fn key<T: Value>(&mut self, name: String, about: &'static [&'static str], value: &mut T) {
        let key = Key {
            kind: T::kind(),
            default: value.render(),
        };
        self.entries.push(Entry {
            name,
            about,
            key: Some(key),
        });
    }
}

/// Returns the environment variable of a key, such as `GOREGO_LOCAL_CACHE_DIR`.
pub(crate) fn variable(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.to_uppercase().replace('.', "_"))
}

/// Returns the candidate that is the fewest edits away, if those are at most a third of the letters in
/// the last part of `name`.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let near = |candidate: &'a str| (strsim::damerau_levenshtein(name, candidate), candidate);
    let (edits, candidate) = candidates.map(near).min_by_key(|(edits, _)| *edits)?;
    let letters = name.rsplit('.').next().unwrap_or(name).chars().count();
    (edits <= letters.div_ceil(3)).then_some(candidate)
}
