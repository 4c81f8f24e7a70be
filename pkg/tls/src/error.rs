use std::{fmt, path::PathBuf};

/// The error of a file of a `tls` section that cannot be used. Never shows the content of a key file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {}: {why}", path.display())]
pub struct Error {
    /// The key of the section that names the file.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The cause, and the accepted alternatives.
    pub why: String,
}

impl Error {
    pub(crate) fn new(key: &'static str, path: impl Into<PathBuf>, why: impl fmt::Display) -> Self {
        Self {
            key,
            path: path.into(),
            why: why.to_string(),
        }
    }
}
