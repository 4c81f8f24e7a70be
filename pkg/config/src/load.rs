use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::layers::{Layers, Setting};
use crate::section::{Section as _, Visitor};
use crate::sources::{Places, Sources};
use crate::table::Table;
use crate::validate::validate;
use crate::value::Value;
use crate::{Config, Origin, Problem, Problems};

/// What stands in for a secret wherever it would be shown.
pub(crate) const HIDDEN: &str = "<hidden>";

/// A configuration that is sound, and how it came about.
#[derive(Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// The file that was read, as the user named it.
    pub file: Option<PathBuf>,
    /// What the user should know, a line each: settings that have no effect, variables that are
    /// no key's.
    pub warnings: Vec<String>,
    pub(crate) effective: Vec<Effective>,
}

/// A key's value as it came out.
#[derive(Debug)]
pub(crate) struct Effective {
    pub(crate) name: String,
    /// In YAML, without secrets.
    pub(crate) value: String,
    /// Whether it holds a secret.
    pub(crate) hidden: bool,
    pub(crate) origin: Origin,
    /// Whether some source gave a value that was refused, so that this one is not to be judged.
    pub(crate) refused: bool,
}

impl Config {
    /// Puts the sources together. Fails with everything that is wrong with them: unknown keys,
    /// values of the wrong form, impossible combinations.
    pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
        let layers = Layers::new(sources, &Table::new());
        let mut config = Self::default();
        config.local_cache.dir.clone_from(&sources.places.cache);
        let mut assignment = Assignment {
            settings: layers.settings,
            places: &sources.places,
            effective: Vec::new(),
            problems: layers.problems,
        };
        config.visit("", &mut assignment);
        let Assignment {
            effective,
            mut problems,
            ..
        } = assignment;
        let findings = validate(&config, &effective);
        problems.extend(findings.problems);
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        let file = sources.file.as_ref().map(|(path, _)| path.clone());
        let mut warnings = layers.warnings;
        warnings.extend(findings.warnings);
        Ok(Loaded {
            config,
            file,
            warnings,
            effective,
        })
    }
}

impl Loaded {
    /// Where the value of a key (`local_cache.dir`) comes from; nothing if there is no such key.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        find(&self.effective, key).map(|effective| &effective.origin)
    }
}

pub(crate) fn find<'a>(effective: &'a [Effective], key: &str) -> Option<&'a Effective> {
    effective.iter().find(|effective| effective.name == key)
}

/// Gives every key its value.
struct Assignment<'a> {
    settings: BTreeMap<String, Vec<Setting>>,
    places: &'a Places,
    effective: Vec<Effective>,
    problems: Vec<Problem>,
}

impl Visitor for Assignment<'_> {
    fn section(&mut self, _: String, _: &'static [&'static str]) {}

    fn key<T: Value>(&mut self, name: String, _: &'static [&'static str], value: &mut T) {
        let default = value.clone();
        let mut origin = Origin::Default;
        let mut refused = false;
        // The weaker sources are read too: what is wrong in the file stays wrong when a variable
        // hides it.
        for setting in self.settings.remove(&name).unwrap_or_default() {
            if setting.raw.means_default(T::TAKES_EMPTY) {
                value.clone_from(&default);
                origin = Origin::Default;
            } else if let Some(parsed) = T::parse(&setting.raw, self.places) {
                *value = parsed;
                origin = setting.origin;
            } else {
                refused = true;
                self.problems.push(Problem::Value {
                    key: name.clone(),
                    value: T::shown(&setting.raw),
                    origin: setting.origin,
                    reason: format!("expected {}", T::accepts()),
                });
            }
        }
        let masked = value.masked();
        self.effective.push(Effective {
            name,
            hidden: masked.is_some(),
            value: masked.unwrap_or_else(|| value.render()),
            origin,
            refused,
        });
    }
}
