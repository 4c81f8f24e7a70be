//! Counts of an executor and its worker.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{Execution, Failure};

/// Counts of the requests that ended without an attempt.
#[derive(Debug, Default)]
pub struct Admissions {
    /// Actions whose result was cached.
    pub cached: AtomicU64,
    /// Requests that were refused: blobs are missing, a field is invalid, this node cannot run the action, or it takes
    /// none now.
    pub refused: AtomicU64,
    /// Requests that failed by an error of this node.
    pub errors: AtomicU64,
}

impl Admissions {
    /// Counts the end of a request, unless its action is queued.
    pub(crate) fn record(&self, admitted: &Result<Execution, Failure>) {
        let count = match admitted {
            Ok(Execution::Queued(_)) => return,
            Ok(Execution::Cached(_)) => &self.cached,
            Err(Failure::Internal(_) | Failure::Corrupt(_)) => &self.errors,
            Ok(Execution::Ended(_)) | Err(_) => &self.refused,
        };
        count.fetch_add(1, Relaxed);
    }
}

/// Counts of the actions that ran a second time, to be compared.
#[derive(Debug, Default)]
pub struct VerificationCounts {
    /// Second runs that ended.
    pub verified: AtomicU64,
    /// Second runs that had other outputs.
    pub not_reproducible: AtomicU64,
}

/// Counts of the inputs of a worker's actions.
#[derive(Debug, Default)]
pub struct InputCounts {
    /// Files, symlinks and folders that were staged.
    pub staged: AtomicU64,
    /// Bytes of the staged files.
    pub staged_bytes: AtomicU64,
    /// Runs of actions whose inputs were altered meanwhile.
    pub altered: AtomicU64,
}
