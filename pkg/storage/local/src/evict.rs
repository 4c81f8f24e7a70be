//! The janitor's hands.

use std::{
    io::ErrorKind,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use async_trait::async_trait;

use super::{
    LocalStore,
    core::{Core, millis, now_ms},
};
use crate::index::{Entry, Key, Space};
use gorego_storage::{Candidate, Error, Evictable, Futile, Removed, Result, Usage};

#[async_trait]
impl Evictable for LocalStore {
    fn usage(&self) -> Usage {
        let core = &self.core;
        core.room.usage(core.files.free(), !core.is_scanned())
    }

    fn visit(&self, see: &mut dyn FnMut(Candidate)) {
        let (now, terms) = (now_ms(), self.core.terms);
        let core = &self.core;
        core.janitor_saw_part.store(!core.is_scanned(), Relaxed);
        core.index.visit(|entry, seen| {
            see(Candidate {
                entry,
                last_use: seen.last_use(),
                bytes: seen.room(),
                leased: seen.is_leased(now, terms),
                in_use: seen.is_pinned(),
                partial: false,
            });
        });
        core.room.idle.visit(see);
    }

    fn evict(&self, candidates: &[Candidate], break_leases: bool) -> Removed {
        let mut removed = Removed::default();
        for candidate in candidates {
            let core = &self.core;
            let evicted = match core.room.idle.path_of(candidate.entry) {
                Some(path) => core.remove_idle(&path),
                None => core.evict(candidate, break_leases),
            };
            match evicted {
                Ok(Some(bytes)) => {
                    core.room.add_evicted(bytes);
                    removed.count += 1;
                    removed.bytes += bytes;
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "could not evict"),
            }
        }
        removed
    }

    fn charge_leases(&self, upload: u64, bytes: u64) {
        self.core.room.charge_leases(upload, bytes);
    }

    fn futile(&self) -> &Futile {
        &self.core.room.futile
    }

    fn remove_idle_uploads(&self, age: Duration) -> Result<Removed> {
        let (core, before) = (&self.core, now_ms().saturating_sub(millis(age)));
        Ok(core.remove_all_idle(core.room.idle.since(before)))
    }

    fn trim_idle_uploads(&self) -> Result<Removed> {
        let room = &self.core.room;
        Ok(self.core.remove_all_idle(room.idle.excess(room.limit())))
    }

    fn room_made(&self, exhausted: bool) {
        // While the scan went on there may have been more than the index showed.
        let core = &self.core;
        let saw_all = core.is_scanned() && !core.janitor_saw_part.load(Relaxed);
        if !exhausted || saw_all {
            core.room.made(exhausted);
        }
    }

    async fn pressure(&self) {
        self.core.room.pressure().await;
    }
}

impl Core {
    /// Takes an idle file away; returns where it now waits for removal, and the room it takes. Nobody
    /// may be sending the upload. Blocks.
    pub(super) fn take_idle(&self, path: &str) -> Result<Option<(String, u64)>> {
        let Some(room) = self.room.idle.remove(path) else {
            return Ok(None);
        };
        let aside = self.files.set_aside(path);
        if let (Err(_), Some(meta)) = (&aside, self.files.stat(path)?) {
            self.room.add_idle(path, meta.size, meta.mtime_ms);
        }
        match aside {
            // Somebody else removed it.
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Ok(Some((path.to_owned(), room)))
            }
            aside => Ok(Some((aside?, room))),
        }
    }

    /// Removes an idle file unless somebody is sending it; returns the room it took. Blocks.
    fn remove_idle(&self, path: &str) -> Result<Option<u64>> {
        let taken = self.claims.if_idle(path, || self.take_idle(path));
        let Some((aside, room)) = taken.transpose()?.flatten() else {
            return Ok(None);
        };
        self.files.unlink(&aside)?;
        Ok(Some(room))
    }

    /// Removes these, but for those that cannot be removed, which the next pass tries again.
    fn remove_all_idle(&self, paths: Vec<Arc<str>>) -> Removed {
        let mut removed = Removed::default();
        for path in paths {
            match self.remove_idle(&path) {
                Ok(Some(room)) => {
                    removed.count += 1;
                    removed.bytes += room;
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "failed to remove an idle file"),
            }
        }
        removed
    }

    /// Removes the folders above a file that is gone, as far as they are empty. Not before the scan
    /// has counted them.
    pub(super) fn prune(&self, key: &Key, path: &str) {
        let levels = match key.space {
            Space::Cas => 2,
            Space::Ac(_) => 3,
        };
        if self.is_scanned() {
            let above = path.rmatch_indices('/').take(levels);
            let mut folders = above.filter_map(|(end, _)| path.get(..end));
            let _in_use = folders.find(|folder| !self.files.remove_empty(folder));
        }
    }

    /// Removes an entry and its file unless it was used since it was shown. Blocks.
    fn evict(&self, candidate: &Candidate, break_leases: bool) -> Result<Option<u64>> {
        let Some(shown) = self.index.by_id(candidate.entry) else {
            return Ok(None);
        };
        let (now, terms) = (now_ms(), self.terms);
        let removed = self.remove_if(&shown.key(), |entry| {
            entry.last_use() == candidate.last_use
                && entry.room() == candidate.bytes
                && !entry.is_pinned()
                && (break_leases || !entry.is_leased(now, terms))
        });
        Ok(removed?.map(|entry| entry.room()))
    }

    /// Removes an entry and its file if it satisfies the condition. Blocks.
    pub(super) fn remove_if(
        &self,
        key: &Key,
        when: impl FnOnce(&Entry) -> bool,
    ) -> Result<Option<Entry>> {
        let _changing = self.lock(key);
        let path = self.locate(key)?;
        let Some(entry) = self.index.remove_if(key, when) else {
            return Ok(None);
        };
        if let Some(path) = path {
            if let Err(error) = self.files.unlink(&path) {
                self.index.restore(entry);
                return Err(error);
            }
            self.prune(key, &path);
        }
        Ok(Some(entry))
    }
}
