//! The memory of the inputs of all actions that are checked, queued or running.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use gorego_limits::Budget;
use gorego_storage::Digest;
use parking_lot::Mutex;
use reapi::v2::Directory;
use tokio::sync::Semaphore;

use crate::Failure;

/// The directories of jobs, which jobs share, and the memory of the jobs. New ones are refused once the memory is used
/// up.
#[derive(Debug)]
pub(crate) struct Resident {
    most: u64,
    entries: Mutex<Entries>,
    /// The memory of encoded directories that were read and are not decoded yet.
    pub(crate) encoded: Budget,
    /// The large batches of directories that are decoded at once: their memory counts only afterwards.
    pub(crate) decoding: Semaphore,
}

/// The memory of the encoded directories of all calls, in bytes: four times that of the largest tree.
const ENCODED: u64 = 256 << 20;
/// The most large batches that are decoded at once.
const MAX_DECODING: usize = 4;

#[derive(Debug, Default)]
struct Entries {
    directories: HashMap<Digest, (Weak<(Digest, Directory)>, u64)>,
    /// The bytes of jobs, and of trees that are being loaded.
    counted: u64,
    /// These bytes, and those of all directories, some of which no job has any longer.
    bytes: u64,
    /// The number of directories from which on those are removed.
    purge_at: usize,
}

/// The fewest directories that are searched for those that no job has.
const PURGED: usize = 1024;

impl Resident {
    /// Creates an empty set within `most` bytes.
    pub(crate) fn within(most: u64) -> Arc<Self> {
        Arc::new(Self {
            most,
            entries: Mutex::default(),
            encoded: Budget::memory("memory for the directories of inputs", ENCODED),
            decoding: Semaphore::new(MAX_DECODING),
        })
    }

    /// Returns a directory that some action has.
    pub(crate) fn directory(&self, digest: &Digest) -> Option<Arc<(Digest, Directory)>> {
        let entries = self.entries.lock();
        let (directory, _) = entries.directories.get(digest)?;
        directory.upgrade()
    }

    /// Adds a directory of this many bytes. Returns the one that another action added meanwhile, if any.
    pub(crate) fn add_directory(
        &self,
        directory: Arc<(Digest, Directory)>,
        bytes: u64,
    ) -> Result<Arc<(Digest, Directory)>, Failure> {
        let mut entries = self.entries.lock();
        let before = entries.directories.get(&directory.0);
        if let Some(before) = before.and_then(|(directory, _)| directory.upgrade()) {
            return Ok(before);
        }
        self.make_room(&mut entries, bytes)?;
        let entry = (Arc::downgrade(&directory), bytes);
        if let Some((_, before)) = entries.directories.insert(directory.0, entry) {
            entries.bytes = entries.bytes.saturating_sub(before);
        }
        Ok(directory)
    }

    /// Begins to count memory beside that of directories.
    pub(crate) fn count(self: &Arc<Self>) -> Counted {
        Counted {
            resident: Some(Arc::clone(self)),
            bytes: 0,
        }
    }

    fn make_room(&self, entries: &mut Entries, bytes: u64) -> Result<(), Failure> {
        let count = entries.directories.len();
        let fits = |entries: &Entries| entries.bytes.saturating_add(bytes) <= self.most;
        if count >= entries.purge_at || !fits(entries) {
            entries.purge();
        }
        if !fits(entries) {
            let why = format!(
                "the inputs of the queued and running actions use all of their {} MiB of memory",
                self.most >> 20
            );
            return Err(Failure::QueueFull(why));
        }
        entries.bytes += bytes;
        Ok(())
    }
}

/// Memory of a job, or of a tree that is being loaded. It is counted until this is dropped; the default counts none.
#[derive(Debug, Default)]
pub struct Counted {
    resident: Option<Arc<Resident>>,
    bytes: u64,
}

impl Counted {
    /// Counts this many bytes more.
    pub(crate) fn add(&mut self, bytes: u64) -> Result<(), Failure> {
        if let Some(resident) = &self.resident {
            let mut entries = resident.entries.lock();
            resident.make_room(&mut entries, bytes)?;
            entries.counted += bytes;
            self.bytes += bytes;
        }
        Ok(())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(resident) = &self.resident {
            let mut entries = resident.entries.lock();
            entries.counted = entries.counted.saturating_sub(self.bytes);
            entries.bytes = entries.bytes.saturating_sub(self.bytes);
        }
    }
}

impl Entries {
    fn purge(&mut self) {
        self.directories
            .retain(|_, (directory, _)| directory.strong_count() > 0);
        let directories = self.directories.values().map(|(_, bytes)| bytes);
        self.bytes = directories.sum::<u64>() + self.counted;
        self.purge_at = PURGED.max(2 * self.directories.len());
    }
}

#[cfg(test)]
mod tests {
    use gorego_storage::DigestFunction;

    use super::*;

    fn add(
        resident: &Resident,
        number: u32,
        bytes: u64,
    ) -> Result<Arc<(Digest, Directory)>, Failure> {
        let digest = DigestFunction::Sha256.digest(&number.to_le_bytes());
        resident.add_directory(Arc::new((digest, Directory::default())), bytes)
    }

    #[test]
    fn directories_of_live_actions_stay_within_the_memory() {
        let resident = Resident::within(100);
        let one = add(&resident, 1, 60).unwrap();
        assert!(matches!(add(&resident, 2, 60), Err(Failure::QueueFull(_))));
        let digest = DigestFunction::Sha256.digest(&1_u32.to_le_bytes());
        assert!(Arc::ptr_eq(&one, &resident.directory(&digest).unwrap()));
        let again = add(&resident, 1, 60).unwrap();
        assert!(Arc::ptr_eq(&one, &again));
        drop((one, again));
        assert!(resident.directory(&digest).is_none());
        let _two = add(&resident, 2, 60).unwrap();
        assert!(add(&resident, 3, 41).is_err());
    }

    #[test]
    fn jobs_and_trees_that_are_being_loaded_count_until_they_are_dropped() {
        let resident = Resident::within(100);
        let mut counted = resident.count();
        counted.add(50).unwrap();
        counted.add(10).unwrap();
        assert!(counted.add(41).is_err());
        assert!(add(&resident, 1, 41).is_err());
        drop(counted);
        let _one = add(&resident, 1, 100).unwrap();
    }

    #[test]
    fn ended_entries_are_removed() {
        let resident = Resident::within(u64::MAX);
        for number in 0..100_000 {
            drop(add(&resident, number, 1).unwrap());
        }
        assert!(resident.entries.lock().directories.len() <= 2 * PURGED);
    }
}
