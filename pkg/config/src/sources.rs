use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::places::Places;

/// The prefix of all environment variables of gorego.
pub(crate) const VARIABLE_PREFIX: &str = "GOREGO_";

/// The longest accepted configuration file, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The file that is read if it exists and none is named.
const DEFAULT_FILE: &str = "config.yaml";

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
            file: Self::read_file(&places, config)?,
            env: env::vars_os().filter_map(text).collect(),
            set,
            places,
        })
    }

    /// Returns the absolute path of the configuration file, if there is one.
    pub(crate) fn file_path(&self) -> Option<PathBuf> {
        let (name, _) = self.file.as_ref()?;
        Some(resolve(&self.places, name))
    }

    /// Returns the name and text of the configuration file: `named`, else the default file if it exists.
    pub fn read_file(
        places: &Places,
        named: Option<&Path>,
    ) -> Result<Option<(PathBuf, String)>, String> {
        let name = named.unwrap_or(Path::new(DEFAULT_FILE));
        let shown = name.display();
        let bytes = match read(&resolve(places, name)) {
            Ok(bytes) => bytes,
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => {
                return Err(format!(
                    "cannot read the configuration file {shown}: {error}"
                ));
            }
        };
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(format!("{shown}: longer than {MAX_FILE_BYTES} bytes"));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some((name.to_owned(), text))),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let valid = error.as_bytes().iter().take(valid);
                let line = valid.filter(|byte| **byte == b'\n').count() + 1;
                Err(format!("{shown}: not UTF-8 text at line {line}"))
            }
        }
    }
}

/// Returns the absolute path of a configuration file.
fn resolve(places: &Places, name: &Path) -> PathBuf {
    let path = name.to_str().and_then(|name| places.resolve(name));
    path.unwrap_or_else(|| places.base.join(name))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
