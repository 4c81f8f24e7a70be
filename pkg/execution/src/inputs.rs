//! The input tree of an action.

mod count;
mod directories;
mod load;
mod nodes;
mod resident;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, sync::Arc};

use gorego_storage::Digest;
use tokio::task::spawn_blocking;

pub use directories::Directories;
pub(crate) use load::{Loaded, load};
pub use resident::Counted;
pub(crate) use resident::Resident;

/// The input tree of an action: a graph, in which equal directories are one.
#[derive(Debug)]
pub struct Inputs {
    /// The root directory.
    pub root: Digest,
    /// All directories, the root included. Names are checked.
    pub directories: Directories,
    /// The number of files and symlinks in the tree, and of its directories, as often as they are in it.
    pub entries: u64,
    /// The bytes of all files, as often as they are in the tree.
    pub bytes: u64,
}

impl Inputs {
    /// Returns the digests of all files, each once. They are not kept: the directories have them, which queued actions
    /// share.
    pub fn blobs(&self) -> Vec<Digest> {
        let function = self.root.function();
        let files = self.directories.iter().flat_map(|(_, all)| &all.files);
        // All of them are valid.
        let digests = files.map(|file| Digest::from_field(Some(function), file.digest.as_ref()));
        let different: HashSet<Digest> = digests.flatten().collect();
        different.into_iter().collect()
    }

    /// Returns [`Self::blobs`]. If there are many, no other task waits meanwhile.
    pub(crate) async fn all_blobs(self: &Arc<Self>) -> Vec<Digest> {
        if self.entries < MANY {
            return self.blobs();
        }
        let inputs = Arc::clone(self);
        let blobs = spawn_blocking(move || inputs.blobs()).await;
        // This fails only while the runtime ends.
        blobs.unwrap_or_else(|_| self.blobs())
    }
}

/// The entries of a tree that is read on a thread of its own.
const MANY: u64 = 10_000;
/// The most entries of a tree.
const MAX_ENTRIES: u64 = 1_000_000;
/// The most directories on a path, the root included.
const MAX_DEPTH: usize = 1000;
/// The most different directories of a tree.
const MAX_DIRECTORIES: usize = 200_000;
/// The most bytes of the different directories of a tree, encoded.
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
