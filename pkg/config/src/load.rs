use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::layers::{Layers, Setting};
use crate::section::{Section as _, Visitor};
use crate::sources::{Places, Sources};
use crate::table::Table;
use crate::validate::validate;
use crate::value::Value;
use crate::{Config, Origin, Problem, Problems};

/// The text shown in place of a secret.
pub(crate) const HIDDEN: &str = "<hidden>";

/// A valid configuration, with the origin of each value.
#[derive(Debug)]
pub struct LoadedConfig {
    /// The values.
    pub config: Config,
    /// The file that was read, as the user named it.
    pub file: Option<PathBuf>,
    /// Warnings for the user, a line each: settings without effect, unknown variables.
    pub warnings: Vec<String>,
    pub(crate) effective: Vec<EffectiveValue>,
}

/// The resulting value of a key.
#[derive(Debug)]
pub(crate) struct EffectiveValue {
    pub(crate) name: String,
    /// The value in YAML, without secrets.
    pub(crate) value: String,
    /// Whether the value holds a secret.
    pub(crate) hidden: bool,
    pub(crate) origin: Origin,
    /// Whether a source gave a value that was refused: this one is then not what the user meant.
    pub(crate) refused: bool,
}

impl Config {
    /// Combines the sources. Fails with all problems at once: unknown keys, malformed values,
    /// impossible combinations.
    pub fn load(sources: &Sources) -> Result<LoadedConfig, Problems> {
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
        Ok(LoadedConfig {
            config,
            file,
            warnings,
            effective,
        })
    }
}

impl LoadedConfig {
    /// Returns the origin of the value of a key such as `local_cache.dir`, or `None` for an unknown key.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        find(&self.effective, key).map(|effective| &effective.origin)
    }
}

pub(crate) fn find<'a>(effective: &'a [EffectiveValue], key: &str) -> Option<&'a EffectiveValue> {
    effective.iter().find(|effective| effective.name == key)
}

/// A visitor that sets the value of every key.
struct Assignment<'a> {
    settings: BTreeMap<String, Vec<Setting>>,
    places: &'a Places,
    effective: Vec<EffectiveValue>,
    problems: Vec<Problem>,
}

impl Visitor for Assignment<'_> {
    fn section(&mut self, _: String, _: &'static [&'static str]) {}

    fn key<T: Value>(&mut self, name: String, _: &'static [&'static str], value: &mut T) {
        let default = value.clone();
        let mut origin = Origin::Default;
        let mut refused = false;
        // Overridden values are parsed, too: an error in the file is reported even if a variable hides it.
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
        self.effective.push(EffectiveValue {
            name,
            hidden: masked.is_some(),
            value: masked.unwrap_or_else(|| value.render()),
            origin,
            refused,
        });
    }
}
