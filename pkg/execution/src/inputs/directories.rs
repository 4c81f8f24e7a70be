//! The directories of an input tree.

use std::sync::Arc;

use gorego_storage::Digest;
use reapi::v2::Directory;

/// Directories by their digests. Many actions with many directories are queued: a hash table, or a copy of the digest for
/// each action, would take several times the memory.
#[derive(Debug, Default)]
pub struct Directories(Box<[Arc<(Digest, Directory)>]>);

impl FromIterator<Arc<(Digest, Directory)>> for Directories {
    fn from_iter<I: IntoIterator<Item = Arc<(Digest, Directory)>>>(directories: I) -> Self {
        let mut sorted: Box<[_]> = directories.into_iter().collect();
        sorted.sort_unstable_by_key(|directory| directory.0);
        Self(sorted)
    }
}

impl Directories {
    /// Returns the directory with this digest.
    pub fn get(&self, digest: &Digest) -> Option<&Directory> {
        let place = self.0.binary_search_by_key(digest, |directory| directory.0);
        Some(&self.0.get(place.ok()?)?.1)
    }

    /// The number of directories.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the directories and their digests.
    pub fn iter(&self) -> impl Iterator<Item = (&Digest, &Directory)> {
        let directories = self.0.iter();
        directories.map(|directory| (&directory.0, &directory.1))
    }
}
