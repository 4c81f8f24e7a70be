//! Reads the values of each key from all sources.

use std::collections::BTreeMap;
use std::path::Path;

use crate::origin::Origin;
use crate::raw::{Pair, Raw};
use crate::sources::{Sources, VARIABLE_PREFIX};
use crate::table::{Settings, Table, VARIABLES_OF_TOOLS, nearest};
use crate::yaml;

/// The settings of each key from all sources, the one that wins last.
#[derive(Debug)]
pub(crate) struct Layers<'a> {
    pub(crate) settings: Settings,
    pub(crate) problems: Vec<String>,
    pub(crate) warnings: Vec<String>,
    table: &'a Table,
    /// The line of each key and section of the file.
    lines: BTreeMap<String, u64>,
}

impl<'a> Layers<'a> {
    pub(crate) fn new(sources: &Sources, table: &'a Table) -> Self {
        let mut layers = Self {
            settings: Settings::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
            table,
            lines: BTreeMap::new(),
        };
        if let Some((path, text)) = &sources.file {
            layers.read_file(path, text);
        }
        layers.read_variables(sources);
        for argument in &sources.set {
            layers.read_argument(argument);
        }
        layers
    }

    fn read_file(&mut self, path: &Path, text: &str) {
        let not_keys = |found| format!("expected keys with values (`key: value`), found {found}");
        let problem = match yaml::parse(text) {
            Ok(Raw::Null) => return,
            Ok(Raw::Map(pairs)) => return self.read_section("", pairs, path),
            Ok(Raw::List(_)) => not_keys("a list"),
            Ok(Raw::Text(_)) => not_keys("a single value"),
            Err(problem) => problem,
        };
        let problem = format!("{}: {problem}", path.display());
        self.problems.push(problem);
    }

    fn read_section(&mut self, prefix: &str, pairs: Vec<Pair>, path: &Path) {
        for Pair { key, line, value } in pairs {
            let path = path.to_owned();
            self.read_entry(
                &format!("{prefix}{key}"),
                value,
                Origin::File { path, line },
            );
        }
    }

    /// Reads the value of a key or a section.
    fn read_entry(&mut self, given: &str, raw: Raw, origin: Origin) {
        let name = given.to_ascii_lowercase();
        if let Origin::File { line, .. } = origin
            && let Some(first) = self.lines.insert(name.clone(), line)
        {
            self.problems.push(format!(
                "{origin}: duplicate key `{name}`, first in line {first}; accepted: once"
            ));
        }
        let Some(entry) = self.table.entry(&name) else {
            let remedy = match self.table.nearest(&name) {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => "accepted: those that `gorego config` lists".to_owned(),
            };
            let problem = format!("{origin}: unknown key `{given}`; {remedy}");
            return self.problems.push(problem);
        };
        match (raw, &origin) {
            (raw, _) if entry.kind.is_some() => {
                let settings = self.settings.entry(name).or_default();
                settings.push((raw, origin));
            }
            (Raw::Null, Origin::File { .. }) => {}
            (Raw::Map(pairs), Origin::File { path, .. }) => {
                self.read_section(&format!("{name}."), pairs, path);
            }
            // The value may hold a secret that belongs to a key of the section.
            (_, origin) => {
                let keys = self.table.inside(&name);
                let reason = format!("expected a section with some of the keys {keys}");
                self.problems
                    .push(origin.with_reason(&name, "...", &reason));
            }
        }
    }

    fn read_variables(&mut self, sources: &Sources) {
        let known: BTreeMap<_, _> = self.table.keys().map(|key| (key.variable(), key)).collect();
        let variables: BTreeMap<_, _> = sources
            .env
            .iter()
            .map(|(name, value)| (name, value))
            .collect();
        for (variable, value) in variables {
            // Some launchers can set a variable to nothing, but not leave it out.
            if value.is_empty() || VARIABLES_OF_TOOLS.contains(&variable.as_str()) {
                continue;
            }
            let Some(short) = variable.strip_prefix(VARIABLE_PREFIX) else {
                continue;
            };
            let origin = Origin::Variable(variable.clone());
            match (known.get(variable), value.to_str()) {
                (Some(key), Some(text)) => {
                    self.read_entry(&key.name, Raw::from_text(text), origin);
                }
                (Some(key), None) => {
                    let reason = "not UTF-8; accepted: UTF-8 text";
                    let problem = origin.with_reason(&key.name, "...", reason);
                    self.problems.push(problem);
                }
                (None, _) => {
                    let names = known
                        .keys()
                        .filter_map(|name| name.strip_prefix(VARIABLE_PREFIX));
                    let hint = nearest(short, names).map_or_else(String::new, |name| {
                        format!("; did you mean `{VARIABLE_PREFIX}{name}`?")
                    });
                    let warning = format!("unknown variable {variable} ignored{hint}");
                    self.warnings.push(warning);
                }
            }
        }
    }

    fn read_argument(&mut self, argument: &str) {
        if let Some((key, value)) = argument.split_once('=') {
            return self.read_entry(key.trim(), Raw::from_text(value), Origin::Set);
        }
        // The text after the key may be a secret.
        let is_end = |c: char| !c.is_alphanumeric() && !matches!(c, '.' | '_' | '-');
        let shown = match argument.split_once(is_end) {
            Some((key, _)) => format!("{key}..."),
            None => argument.to_owned(),
        };
        self.problems
            .push(format!("--set {shown}: expected key=value"));
    }
}
