use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::Origin;

/// One thing that is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file is missing where it was asked for, or can not be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        /// The file that was tried.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file as a whole is not what a configuration file is.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file, as the user named it.
        path: PathBuf,
        /// What is wrong, with the line where that is known.
        reason: String,
    },
    /// A key in the file or a `--set` that does not exist.
    #[error("{origin}: there is no key `{key}`{}", instead(nearest.as_deref()))]
    UnknownKey {
        /// The key as it was given.
        key: String,
        /// Who gave it.
        origin: Origin,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// A key that is in the file twice; letter case makes no difference.
    #[error("{origin}: `{key}` is given a second time, after line {first}; accepted: once")]
    DuplicateKey {
        /// The full name of the key.
        key: String,
        /// The second place.
        origin: Origin,
        /// The line of the first place.
        first: u64,
    },
    /// A value of the wrong form, out of range, or impossible together with others.
    #[error("{origin}: {key} = {value}: {reason}")]
    Value {
        /// The full name of the key.
        key: String,
        /// The value as given; `<hidden>` for secrets.
        value: String,
        /// Who gave it.
        origin: Origin,
        /// Why it is refused and what is accepted.
        reason: String,
    },
    /// A `--set` without `=`.
    #[error("--set {argument}: expected key=value")]
    Argument {
        /// The argument as it was given.
        argument: String,
    },
    /// Relative paths have nothing to start from.
    #[error("cannot tell the working directory: {source}")]
    NoWorkingDirectory {
        /// What the system said.
        source: io::Error,
    },
}

/// Everything that is wrong with the configuration: never empty, one line each when displayed.
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

/// What to write instead of an unknown key.
fn instead(nearest: Option<&str>) -> String {
    match nearest {
        Some(_) => hint(nearest),
        None => "; accepted: those that `gorego config` lists".to_owned(),
    }
}

/// The tail of a sentence about an unknown name.
pub(crate) fn hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}
