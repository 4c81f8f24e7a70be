//! The input tree of an action.

use std::{collections::HashMap, sync::Arc};

use gorego_storage::Digest;
use reapi::v2::Directory;

/// The input tree of an action: a graph, in which equal directories are one.
#[derive(Debug)]
pub struct Inputs {
    /// The root directory.
    pub root: Digest,
    /// All directories, the root included. Names are checked.
    pub directories: HashMap<Digest, Arc<Directory>>,
    /// The digests of all files, each once.
    pub blobs: Vec<Digest>,
    /// The number of files and symlinks in the tree, and of its directories, as often as they are in it.
    pub entries: u64,
    /// The bytes of all files, as often as they are in the tree.
    pub bytes: u64,
}
