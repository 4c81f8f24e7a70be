use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::Problem;
use crate::table::VARIABLE_PREFIX;

/// The longest accepted configuration file, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The file that is read if it exists and none is named.
const DEFAULT_FILE: &str = "config.yaml";

/// The cache directory of `root`, and of users without a home directory.
const SYSTEM_CACHE: &str = "/var/cache/gorego";

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
    pub fn from_process(config: Option<&Path>, set: Vec<String>) -> Result<Self, Problem> {
        let places = Places::from_process()?;
        let file = places.read_file(config)?;
        let text = |(name, value): (OsString, OsString)| {
            let name = name.into_string().ok()?;
            name.starts_with(VARIABLE_PREFIX).then_some((name, value))
        };
        Ok(Self {
            file,
            env: env::vars_os().filter_map(text).collect(),
            set,
            places,
        })
    }
}

/// The directories that paths start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The directory in which relative paths start.
    pub base: PathBuf,
    /// The directory that `~` stands for.
    pub home: Option<PathBuf>,
    /// The default of `local_cache.dir`.
    pub cache: PathBuf,
}

impl Places {
    /// Returns the places of this process. `bazel run` passes the user's working directory in
    /// `BUILD_WORKING_DIRECTORY`.
    pub fn from_process() -> Result<Self, Problem> {
        let base = match path_variable("BUILD_WORKING_DIRECTORY") {
            Some(base) => base,
            None => env::current_dir().map_err(|source| Problem::NoWorkingDirectory { source })?,
        };
        let root = rustix::process::geteuid().is_root();
        Ok(Self::new(
            base,
            path_variable("HOME"),
            path_variable("XDG_CACHE_HOME"),
            root,
        ))
    }

    /// Returns the places of `root`, or of a user with this home directory and this `XDG_CACHE_HOME`,
    /// which is ignored if it is relative, as the XDG specification asks.
    pub fn new(
        base: PathBuf,
        home: Option<PathBuf>,
        xdg_cache: Option<PathBuf>,
        root: bool,
    ) -> Self {
        let xdg_cache = xdg_cache.filter(|dir| dir.is_absolute());
        let user_cache = xdg_cache.or_else(|| home.as_ref().map(|home| home.join(".cache")));
        let cache = match user_cache {
            Some(dir) if !root => dir.join("gorego"),
            _ => PathBuf::from(SYSTEM_CACHE),
        };
        Self { base, home, cache }
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self::new("/base".into(), Some("/home/user".into()), None, false)
    }

    /// Makes a path absolute; an empty one stays empty. Returns `None` for `~` without a home directory.
    pub(crate) fn resolve(&self, text: &str) -> Option<PathBuf> {
        if text.is_empty() {
            return Some(PathBuf::new());
        }
        match text.strip_prefix('~') {
            Some("") => self.home.clone(),
            Some(rest) if rest.starts_with('/') => {
                Some(self.home.as_ref()?.join(rest.trim_start_matches('/')))
            }
            _ => Some(self.base.join(text)),
        }
    }

    /// Returns the name and text of the configuration file: `named`, else the default file if it exists.
    pub fn read_file(&self, named: Option<&Path>) -> Result<Option<(PathBuf, String)>, Problem> {
        let name = named.unwrap_or(Path::new(DEFAULT_FILE));
        let path = name.to_str().and_then(|name| self.resolve(name));
        match read(&path.unwrap_or_else(|| self.base.join(name))) {
            Ok(bytes) => text_of(name, bytes).map(|text| Some((name.to_owned(), text))),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Problem::Unreadable {
                path: name.to_owned(),
                source,
            }),
        }
    }
}

/// Returns the path in a variable, unless it is unset or empty.
fn path_variable(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text_of(name: &Path, bytes: Vec<u8>) -> Result<String, Problem> {
    let malformed = |reason| Problem::Malformed {
        path: name.to_owned(),
        reason,
    };
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(malformed(format!("longer than {MAX_FILE_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error
            .as_bytes()
            .iter()
            .take(error.utf8_error().valid_up_to());
        let line = valid.filter(|byte| **byte == b'\n').count() + 1;
        malformed(format!("not UTF-8 text at line {line}"))
    })
}
