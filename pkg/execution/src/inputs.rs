//! The input tree of an action.

mod count;
mod directories;
mod load;
mod nodes;
mod resident;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use gorego_storage::Digest;

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
}

/// The most entries of a tree.
const MAX_ENTRIES: u64 = 1_000_000;
/// The most directories on a path, the root included.
const MAX_DEPTH: usize = 1000;
/// The most different directories of a tree.
const MAX_DIRECTORIES: usize = 200_000;
/// The most bytes of the different directories of a tree, encoded.
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
