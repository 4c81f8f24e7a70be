//! Twins: copies of blobs that are not executable. Inputs that are not executable are links to them.
//!
//! A twin is made when it is first needed. It goes with its blob, with the process, and when newer ones need its place.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    os::fd::BorrowedFd,
    sync::atomic::Ordering::Relaxed,
};

use gorego_storage::{Digest, Hasher, Result, hash_file};
use parking_lot::Mutex;

use super::{disk::Disk, layout};
use crate::index::{Form, Key, Stamp};

/// The most old twins that are removed for a new one.
const REPLACED: usize = 8;

/// The twins of a store.
#[derive(Default)]
pub(super) struct Twins(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// The number and the size of each twin.
    twins: HashMap<Key, (u64, u64)>,
    /// The keys by number, the oldest first.
    by_age: BTreeMap<u64, Key>,
    next: u64,
}

impl Known {
    /// Adds a twin; returns the size of an earlier one.
    fn insert(&mut self, key: Key, size: u64) -> Option<u64> {
        let before = self.remove(&key);
        self.twins.insert(key, (self.next, size));
        self.by_age.insert(self.next, key);
        self.next += 1;
        before
    }

    /// Removes a twin; returns its size.
    fn remove(&mut self, key: &Key) -> Option<u64> {
        let (number, size) = self.twins.remove(key)?;
        self.by_age.remove(&number);
        Some(size)
    }

    /// Returns the oldest twin, which becomes the newest.
    fn oldest(&mut self) -> Option<Key> {
        let (_, key) = self.by_age.pop_first()?;
        let (number, _) = self.twins.get_mut(&key)?;
        *number = self.next;
        self.by_age.insert(self.next, key);
        self.next += 1;
        Some(key)
    }
}

impl Disk {
    /// Links the twin of a blob, which is made if there is none and `dir` may have links to it. `false`, and no file, if
    /// that is not possible, or if the twin may have been altered. Blocks.
    pub(super) fn link_twin(
        &self,
        digest: &Digest,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<bool> {
        let key = Key::cas(digest);
        // While it is recorded that the twin was linked, it is not replaced.
        let link = || -> Result<Option<bool>> {
            let _changing = self.lock(&key);
            if !self.twins.0.lock().twins.contains_key(&key) {
                return Ok(None);
            }
            self.link_file(digest, Form::Twin, dir, name)
        };
        if let Some(linked) = link()? {
            return Ok(linked);
        }
        if !self.files.may_have_links(dir) {
            return Ok(false);
        }
        self.make_twin(digest, &key)?;
        Ok(link()? == Some(true))
    }

    /// Makes the twin of a blob, unless there is no room for it, or it was made or lost its blob meanwhile. Blocks.
    fn make_twin(&self, digest: &Digest, key: &Key) -> Result<()> {
        let size = digest.size();
        if !self.make_room_for_twin(size) {
            return Ok(());
        }
        let made = self.write_twin(digest, key);
        if !matches!(made, Ok(true)) {
            self.room.remove_twin(size);
        }
        made.map(drop)
    }

    fn write_twin(&self, digest: &Digest, key: &Key) -> Result<bool> {
        let path = layout::twin_path(key);
        let write = |file: &_| self.copy_to(digest, file, OsStr::new(&path));
        let tmp = self.files.write_twin(write)?;
        let name = || {
            let _changing = self.lock(key);
            if self.index.peek(key).is_none() || !self.files.name_twin(&tmp, &path)? {
                return Ok(false);
            }
            // One that another program removed.
            if let Some(size) = self.twins.0.lock().insert(*key, digest.size()) {
                self.room.remove_twin(size);
            }
            Ok(true)
        };
        let named = name();
        if let Err(error) = self.files.unlink(&tmp) {
            tracing::warn!(%error, "failed to remove a second name of a copy; the next start does");
        }
        named
    }

    fn make_room_for_twin(&self, size: u64) -> bool {
        let mut tries = 0..REPLACED;
        while !self.room.add_twin(size) {
            let oldest = tries.next().and_then(|_| self.twins.0.lock().oldest());
            let Some(oldest) = oldest else {
                return false;
            };
            let _changing = self.lock(&oldest);
            // Running actions have links to others, which are still to be checked.
            if self.index.linked(&oldest).twin.is_none() {
                self.drop_twin(&oldest);
            }
        }
        true
    }

    /// Removes the twin of a blob, if it has one. A file that cannot be removed keeps its room, and is not linked again.
    /// The caller holds the key's lock. Blocks.
    pub(super) fn drop_twin(&self, key: &Key) {
        let known = self.twins.0.lock().remove(key);
        let Some(size) = known else { return };
        if let Err(error) = self.files.unlink(&layout::twin_path(key)) {
            tracing::warn!(%error, "failed to remove a copy of a blob; the next start does");
            return;
        }
        self.room.remove_twin(size);
    }

    /// Checks the twin of a blob that was linked; `false` if the linked file may have had other content. Removes a
    /// corrupt one, and restores the mode, owner and time of one with the right content. Blocks.
    pub(super) fn check_twin(&self, digest: &Digest, linked: Stamp) -> Result<bool> {
        let key = Key::cas(digest);
        let path = layout::twin_path(&key);
        if let Some(meta) = self.files.stat_file(&path)?
            && self.files.is_intact(&meta, Form::Twin, digest.size())
            && meta.stamp == linked
        {
            return Ok(true);
        }
        let _changing = self.lock(&key);
        if let Ok(Some((file, meta))) = self.files.open_read(&path) {
            if meta.stamp.inode != linked.inode {
                // Another one, since the linked one was removed.
                return Ok(false);
            }
            let hashed = hash_file(digest.function(), &file, u64::MAX).map(Hasher::finish);
            let is_right = hashed.is_ok_and(|actual| actual == *digest);
            let restore = || self.files.set_meta(&file, Form::Twin, Some(linked));
            if is_right && restore().is_ok() {
                return Ok(true);
            }
            tracing::warn!(path, "an action altered a copy of a blob; removed");
            // Trees that are prepared with it are not right any more.
            self.counters.corrupt.fetch_add(1, Relaxed);
        }
        self.drop_twin(&key);
        Ok(false)
    }
}
