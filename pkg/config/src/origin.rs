use std::fmt;
use std::path::PathBuf;

/// The origin of a value; shown as `default`, `config.yaml:12`, `GOREGO_LOG_LEVEL` or `--set`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origin {
    /// The default: no source gave a value, or the last one gave `null`.
    #[default]
    Default,
    /// The configuration file.
    File {
        /// The file, as the user named it.
        path: PathBuf,
        /// The line of the key, counted from 1.
        line: u64,
    },
    /// The environment variable of this name.
    Variable(String),
    /// A `--set key=value` argument.
    Set,
}

impl Origin {
    /// Returns the line of a problem or a warning about the value that this origin gave to a key.
    pub(crate) fn with_reason(&self, name: &str, value: &str, reason: &str) -> String {
        format!("{self}: {name} = {value}: {reason}")
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Set => f.write_str("--set"),
        }
    }
}
