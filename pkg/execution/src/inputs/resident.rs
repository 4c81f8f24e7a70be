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

use crate::{Failure, Job};

/// The jobs, and their directories, which jobs share. New ones are refused once the memory is used up.
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
    directories: HashMap<Digest, (Weak<Directory>, u64)>,
    jobs: Vec<(Weak<Job>, u64)>,
    /// The bytes of trees that are being loaded.
    loading: u64,
    /// The bytes of all entries, some of which may have ended.
    bytes: u64,
    /// The number of entries from which on the ended ones are removed.
    purge_at: usize,
}

/// The fewest entries that are searched for ended ones.
const PURGED: usize = 1024;

impl Resident {
    /// Creates an empty set within `most` bytes.
    pub(crate) fn within(most: u64) -> Self {
        Self {
            most,
            entries: Mutex::default(),
            encoded: Budget::memory("memory for the directories of inputs", ENCODED),
            decoding: Semaphore::new(MAX_DECODING),
        }
    }

    /// Returns a directory that some action has.
    pub(crate) fn directory(&self, digest: &Digest) -> Option<Arc<Directory>> {
        let entries = self.entries.lock();
        let (directory, _) = entries.directories.get(digest)?;
        directory.upgrade()
    }

    /// Adds a directory of this many bytes. Returns the one that another action added meanwhile, if any.
    pub(crate) fn add_directory(
        &self,
        digest: Digest,
        directory: Arc<Directory>,
        bytes: u64,
    ) -> Result<Arc<Directory>, Failure> {
        let mut entries = self.entries.lock();
        let before = entries.directories.get(&digest);
        if let Some(before) = before.and_then(|(directory, _)| directory.upgrade()) {
            return Ok(before);
        }
        self.make_room(&mut entries, bytes)?;
        let entry = (Arc::downgrade(&directory), bytes);
        if let Some((_, before)) = entries.directories.insert(digest, entry) {
            entries.bytes = entries.bytes.saturating_sub(before);
        }
        Ok(directory)
    }

    /// Begins to count the memory of a tree that is being loaded, beside its directories.
    pub(crate) const fn loading(&self) -> Loading<'_> {
        let resident = self;
        Loading { resident, bytes: 0 }
    }

    /// Adds a job with this many bytes beside its directories.
    pub(crate) fn add_job(&self, job: &Arc<Job>, bytes: u64) -> Result<(), Failure> {
        let mut entries = self.entries.lock();
        self.make_room(&mut entries, bytes)?;
        entries.jobs.push((Arc::downgrade(job), bytes));
        Ok(())
    }

    fn make_room(&self, entries: &mut Entries, bytes: u64) -> Result<(), Failure> {
        let count = entries.directories.len() + entries.jobs.len();
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

/// The memory of a tree that is being loaded, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Loading<'a> {
    resident: &'a Resident,
    bytes: u64,
}

impl Loading<'_> {
    /// Counts this many bytes more.
    pub(crate) fn add(&mut self, bytes: u64) -> Result<(), Failure> {
        let mut entries = self.resident.entries.lock();
        self.resident.make_room(&mut entries, bytes)?;
        entries.loading += bytes;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let mut entries = self.resident.entries.lock();
        entries.loading = entries.loading.saturating_sub(self.bytes);
        entries.bytes = entries.bytes.saturating_sub(self.bytes);
    }
}

impl Entries {
    fn purge(&mut self) {
        self.directories
            .retain(|_, (directory, _)| directory.strong_count() > 0);
        self.jobs.retain(|(job, _)| job.strong_count() > 0);
        let directories = self.directories.values().map(|(_, bytes)| bytes);
        let jobs = self.jobs.iter().map(|(_, bytes)| bytes);
        self.bytes = directories.chain(jobs).sum::<u64>() + self.loading;
        self.purge_at = PURGED.max(2 * (self.directories.len() + self.jobs.len()));
    }
}

#[cfg(test)]
mod tests {
    use gorego_storage::DigestFunction;

    use super::*;

    fn add(resident: &Resident, number: u32, bytes: u64) -> Result<Arc<Directory>, Failure> {
        let digest = DigestFunction::Sha256.digest(&number.to_le_bytes());
        resident.add_directory(digest, Arc::default(), bytes)
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
    fn trees_that_are_being_loaded_count_until_they_are_dropped() {
        let resident = Resident::within(100);
        let mut loading = resident.loading();
        loading.add(50).unwrap();
        loading.add(10).unwrap();
        assert!(loading.add(41).is_err());
        assert!(add(&resident, 1, 41).is_err());
        drop(loading);
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
