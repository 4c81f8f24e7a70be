//! Hashing what lies on the disk, and what becomes of files that are not what they should be.

use std::{
    collections::HashSet,
    fs, io,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use rustix::io::Errno;

use super::{
    core::{Core, blocking, lock_of, now_ms},
    layout::{self, QUARANTINE},
};
use crate::index::{Entry, Key, Space};
use gorego_storage::{CHUNK_SIZE, Digest, DigestFunction, Error, Hasher, Result, read_at};

/// How many blobs in doubt one pass over the index collects.
const PASS: usize = 4096;

/// The digest of a file's content. Blocks.
fn hash_file(function: DigestFunction, file: &fs::File) -> io::Result<Digest> {
    hash_prefix(function, file, u64::MAX).map(Hasher::finish)
}

/// A hasher that has seen a file's first `len` bytes, or all of a shorter file. Blocks.
pub(super) fn hash_prefix(
    function: DigestFunction,
    file: &fs::File,
    len: u64,
) -> io::Result<Hasher> {
    let mut hasher = Hasher::new(function);
    loop {
        let left = usize::try_from(len - hasher.size()).unwrap_or(usize::MAX);
        let chunk = read_at(file, hasher.size(), left.min(CHUNK_SIZE))?;
        if chunk.is_empty() {
            return Ok(hasher);
        }
        hasher.update(&chunk);
    }
}

impl Core {
    /// Hashes a blob in doubt, unless somebody else does: then waits for the outcome. Says whether
    /// the blob is here and whole.
    pub(super) async fn settle(self: &Arc<Self>, digest: &Digest) -> Result<bool> {
        let key = Key::cas(digest);
        let _settling = match lock_of(&self.settling, &key) {
            Some(lock) => Some(lock.lock().await),
            None => None,
        };
        match self.index.peek(&key) {
            Some(seen) if seen.in_doubt => {
                let (core, digest) = (Arc::clone(self), *digest);
                blocking(move || core.verify(&digest)).await
            }
            seen => Ok(seen.is_some_and(|seen| seen.size == digest.size())),
        }
    }

    /// Hashes a blob's file. A wrong or unreadable one goes to quarantine, and is not here any
    /// more. Blocks.
    pub(super) fn verify(&self, digest: &Digest) -> Result<bool> {
        let path = layout::blob_path(digest);
        let opened = self.files.open_read(&path);
        let hashed = match &opened {
            Ok(None) => {
                self.forget(digest)?;
                return Ok(false);
            }
            Ok(Some(file)) => hash_file(digest.function(), file)
                .map_err(|error| Error::io("reading", self.files.path(&path), error)),
            Err(error) => Err(error.clone()),
        };
        let key = Key::cas(digest);
        match hashed {
            Ok(actual) if actual == *digest => {
                self.index.trust(&key);
                return Ok(true);
            }
            Err(error) if !error.is_unreadable() => return Err(error),
            _ => {}
        }
        let _changing = self.lock(&key);
        let is_same = match opened {
            Ok(Some(file)) => self.files.is_same(&file, &path)?,
            _ => self.files.open_read(&path).is_err(),
        };
        if !is_same {
            // An upload replaced the file meanwhile, or it was evicted.
            return Ok(self.index.peek(&key).is_some());
        }
        match hashed {
            Ok(actual) => tracing::warn!(%digest, %actual, "blob does not match its digest"),
            Err(error) => tracing::warn!(%digest, %error, "blob cannot be read"),
        }
        self.quarantine(&key, &path)?;
        Ok(false)
    }

    /// Moves a wrong file away and forgets it; one that cannot be moved is removed, and one that
    /// cannot be removed stays in doubt. The caller holds the key's lock. Blocks.
    pub(super) fn quarantine(&self, key: &Key, path: &str) -> Result<()> {
        let gone = self.put_away(path).or_else(|error| {
            tracing::warn!(%error, "could not be moved to quarantine; removed");
            self.files.unlink(path)
        });
        if let Err(error) = gone {
            self.index.doubt(key);
            return Err(error);
        }
        self.index.remove(key);
        self.prune(key, path);
        self.counters.corrupt.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Moves what is at a path to the quarantine, of whatever type it is. Blocks.
    fn put_away(&self, path: &str) -> Result<()> {
        let meta = self.files.stat(path)?;
        let name = path.replace('/', "-");
        let place = format!("{QUARANTINE}/{}-{name}", now_ms());
        // It is kept as long as a partial upload, from now on.
        let times = self.files.set_mtime_now(path);
        let moved = times.and_then(|()| self.files.publish(path, &place));
        if moved.is_ok() {
            // What is no regular file is for the operator to remove.
            if let Some(meta) = meta {
                self.room.add_idle(&place, meta.size, now_ms());
            }
            tracing::warn!(from = path, to = place, "moved to quarantine");
        }
        moved
    }

    /// Moves a finished file to its place. A folder that somebody has put there, or a file in the place
    /// of a folder above, goes to the quarantine. Blocks.
    pub(super) fn install(&self, from: &str, to: &str) -> Result<()> {
        match self.files.publish(from, to) {
            Err(error) if error.is_obstructed() => {}
            done => return done,
        }
        let above = to.match_indices('/').filter_map(|(end, _)| to.get(..end));
        for folder in above {
            if self.files.is_folder(folder) == Some(false) {
                self.put_away(folder)?;
            }
        }
        if self.files.is_folder(to) == Some(true) {
            self.put_away(to)?;
        }
        self.files.publish(from, to)
    }

    /// Opens the file of a partial upload, or makes it; anything else at its path goes to the
    /// quarantine. Blocks.
    pub(super) fn open_upload(&self, path: &str) -> Result<fs::File> {
        if let Some(file) = self.files.open_upload(path)? {
            return Ok(file);
        }
        self.put_away(path)?;
        let opened = self.files.open_upload(path)?;
        opened.ok_or_else(|| self.files.error("creating", path, Errno::EXIST))
    }

    /// Drops a blob whose file is gone or has another size from the index, and what is left of it
    /// from the disk. Blocks.
    pub(super) fn forget(&self, digest: &Digest) -> Result<()> {
        let (key, path) = (Key::cas(digest), layout::blob_path(digest));
        let _changing = self.lock(&key);
        let size = self.files.stat(&path)?.map(|meta| meta.size);
        if size.is_none() && self.files.is_there(&path)? {
            tracing::warn!(%digest, "something that is no regular file is in the place of a blob");
            return self.quarantine(&key, &path);
        }
        let Some(found) = self.locate(&key)? else {
            if self.index.remove(&key).is_some() {
                self.counters.lost.fetch_add(1, Relaxed);
                tracing::warn!(%digest, "blob's file is gone; somebody removed it");
                let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                if self.files.is_folder(folder).is_none() {
                    self.files.cleared.store(true, Relaxed);
                }
                self.prune(&key, &path);
            }
            return Ok(());
        };
        if found == path && size != Some(digest.size()) {
            self.counters.lost.fetch_add(1, Relaxed);
            tracing::warn!(%digest, ?size, "blob's file has another size; removed");
            self.index.remove(&key);
            self.files.unlink(&path)?;
            self.prune(&key, &path);
        }
        Ok(())
    }

    /// Hashes the file of an index entry, or checks an action result's checksum. Blocks.
    pub(super) fn check(&self, key: &Key, size: u64) -> Result<()> {
        let Some(path) = self.locate(key)? else {
            return self.drop_if_gone(key).map(drop);
        };
        if key.space != Space::Cas {
            return self.check_action(key, &path);
        }
        let name = path.rsplit_once('/').map_or(&*path, |(_, name)| name);
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        match Digest::parse(Some(key.function), name, size) {
            Ok(digest) => self.verify(&digest).map(drop),
            Err(_) => Ok(()),
        }
    }
}

/// Hashes every blob in doubt, one after the other, so that the next unclean stop finds few. Blocks
/// until done or cancelled.
pub(super) fn settle_doubts(core: &Core) {
    // They stay in doubt for their readers; asking again and again would not help.
    let mut failed = HashSet::new();
    while core.index.in_doubt() > 0 && !core.cancel.is_cancelled() {
        let mut keys = Vec::new();
        core.index.visit(|_, entry| {
            if entry.is_in_doubt() && keys.len() < PASS && !failed.contains(&entry.key()) {
                keys.push((entry.key(), entry.size()));
            }
        });
        if keys.is_empty() {
            return;
        }
        for (key, size) in keys {
            if core.cancel.is_cancelled() {
                return;
            }
            if let Err(error) = settle_one(core, &key, size) {
                tracing::warn!(%error, "could not check a blob after an unclean stop");
                failed.insert(key);
            }
        }
    }
}

fn settle_one(core: &Core, key: &Key, size: u64) -> Result<()> {
    core.check(key, size)?;
    let _changing = core.lock(key);
    // Its file is gone, or is no blob's.
    core.index.remove_if(key, Entry::is_in_doubt);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_that_the_disk_cannot_read_counts_as_damaged() {
        // Reading it is an I/O error, as on a broken disk.
        let path = "/proc/self/mem";
        let hashed = hash_file(DigestFunction::Sha256, &fs::File::open(path).unwrap());
        assert!(Error::io("reading", path, hashed.unwrap_err()).is_unreadable());
    }
}
