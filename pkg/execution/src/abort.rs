//! The reason why an attempt has no result.

use std::fmt;

use gorego_storage::Error;

use crate::Failure;

/// The reason why an attempt has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Abort {
    /// The scheduler stopped the attempt.
    #[error("stopped")]
    Stopped,
    /// The action cannot succeed; another attempt would fail alike.
    #[error(transparent)]
    Final(#[from] Failure),
    /// The action ran out of memory beside others.
    #[error("{0}")]
    OutOfMemory(String),
    /// The disk is full.
    #[error("{0}")]
    NoSpace(String),
    /// The prepared tree of the inputs cannot be used.
    #[error("{0}")]
    NoTree(String),
    /// The executor failed. Another attempt may succeed.
    #[error("{0}")]
    Own(String),
}

impl From<Error> for Abort {
    fn from(error: Error) -> Self {
        match Failure::from_store(error).without_retry_advice() {
            Failure::NoSpace(why) => Self::NoSpace(why),
            Failure::Internal(why) => Self::Own(why),
            failure => Self::Final(failure),
        }
    }
}

impl Abort {
    /// Creates the abort of an action with an invalid field.
    pub(crate) fn invalid(field: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::Final(Failure::invalid(field, why))
    }

    /// Creates the abort of an action that this node cannot run.
    pub(crate) fn unmet(why: impl Into<String>) -> Self {
        Self::Final(Failure::Unmet(why.into()))
    }
}
