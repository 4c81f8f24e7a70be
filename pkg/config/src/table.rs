//! The table of all keys and sections, with their documentation, values and origins.

use std::collections::BTreeMap;

use crate::origin::Origin;
use crate::places::Places;
use crate::raw::Raw;
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

/// A key or a section.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// The full name: `local_cache.dir`.
    pub(crate) name: String,
    /// The documentation, line by line.
    pub(crate) about: &'static [&'static str],
    /// The type of a key; none for a section.
    pub(crate) kind: Option<&'static str>,
    /// The value in YAML, without secrets; empty for a section.
    pub(crate) value: String,
    /// True if the value holds a secret, and is never shown.
    pub(crate) hidden: bool,
    pub(crate) origin: Origin,
    /// True if a source's value was refused, so that `value` is not the intended one.
    pub(crate) refused: bool,
}

impl Entry {
    pub(crate) fn is_given(&self) -> bool {
        self.origin != Origin::Default
    }

    /// Returns the line of a problem or a warning about the value.
    pub(crate) fn with_reason(&self, reason: &str) -> String {
        self.origin.with_reason(&self.name, &self.value, reason)
    }

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
    /// Lists the defaults.
    pub(crate) fn new() -> Self {
        let (mut config, places) = (Config::default(), Places::default());
        Self::assign(&mut config, Settings::new(), &places, &mut Vec::new())
    }

    /// Sets the values of `config`. Values that are refused become problems.
    pub(crate) fn assign(
        config: &mut Config,
        settings: Settings,
        places: &Places,
        problems: &mut Vec<String>,
    ) -> Self {
        let mut assignment = Assignment {
            table: Self::default(),
            settings,
            places,
            problems,
        };
        config.visit("", &mut assignment);
        assignment.table
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// Returns the keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.kind.is_some())
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

/// The values that sources give to each key, the one that wins last.
pub(crate) type Settings = BTreeMap<String, Vec<(Raw, Origin)>>;

/// A visitor that sets the value of every key.
struct Assignment<'a> {
    table: Table,
    settings: Settings,
    places: &'a Places,
    problems: &'a mut Vec<String>,
}

impl Visitor for Assignment<'_> {
    fn section(&mut self, name: String, about: &'static [&'static str]) {
        self.table.entries.push(Entry {
            name,
            about,
            ..Entry::default()
        });
    }

    fn key<T: Value>(&mut self, name: String, about: &'static [&'static str], value: &mut T) {
        let default = value.clone();
        let mut origin = Origin::Default;
        let mut refused = false;
        // Overridden values are parsed, too: an error in the file is reported even if a variable hides it.
        for (raw, source) in self.settings.remove(&name).unwrap_or_default() {
            let is_blank = !T::TAKES_EMPTY && raw.word() == Some("");
            if raw == Raw::Null || is_blank {
                value.clone_from(&default);
                origin = Origin::Default;
            } else if let Some(parsed) = T::parse(&raw, self.places) {
                *value = parsed;
                origin = source;
            } else {
                refused = true;
                let reason = format!("expected {}", T::ACCEPTS);
                let problem = source.with_reason(&name, &T::shown(&raw), &reason);
                self.problems.push(problem);
            }
        }
        self.table.entries.push(Entry {
            name,
            about,
            kind: Some(T::KIND),
            hidden: value.is_secret(),
            value: value.render(),
            origin,
            refused,
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
