use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::Origin;

/// A problem of the configuration.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A configuration file that was named but is missing, or that cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        /// The file, as the user named it.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file that is not text, not YAML, or not a mapping.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file, as the user named it.
        path: PathBuf,
        /// The cause, with the line if it is known.
        reason: String,
    },
    /// An unknown key in the file or in a `--set`.
    #[error("{origin}: unknown key `{key}`{}", instead(nearest.as_deref()))]
    UnknownKey {
        /// The key as given.
        key: String,
        /// The origin of the key.
        origin: Origin,
        /// The most similar known key.
        nearest: Option<String>,
    },
    /// A key that is twice in the file, in any letter case.
    #[error("{origin}: duplicate key `{key}`, first in line {first}; accepted: once")]
    DuplicateKey {
        /// The full name of the key.
        key: String,
        /// The second occurrence.
        origin: Origin,
        /// The line of the first occurrence.
        first: u64,
    },
    /// A value that is malformed, out of range, or impossible together with others.
    #[error("{origin}: {key} = {value}: {reason}")]
    Value {
        /// The full name of the key.
        key: String,
        /// The value as given; `<hidden>` for secrets.
        value: String,
        /// The origin of the value.
        origin: Origin,
        /// The cause, and the accepted values.
        reason: String,
    },
    /// A `--set` without `=`.
    #[error("--set {argument}: expected key=value")]
    Argument {
        /// The argument as given.
        argument: String,
    },
    /// The working directory, in which relative paths start, is unknown.
    #[error("cannot determine the working directory: {source}")]
    NoWorkingDirectory {
        /// The cause.
        source: io::Error,
    },
}

/// All problems of the configuration: at least one, displayed one in each line.
#[derive(Debug)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// Returns the remedy for an unknown key.
fn instead(nearest: Option<&str>) -> String {
    match nearest {
        Some(_) => hint(nearest),
        None => "; accepted: those that `gorego config` lists".to_owned(),
    }
}

/// Returns the end of a message about an unknown name.
pub(crate) fn hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}
