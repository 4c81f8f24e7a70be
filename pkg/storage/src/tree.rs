//! Directory trees in a store: walked from a root `Directory` down, or read out of a `Tree`.

mod queue;
mod reader;
mod walk;

use crate::{Digest, Error};

pub(crate) use reader::{Reference, References};
pub use walk::TreeWalk;

/// The largest encoded `Directory` that is decoded for a client (`GetTree`), in bytes: some 300,000 files
/// in one directory. No client takes a message as large. What it names is read without such a limit.
pub const MAX_DIRECTORY_BYTES: u64 = 32 * 1024 * 1024;

/// Why a tree could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TreeError {
    /// The store failed, or has no root.
    #[error(transparent)]
    Store(#[from] Error),
    /// A blob that a tree names as a directory is none.
    #[error("blob {digest} is no Directory: {why}")]
    NotDirectory {
        /// The blob.
        digest: Digest,
        /// Where its content stops making sense.
        why: String,
    },
    /// A blob that should hold a whole tree does not.
    #[error("blob {digest} is no Tree: {why}")]
    NotTree {
        /// The blob.
        digest: Digest,
        /// Where its content stops making sense.
        why: String,
    },
    /// A directory that is too large for a message.
    #[error("directory {digest} has {bytes} bytes, GetTree sends at most {MAX_DIRECTORY_BYTES}")]
    TooLarge {
        /// The directory.
        digest: Digest,
        /// The directory's encoded size.
        bytes: u64,
    },
}

#[cfg(test)]
mod tests;
