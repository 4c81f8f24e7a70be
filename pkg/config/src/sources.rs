use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::places::Places;

/// The prefix of all environment variables of gorego.
pub(crate) const VARIABLE_PREFIX: &str = "GOREGO_";

/// The sources of the configuration. Without `Debug`, since they may hold secrets.
#[derive(Clone)]
pub struct Sources {
    /// The configuration file: its name, as the user gave it, and its text.
    pub file: Option<(PathBuf, String)>,
    /// Environment variables. Only names that start with `GOREGO_` count.
    pub env: Vec<(String, OsString)>,
    /// The `key=value` of each `--set`.
    pub set: Vec<String>,
    /// The directories that relative paths and defaults start from.
    pub places: Places,
}

impl Sources {
    /// Reads the environment, the working directory and the configuration file: the one that `config`
    /// names, else `config.yaml` in the working directory if it exists. Fails if the named file is
    /// missing or the file cannot be read.
    pub fn from_process(config: Option<&Path>, set: Vec<String>) -> Result<Self, String> {
        let places = Places::from_process()?;
        let text = |(name, value): (OsString, OsString)| {
            let name = name.into_string().ok()?;
            name.starts_with(VARIABLE_PREFIX).then_some((name, value))
        };
        Ok(Self {
            file: places.read_file(config)?,
            env: env::vars_os().filter_map(text).collect(),
            set,
            places,
        })
    }
}
