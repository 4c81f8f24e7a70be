//! Verification of files, and the quarantine of corrupt ones.

use std::{
    fs,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use rustix::io::Errno;

use super::{
    disk::{Disk, lock_of, now_ms},
    files::Meta,
    layout::{self, QUARANTINE},
};
use crate::index::{Key, SHARDS, Space, UNVERIFIED};
use gorego_storage::{Digest, Error, Hasher, Result, hash_file};

impl Disk {
    /// Hashes an unverified blob, or waits while another caller does. `false` if the blob is missing or
    /// corrupt.
    pub(super) async fn verify_once(self: &Arc<Self>, digest: &Digest) -> Result<bool> {
        let key = Key::cas(digest);
        let _verifying = match lock_of(&self.verifying, &key) {
            Some(lock) => Some(lock.lock().await),
            None => None,
        };
        match self.index.peek(&key) {
            Some(hit) if hit.unverified => {
                let digest = *digest;
                self.run(move |disk| disk.verify(&digest)).await
            }
            hit => Ok(hit.is_some_and(|hit| hit.size == digest.size())),
        }
    }

    /// Hashes a blob's file. Quarantines a corrupt or unreadable one, and returns `false` for it. Blocks.
    pub(super) fn verify(&self, digest: &Digest) -> Result<bool> {
        let (key, path) = (Key::cas(digest), layout::blob_path(digest));
        let (file, hashed) = match self.files.open_read(&path) {
            Ok(None) => {
                self.forget(&key, &path, Some(digest.size()))?;
                return Ok(false);
            }
            Ok(Some((file, _))) => {
                let hashed = hash_file(digest.function(), &file, u64::MAX);
                let failed = |error| Error::io("reading", self.files.path(&path), error);
                (Some(file), hashed.map(Hasher::finish).map_err(failed))
            }
            Err(error) => (None, Err(error)),
        };
        let why = match hashed {
            Ok(actual) if actual == *digest => {
                self.index.set_unverified(&key, false);
                return Ok(true);
            }
            Ok(actual) => format!("its content is {actual}"),
            Err(error) if error.is_unreadable() => error.to_string(),
            Err(error) => return Err(error),
        };
        if self.quarantine_opened(&key, &path, file.as_ref(), &why)? {
            return Ok(false);
        }
        Ok(self.index.peek(&key).is_some())
    }

    /// Quarantines a corrupt or unreadable file. Returns false if another file has replaced it since it was opened.
    /// `opened` is `None` if it could not be opened. Blocks.
    pub(super) fn quarantine_opened(
        &self,
        key: &Key,
        path: &str,
        opened: Option<&fs::File>,
        why: &str,
    ) -> Result<bool> {
        let _changing = self.lock(key);
        let is_same = match opened {
            Some(file) => self.files.is_same(file, path)?,
            None => self.files.open_read(path).is_err(),
        };
        if is_same {
            tracing::warn!(path, why, "corrupt or unreadable file");
            self.quarantine(key, path)?;
        }
        Ok(is_same)
    }

    /// Moves the file of an entry to quarantine and forgets the entry. A file that cannot be moved is
    /// removed; one that cannot be removed stays unverified. The caller holds the key's lock. Blocks.
    fn quarantine(&self, key: &Key, path: &str) -> Result<()> {
        let removed = self.move_to_quarantine(path).or_else(|error| {
            tracing::warn!(%error, "failed to quarantine a file; removing it");
            self.files.unlink(path)
        });
        if let Err(error) = removed {
            self.index.set_unverified(key, true);
            return Err(error);
        }
        self.index.remove(key);
        self.prune(key, path);
        self.drop_twin(key);
        self.counters.corrupt.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Moves a file or folder of any type to the quarantine. Blocks.
    fn move_to_quarantine(&self, path: &str) -> Result<()> {
        let meta = self.files.stat_file(path)?;
        let name = path.replace('/', "-");
        let place = format!("{QUARANTINE}/{}-{name}", now_ms());
        // It is kept as long as a partial upload, from now on.
        let times = self.files.set_mtime_now(path);
        let moved = times.and_then(|()| self.files.publish(path, &place));
        if moved.is_ok() {
            // Anything else than a regular file is for the operator to remove.
            if let Some(meta) = meta {
                self.room.add_idle(&place, meta.size, now_ms());
            }
            tracing::warn!(from = path, to = place, "moved to quarantine");
        }
        moved
    }

    /// Moves a finished file to its path. Quarantines a folder at that path, and files where its parent folders belong.
    /// Blocks.
    pub(super) fn install(&self, from: &str, to: &str) -> Result<()> {
        match self.files.publish(from, to) {
            Err(error) if error.is_obstructed() => {}
            done => return done,
        }
        let above = to.match_indices('/').filter_map(|(end, _)| to.get(..end));
        for folder in above {
            if self.files.is_folder(folder) == Some(false) {
                self.move_to_quarantine(folder)?;
            }
        }
        if self.files.is_folder(to) == Some(true) {
            self.move_to_quarantine(to)?;
        }
        self.files.publish(from, to)
    }

    /// Opens or creates the file of a partial upload. Quarantines anything else at its path. Blocks.
    pub(super) fn open_upload(&self, path: &str) -> Result<(fs::File, Meta)> {
        if let Some(opened) = self.files.open_upload(path)? {
            return Ok(opened);
        }
        self.move_to_quarantine(path)?;
        let opened = self.files.open_upload(path)?;
        opened.ok_or_else(|| self.files.error("creating", path, Errno::EXIST))
    }

    /// Drops an entry whose file is missing, has another size than `size`, or is no regular file. Removes or
    /// quarantines anything at its path. Blocks.
    pub(super) fn forget(&self, key: &Key, path: &str, size: Option<u64>) -> Result<()> {
        let _changing = self.lock(key);
        let found_file = self.files.stat(path)?;
        match found_file {
            Some(meta) if !meta.is_file() => {
                tracing::warn!(path, "not a regular file");
                return self.quarantine(key, path);
            }
            // A new file has replaced the missing one.
            Some(meta) if size.is_none_or(|size| size == meta.size) => return Ok(()),
            _ => {}
        }
        let was_indexed = self.index.remove(key).is_some();
        if let Some(meta) = found_file {
            tracing::warn!(path, size = meta.size, "file has another size; removed");
            self.files.unlink(path)?;
        } else if was_indexed {
            tracing::warn!(path, "file is missing; it was removed by another program");
            if self.files.is_folder(layout::folder_of(path)).is_none() {
                self.files.cleared.store(true, Relaxed);
            }
        }
        if was_indexed {
            self.counters.lost.fetch_add(1, Relaxed);
            self.prune(key, path);
            self.drop_twin(key);
        }
        Ok(())
    }

    /// Hashes the file of an index entry, or checks an action result's checksum. Blocks.
    pub(super) fn check(&self, key: &Key, size: u64) -> Result<()> {
        let Some(path) = self.locate(key)? else {
            return self.drop_if_missing(key).map(drop);
        };
        if key.space != Space::Cas {
            return self.load_result(Some(key), &path).map(drop);
        }
        let name = path.rsplit_once('/').map_or(&*path, |(_, name)| name);
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        match Digest::parse(Some(key.function), name, size) {
            Ok(digest) => self.verify(&digest).map(drop),
            Err(_) => Ok(()),
        }
    }
}

/// Hashes every unverified blob, one by one, so that the next unclean stop leaves few. Blocks until done or
/// cancelled.
pub(super) fn verify_all(disk: &Disk) {
    for part in 0..SHARDS {
        let unverified = disk.index.pick(part, |entry| {
            let unverified = entry.has(UNVERIFIED);
            unverified.then(|| (entry.key(), entry.size()))
        });
        for (key, size) in unverified {
            if disk.cancel.is_cancelled() {
                return;
            }
            // After an error it stays unverified for its readers.
            if let Err(error) = disk.check(&key, size) {
                tracing::warn!(%error, "failed to verify a blob after an unclean stop");
                continue;
            }
            // Still unverified: its file is missing, or is no blob's.
            let _changing = disk.lock(&key);
            disk.index.remove_if(&key, |entry, _| entry.has(UNVERIFIED));
        }
    }
}

#[cfg(test)]
mod tests {
    use gorego_storage::DigestFunction;

    use super::*;

    #[test]
    fn an_io_error_counts_as_an_unreadable_blob() {
        // Reading it is an I/O error, as on a broken disk.
        let path = "/proc/self/mem";
        let file = fs::File::open(path).unwrap();
        let Err(error) = hash_file(DigestFunction::Sha256, &file, u64::MAX) else {
            panic!("it was read");
        };
        assert!(Error::io("reading", path, error).is_unreadable());
    }
}
