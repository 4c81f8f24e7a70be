//! Reads the values of each key from all sources.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;

use serde_saphyr::Spanned;

use crate::problem::hint;
use crate::sources::Sources;
use crate::table::{Table, VARIABLE_PREFIX, VARIABLES_OF_TOOLS, nearest};
use crate::value::Raw;
use crate::yaml::{self, Node, Tree};
use crate::{Origin, Problem};

/// The value that one source gives to a key.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) raw: Raw,
    pub(crate) origin: Origin,
}

/// The settings of each key from all sources, the one that wins last.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    pub(crate) settings: BTreeMap<String, Vec<Setting>>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<String>,
}

impl Layers {
    pub(crate) fn new(sources: &Sources, table: &Table) -> Self {
        let mut layers = Self::default();
        if let Some((path, text)) = &sources.file {
            let mut file = File {
                path,
                text,
                table,
                layers: &mut layers,
                seen: BTreeMap::new(),
            };
            file.read();
        }
        layers.read_variables(sources, table);
        for argument in &sources.set {
            layers.read_argument(argument, table);
        }
        layers
    }

    fn set(&mut self, name: String, raw: Raw, origin: Origin) {
        self.settings
            .entry(name)
            .or_default()
            .push(Setting { raw, origin });
    }

    fn read_variables(&mut self, sources: &Sources, table: &Table) {
        let known: BTreeMap<_, _> = table.variables().collect();
        let given = sources
            .env
            .iter()
            .filter(|(name, _)| name.starts_with(VARIABLE_PREFIX));
        let given: BTreeMap<&str, &OsStr> = given
            .map(|(name, value)| (name.as_str(), value.as_os_str()))
            .collect();
        for (name, value) in given {
            let origin = Origin::Variable(name.to_owned());
            match (known.get(name), value.to_str()) {
                // Some launchers can set a variable to nothing, but not leave it out.
                (_, Some("")) => {}
                (Some(entry), Some(text)) => {
                    self.set(entry.name.clone(), Raw::from_text(text), origin);
                }
                (Some(entry), None) => self.problems.push(Problem::Value {
                    key: entry.name.clone(),
                    value: "...".to_owned(),
                    origin,
                    reason: "expected UTF-8 text".to_owned(),
                }),
                (None, _) if VARIABLES_OF_TOOLS.contains(&name) => {}
                (None, _) => {
                    let hint = hint(nearest_variable(name, table).as_deref());
                    self.warnings
                        .push(format!("unknown variable {name} ignored{hint}"));
                }
            }
        }
    }

    fn read_argument(&mut self, argument: &str, table: &Table) {
        let Some((key, value)) = argument.split_once('=') else {
            // The text after the key may be a secret.
            let is_end = |c: char| !c.is_alphanumeric() && !matches!(c, '.' | '_' | '-');
            let argument = match argument.split_once(is_end) {
                Some((key, _)) => format!("{key}..."),
                None => argument.to_owned(),
            };
            self.problems.push(Problem::Argument { argument });
            return;
        };
        let name = key.trim().to_ascii_lowercase();
        match table.entry(&name) {
            Some(entry) if entry.key.is_some() => {
                self.set(name, Raw::from_text(value), Origin::Set);
            }
            Some(_) => {
                self.problems.push(not_a_section(
                    table,
                    name,
                    &Raw::from_text(value),
                    Origin::Set,
                ));
            }
            None => self
                .problems
                .push(unknown_key(table, key.trim(), Origin::Set)),
        }
    }
}

/// Returns the known variable most similar to `name`, compared without the prefix of all variables.
fn nearest_variable(name: &str, table: &Table) -> Option<String> {
    let names: Vec<_> = table.variables().map(|(name, _)| name).collect();
    let tails = names
        .iter()
        .filter_map(|name| name.strip_prefix(VARIABLE_PREFIX));
    let tail = nearest(name.strip_prefix(VARIABLE_PREFIX)?, tails)?;
    Some(format!("{VARIABLE_PREFIX}{tail}"))
}

fn unknown_key(table: &Table, name: &str, origin: Origin) -> Problem {
    let nearest = table.nearest(&name.to_ascii_lowercase());
    Problem::UnknownKey {
        key: name.to_owned(),
        origin,
        nearest,
    }
}

fn not_a_section(table: &Table, name: String, value: &Raw, origin: Origin) -> Problem {
    let reason = format!(
        "expected a section with some of the keys {}",
        table.inside(&name)
    );
    Problem::Value {
        key: name,
        value: value.shown(),
        origin,
        reason,
    }
}

/// A configuration file that is being read.
struct File<'a> {
    path: &'a PathBuf,
    text: &'a str,
    table: &'a Table,
    layers: &'a mut Layers,
    /// The line of each key and section so far.
    seen: BTreeMap<String, u64>,
}

impl File<'_> {
    fn read(&mut self) {
        match yaml::parse_document(self.text) {
            Ok(root) => match &root.value {
                Tree::Null => {}
                Tree::Map(entries) => self.read_section("", entries),
                Tree::List(_) => self.malformed("a list"),
                Tree::Text(_) | Tree::Typed(_) => self.malformed("a single value"),
            },
            Err(reason) => {
                self.layers.problems.push(Problem::Malformed {
                    path: self.path.clone(),
                    reason,
                });
            }
        }
    }

    fn malformed(&mut self, found: &str) {
        let reason = format!("expected keys with values (`key: value`), found {found}");
        self.layers.problems.push(Problem::Malformed {
            path: self.path.clone(),
            reason,
        });
    }

    fn read_section(&mut self, prefix: &str, entries: &[(Spanned<String>, Node)]) {
        for (key, value) in entries {
            let line = key.referenced.line();
            let given = format!("{prefix}{}", key.value);
            let name = given.to_ascii_lowercase();
            let origin = Origin::File {
                path: self.path.clone(),
                line,
            };
            if let Some(first) = self.seen.insert(name.clone(), line) {
                let problem = Problem::DuplicateKey {
                    key: name.clone(),
                    origin: origin.clone(),
                    first,
                };
                self.layers.problems.push(problem);
            }
            self.read_entry(&given, name, value, origin);
        }
    }

    fn read_entry(&mut self, given: &str, name: String, value: &Node, origin: Origin) {
        match (self.table.entry(&name), &value.value) {
            (None, _) => self
                .layers
                .problems
                .push(unknown_key(self.table, given, origin)),
            (Some(entry), _) if entry.key.is_some() => {
                self.layers
                    .set(name, yaml::to_raw(value, self.text), origin);
            }
            (Some(_), Tree::Null) => {}
            (Some(_), Tree::Map(entries)) => self.read_section(&format!("{name}."), entries),
            (Some(_), _) => {
                let raw = yaml::to_raw(value, self.text);
                self.layers
                    .problems
                    .push(not_a_section(self.table, name, &raw, origin));
            }
        }
    }
}
