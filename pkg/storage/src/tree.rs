//! Directory trees in a store: walked from a root `Directory` down, or read out of a `Tree`.

mod directory;
mod queue;
mod reader;
mod walk;
pub(crate) mod wire;

use crate::{Digest, Error};

pub(crate) use directory::{EncodedDirectory, Reference};
pub use reader::TreeReader;
pub use walk::TreeWalk;

/// The largest encoded `Directory` that is read, in bytes: some 300,000 files in one directory.
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
    /// A directory whose content is not read into memory.
    #[error("directory {digest} has {bytes} bytes, at most {MAX_DIRECTORY_BYTES} are read at once")]
    TooLarge {
        /// The directory, or the `Tree` that holds it.
        digest: Digest,
        /// The directory's encoded size.
        bytes: u64,
    },
}

#[cfg(test)]
mod tests;
