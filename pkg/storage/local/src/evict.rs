//! Eviction: the store as the janitor sees it.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use async_trait::async_trait;

use super::{
    LocalStore,
    disk::{Disk, millis, now_ms},
};
use crate::index::{Entry, Key, SHARDS, Space};
use gorego_storage::{Candidate, Evictable, EvictionBackoff, EvictionTotal, Result, Usage};

#[async_trait]
impl Evictable for LocalStore {
    fn usage(&self) -> Usage {
        let disk = &self.disk;
        disk.room.usage(disk.files.free(), !disk.is_scanned())
    }

    fn visit(&self, see: &mut dyn FnMut(Candidate)) {
        let (now, terms) = (now_ms(), self.disk.terms);
        let disk = &self.disk;
        disk.janitor_saw_part.store(!disk.is_scanned(), Relaxed);
        disk.index.visit(|entry, seen, in_use| {
            see(Candidate {
                entry,
                last_use: seen.last_use(),
                bytes: seen.room(),
                leased: seen.is_leased(now, terms),
                in_use,
                partial: false,
            });
        });
        let idle = disk.room.idle(|idle| idle.candidates());
        idle.into_iter().for_each(see);
    }

    fn evict(&self, candidates: &[Candidate], break_leases: bool) -> EvictionTotal {
        let disk = &self.disk;
        let mut removed = EvictionTotal::default();
        for candidate in candidates {
            let evicted = match disk.room.idle(|idle| idle.path_of(candidate)) {
                Some(path) => disk.remove_idle(&path),
                None => disk.evict(candidate, break_leases),
            };
            if let Some(bytes) = add(&mut removed, evicted) {
                disk.room.add_evicted(bytes);
            }
        }
        removed
    }

    fn charge_leases(&self, upload: u64, bytes: u64) {
        self.disk.room.charge_leases(upload, bytes);
    }

    fn backoff(&self) -> &EvictionBackoff {
        &self.disk.room.backoff
    }

    fn remove_idle_uploads(&self, age: Duration) -> Result<EvictionTotal> {
        let before = now_ms().saturating_sub(millis(age));
        let old = self.disk.room.idle(|idle| idle.since(before));
        Ok(self.disk.remove_all_idle(old))
    }

    fn trim_idle_uploads(&self) -> Result<EvictionTotal> {
        let limit = self.disk.room.limit;
        let excess = self.disk.room.idle(|idle| idle.excess(limit));
        Ok(self.disk.remove_all_idle(excess))
    }

    fn room_made(&self, exhausted: bool) {
        // During the scan there may be more than the index shows.
        let disk = &self.disk;
        let saw_all = disk.is_scanned() && !disk.janitor_saw_part.load(Relaxed);
        if !exhausted || saw_all {
            disk.room.room_made(exhausted);
        }
    }

    async fn pressure(&self) {
        self.disk.room.pressure.notified().await;
    }
}

/// Adds an evicted file to `removed`, or logs the error; returns the room it took.
fn add(removed: &mut EvictionTotal, evicted: Result<Option<u64>>) -> Option<u64> {
    let bytes = evicted.unwrap_or_else(|error| {
        tracing::warn!(%error, "failed to evict a file");
        None
    })?;
    removed.count += 1;
    removed.bytes += bytes;
    Some(bytes)
}

impl Disk {
    /// Removes an idle file unless its upload is in progress; returns the room it took. Blocks.
    fn remove_idle(&self, path: &str) -> Result<Option<u64>> {
        let Some(_claim) = self.claims.claim_idle(path) else {
            return Ok(None);
        };
        let removed = self.remove_claimed(path)?;
        let total = &self.counters.idle_removed;
        total.fetch_add(u64::from(removed.is_some()), Relaxed);
        Ok(removed)
    }

    /// Removes an idle file that the caller has claimed; returns the room it took. Blocks.
    pub(super) fn remove_claimed(&self, path: &str) -> Result<Option<u64>> {
        let Some(room) = self.room.idle(|idle| idle.remove(path)) else {
            return Ok(None);
        };
        if let Err(error) = self.files.unlink(path) {
            if let Some(meta) = self.files.stat_file(path)? {
                self.room.add_idle(path, meta.size, meta.mtime_ms);
            }
            return Err(error);
        }
        Ok(Some(room))
    }

    fn remove_all_idle(&self, paths: Vec<Arc<str>>) -> EvictionTotal {
        let mut removed = EvictionTotal::default();
        for path in paths {
            add(&mut removed, self.remove_idle(&path));
        }
        removed
    }

    /// Removes the empty folders above a removed file, once the scan has counted them.
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

    /// Removes a candidate's entry and file unless it was used meanwhile. Blocks.
    fn evict(&self, candidate: &Candidate, break_leases: bool) -> Result<Option<u64>> {
        let Some(shown) = self.index.by_id(candidate.entry) else {
            return Ok(None);
        };
        let (now, terms) = (now_ms(), self.terms);
        let removed = self.remove_if(&shown.key(), |entry, is_pinned| {
            entry.last_use() == candidate.last_use
                && entry.room() == candidate.bytes
                && !is_pinned
                && (break_leases || !entry.is_leased(now, terms))
        });
        let removed = removed?;
        if let Some(entry) = &removed {
            self.record_evicted(entry);
            self.counters.set_eviction_age(entry, now);
            let broken = entry.is_leased(now, terms);
            let total = &self.counters.leases_broken;
            total.fetch_add(u64::from(broken), Relaxed);
        }
        Ok(removed.map(|entry| entry.room()))
    }

    fn record_evicted(&self, evicted: &Entry) {
        self.counters.add_evicted(evicted);
        if let Some(observer) = self.eviction_observer.get() {
            let Key { hash, space, .. } = evicted.key();
            observer.evicted(&hash, space != Space::Cas);
        }
    }

    /// Removes the results of the `count` instance names that have the fewest, of these the least recently
    /// used. Blocks.
    pub(super) fn evict_instances(&self, count: usize) {
        let uses = self.index.instances().into_iter();
        let mut uses: Vec<_> = uses.map(|(number, used)| (used, number)).collect();
        uses.sort_unstable();
        let evicted: HashSet<_> = uses.into_iter().take(count).map(|(_, n)| n).collect();
        let result = |entry: &mut Entry| {
            let key = entry.key();
            matches!(key.space, Space::Ac(number) if evicted.contains(&number)).then_some(key)
        };
        let mut removed = EvictionTotal::default();
        for key in (0..SHARDS).flat_map(|part| self.index.pick(part, result)) {
            let result = self.remove_if(&key, |_, _| true);
            if let Ok(Some(entry)) = &result {
                self.record_evicted(entry);
            }
            add(&mut removed, result.map(|entry| Some(entry?.room())));
        }
        tracing::warn!(
            instances = evicted.len(),
            results = removed.count,
            "all instance names are taken; removed the results of those with the fewest"
        );
    }

    /// Removes an entry and its file if it and its pin satisfy the condition. Blocks.
    pub(super) fn remove_if(
        &self,
        key: &Key,
        when: impl FnOnce(&Entry, bool) -> bool,
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
        self.drop_twin(key);
        Ok(Some(entry))
    }
}
