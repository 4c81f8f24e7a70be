//! Directory trees: walks from a root `Directory` down, and the digests in `Tree` and `Directory` messages.

mod queue;
mod reader;
mod walk;

use crate::{Digest, Error};

pub(crate) use reader::{Node, Nodes};
pub use walk::TreeWalk;

/// The largest encoded `Directory` that `GetTree` returns, in bytes: some 300,000 files in one directory,
/// more than clients accept in a message. Completeness checks read directories of any size.
const MAX_DIRECTORY_BYTES: u64 = 32 * 1024 * 1024;

/// An error of reading a tree.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TreeError {
    /// The store failed, or the root is missing.
    #[error(transparent)]
    Store(#[from] Error),
    /// A blob that a tree or an action result names as a `Directory` or a `Tree` is not one.
    #[error("blob {blob} is not a {message}: {why}")]
    Malformed {
        /// The blob.
        blob: Digest,
        /// The expected message: `Directory` or `Tree`.
        message: &'static str,
        /// The malformed part.
        why: String,
    },
    /// The directory is too large for a message.
    #[error("directory {0} has {size} bytes, GetTree returns at most {MAX_DIRECTORY_BYTES}", size = .0.size())]
    TooLarge(Digest),
}

#[cfg(test)]
mod tests;
