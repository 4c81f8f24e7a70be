//! The table of all keys and sections with their documentation.

use crate::schema::Config;
use crate::section::{Section as _, Visitor};
use crate::sources::VARIABLE_PREFIX;
use crate::value::Value;

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
    pub(crate) kind: &'static str,
    /// The default in YAML.
    pub(crate) default: String,
}

impl Entry {
    /// Returns the environment variable of a key, such as `GOREGO_LOCAL_CACHE_DIR`.
    pub(crate) fn variable(&self) -> String {
        let name = self.name.to_uppercase().replace('.', "_");
        format!("{VARIABLE_PREFIX}{name}")
    }

    /// Returns the indentation in a file, and the last part of the name.
    pub(crate) fn indented(&self) -> (String, &str) {
        let depth = self.name.matches('.').count();
        ("  ".repeat(depth), last_part(&self.name))
    }
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
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

    /// Returns the keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.key.is_some())
    }

    /// Lists the short names of the keys and sections directly in `section`.
    pub(crate) fn inside(&self, section: &str) -> String {
        let prefix = format!("{section}.");
        let names = self.entries.iter().map(|entry| &entry.name);
        let inside = names.filter_map(|name| name.strip_prefix(&prefix));
        let direct: Vec<_> = inside.filter(|short| !short.contains('.')).collect();
        direct.join(", ")
    }

    /// Returns the name that was probably meant by `name`: the only key with this short name in another
    /// section, or else the most similar name.
    pub(crate) fn nearest(&self, name: &str) -> Option<&str> {
        let names = || self.entries.iter().map(|entry| entry.name.as_str());
        let mut namesakes = names().filter(|known| last_part(known) == name);
        if let (Some(namesake), None) = (namesakes.next(), namesakes.next()) {
            return Some(namesake);
        }
        nearest(name, names())
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
            kind: T::KIND,
            default: value.render(),
        };
        self.entries.push(Entry {
            name,
            about,
            key: Some(key),
        });
    }
}

/// Returns the candidate that is the fewest edits away, if those are at most a third of the letters in
/// the last part of `name`.
pub(crate) fn nearest<T: AsRef<str>>(name: &str, candidates: impl Iterator<Item = T>) -> Option<T> {
    let edits = |candidate: &T| strsim::damerau_levenshtein(name, candidate.as_ref());
    let candidate = candidates.min_by_key(edits)?;
    let letters = last_part(name).chars().count();
    (edits(&candidate) <= letters.div_ceil(3)).then_some(candidate)
}
