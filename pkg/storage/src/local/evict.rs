//! The janitor's hands.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use async_trait::async_trait;

use super::{
    LocalStore,
    core::{Core, now_ms},
    files::Meta,
    layout::{QUARANTINE, UPLOADS},
};
use crate::{
    Candidate, Evictable, Removed, Result, Usage,
    index::{Entry, Key, Space, room_of},
};

#[async_trait]
impl Evictable for LocalStore {
    fn usage(&self) -> Usage {
        self.core.room.usage(self.core.files.free_bytes())
    }

    fn visit(&self, see: &mut dyn FnMut(Candidate)) {
        let (now, lease) = (now_ms(), self.core.lease_ms());
        let core = &self.core;
        core.janitor_saw_part.store(!core.is_scanned(), Relaxed);
        core.index.visit(|entry, seen| {
            see(Candidate {
                entry,
                last_use: seen.last_use(),
                bytes: seen.room(),
                leased: seen.is_leased(now, lease),
                in_use: seen.is_pinned(),
            });
        });
    }

    fn evict(&self, candidates: &[Candidate], break_leases: bool) -> Removed {
        let mut removed = Removed::default();
        for candidate in candidates {
            match self.core.evict(candidate, break_leases) {
                Ok(Some(bytes)) => {
                    removed.count += 1;
                    removed.bytes += bytes;
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "could not evict"),
            }
        }
        removed
    }

    fn remove_idle_uploads(&self, age: Duration, at_most: u64) -> Result<Removed> {
        let core = &self.core;
        let before = now_ms().saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let mut old = Vec::new();
        for folder in [UPLOADS, QUARANTINE] {
            for name in core.files.list(folder)? {
                let path = format!("{folder}/{name}");
                if let Some(meta) = core.files.stat(&path)?
                    && meta.mtime_ms <= before
                {
                    old.push((meta.mtime_ms, path));
                }
            }
        }
        old.sort_unstable();
        let mut removed = Removed::default();
        for (_, path) in old {
            if removed.bytes >= at_most {
                break;
            }
            // It may have been sent on, or published, since it was listed.
            let take = || core.take_idle_if(&path, |meta| meta.mtime_ms <= before);
            if let Some((aside, size)) = core.claims.if_idle(&path, take).transpose()?.flatten() {
                core.files.unlink(&aside)?;
                removed.count += 1;
                removed.bytes += room_of(size);
            }
        }
        Ok(removed)
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
    pub(super) fn lease_ms(&self) -> u64 {
        u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes a partial upload or a quarantined file away if it is there and as wanted; says where it
    /// now waits for removal, and how large it is. Nobody may be sending the upload. Blocks.
    pub(super) fn take_idle_if(
        &self,
        path: &str,
        wanted: impl FnOnce(&Meta) -> bool,
    ) -> Result<Option<(String, u64)>> {
        let Some(meta) = self.files.stat(path)?.filter(wanted) else {
            return Ok(None);
        };
        let aside = self.files.set_aside(path)?;
        self.room.remove_idle(meta.size);
        Ok(Some((aside, meta.size)))
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
        let (now, lease) = (now_ms(), self.lease_ms());
        let removed = self.remove_if(&shown.key(), |entry| {
            entry.last_use() == candidate.last_use
                && entry.room() == candidate.bytes
                && !entry.is_pinned()
                && (break_leases || !entry.is_leased(now, lease))
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
