//! The loading and rendering of a configuration.

use std::path::PathBuf;

use crate::layers::Layers;
use crate::origin::Origin;
use crate::schema::Config;
use crate::sources::Sources;
use crate::table::{Entry, Table};
use crate::validate::Findings;

const HEAD: &str = "# The effective configuration, with the origin of each value.\n";

/// A valid configuration, with the origin of each value.
#[derive(Debug)]
pub struct LoadedConfig {
    /// The values.
    pub config: Config,
    /// The file that was read, as the user named it.
    pub file: Option<PathBuf>,
    /// The absolute path of that file.
    pub file_path: Option<PathBuf>,
    /// Warnings for the user, a line each: settings without effect, unknown variables.
    pub warnings: Vec<String>,
    pub(crate) table: Table,
}

/// All problems of the configuration: at least one, a line each. A line names the origin, the key, the
/// value and the accepted ones.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Problems(pub Vec<String>);

impl Config {
    /// Combines the sources. Fails with all problems at once: unknown keys, malformed values,
    /// impossible combinations.
    pub fn load(sources: &Sources) -> Result<LoadedConfig, Problems> {
        let defaults = Table::new();
        let mut layers = Layers::new(sources, &defaults);
        let mut config = Self::default();
        config.local_cache.dir.clone_from(&sources.places.cache);
        let (places, problems) = (&sources.places, &mut layers.problems);
        let table = Table::assign(&mut config, layers.settings, places, problems);
        let mut findings = Findings {
            table: &table,
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
            file_path: sources.file_path(),
            warnings,
            table,
        })
    }
}

impl LoadedConfig {
    /// Returns the origin of the value of a key such as `local_cache.dir`, or `None` for an unknown key.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        self.table.entry(key).map(|entry| &entry.origin)
    }

    /// Renders the effective configuration as a configuration file: every key with its value and, in a
    /// comment, the value's origin. Secrets are hidden.
    pub fn render(&self) -> String {
        let lines: Vec<_> = self.table.entries.iter().map(line).collect();
        format!("{HEAD}{}", lines.concat())
    }
}

fn line(entry: &Entry) -> String {
    let (indent, name) = entry.indented();
    if entry.kind.is_none() {
        return format!("{indent}{name}:\n");
    }
    // Commented out, since a file with the placeholder of a secret would load as its value.
    let comment = if entry.hidden { "# " } else { "" };
    let origin = entry.origin.to_string().replace(char::is_control, "?");
    format!("{indent}{comment}{name}: {} # {origin}\n", entry.value)
}
