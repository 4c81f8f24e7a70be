use std::path::PathBuf;

use crate::effective::{EffectiveValue, find};
use crate::layers::Layers;
use crate::origin::Origin;
use crate::places::Places;
use crate::problems::Problems;
use crate::schema::Config;
use crate::section::{Section as _, Visitor};
use crate::sources::Sources;
use crate::table::Table;
use crate::validate::Findings;
use crate::value::Value;
use crate::yaml::Raw;

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

impl Config {
    /// Combines the sources. Fails with all problems at once: unknown keys, malformed values,
    /// impossible combinations.
    pub fn load(sources: &Sources) -> Result<LoadedConfig, Problems> {
        let table = Table::new();
        let mut config = Self::default();
        config.local_cache.dir.clone_from(&sources.places.cache);
        let mut assignment = Assignment {
            layers: Layers::new(sources, &table),
            places: &sources.places,
            effective: Vec::new(),
        };
        config.visit("", &mut assignment);
        let Assignment {
            layers, effective, ..
        } = assignment;
        let mut findings = Findings {
            effective: &effective,
            problems: layers.problems,
            warnings: layers.warnings,
        };
        findings.check(&config);
        let Findings {
            problems, warnings, ..
        } = findings;
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        Ok(LoadedConfig {
            config,
            file: sources.file.as_ref().map(|(path, _)| path.clone()),
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

/// A visitor that sets the value of every key.
struct Assignment<'a> {
    layers: Layers<'a>,
    places: &'a Places,
    effective: Vec<EffectiveValue>,
}

impl Visitor for Assignment<'_> {
    fn key<T: Value>(&mut self, name: String, _: &'static [&'static str], value: &mut T) {
        let default = value.clone();
        let mut origin = Origin::Default;
        let mut refused = false;
        // Overridden values are parsed, too: an error in the file is reported even if a variable hides it.
        for setting in self.layers.settings.remove(&name).unwrap_or_default() {
            let raw = &setting.raw;
            let is_blank = !T::TAKES_EMPTY && raw.word() == Some("");
            if *raw == Raw::Null || is_blank {
                value.clone_from(&default);
                origin = Origin::Default;
            } else if let Some(parsed) = T::parse(raw, self.places) {
                *value = parsed;
                origin = setting.origin;
            } else {
                refused = true;
                self.layers.problems.push(format!(
                    "{}: {name} = {}: expected {}",
                    setting.origin,
                    T::shown(raw),
                    T::ACCEPTS
                ));
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
