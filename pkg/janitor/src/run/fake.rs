//! A store in memory for tests of the janitor.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use gorego_storage::{
    Candidate, EntryId, Error, Evictable, EvictionBackoff, EvictionTotal, Result, Usage,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A store of entries and uploads that records all calls.
#[derive(Debug, Default)]
pub(super) struct FakeStore {
    state: Mutex<State>,
    pub(super) pressed: Notify,
    /// Notified at every call that may change the state.
    pub(super) touched: Notify,
    /// Cancelled by the first eviction.
    pub(super) evicting: CancellationToken,
    backoff: EvictionBackoff,
    /// The number of visits to all entries.
    pub(super) visits: AtomicUsize,
}

#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent faults")]
pub(super) struct State {
    pub(super) limit: u64,
    pub(super) entries: BTreeMap<u64, Candidate>,
    /// The age and bytes of partial uploads, oldest first.
    pub(super) idle: Vec<(Duration, u64)>,
    /// The bytes that a waiting upload needs.
    pub(super) waiting: u64,
    pub(super) disk: Option<u64>,
    pub(super) free_files: Option<u64>,
    /// Whether files have other hard links, so that eviction frees nothing on the disk.
    pub(super) linked: bool,
    pub(super) scanning: bool,
    /// The amount evicted so far.
    pub(super) evicted: EvictionTotal,
    /// The number of the upload that waits.
    pub(super) upload: u64,
    /// Whether the first eviction ends that upload, while another one waits for as much.
    pub(super) upload_leaves: bool,
    /// Leased bytes evicted for the upload that waits.
    pub(super) leases_broken: u64,
    /// Entries that cannot be removed.
    pub(super) stubborn: HashSet<u64>,
    pub(super) uploads_fail: bool,
    /// Whether partial uploads end during the first eviction.
    pub(super) uploads_end: bool,
    /// All evictions and notifications, in order.
    pub(super) events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Evicted(u64),
    RoomMade,
    Exhausted,
}

impl FakeStore {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        let fake = Self::default();
        fake.state().limit = limit;
        Arc::new(fake)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an entry with its number as its last use.
    pub(super) fn add(&self, number: u64, bytes: u64) {
        self.add_with(number, bytes, |_| {});
    }

    pub(super) fn add_with(&self, number: u64, bytes: u64, change: impl Fn(&mut Candidate)) {
        let mut candidate = Candidate {
            entry: EntryId(number),
            last_use: number,
            bytes,
            leased: false,
            in_use: false,
            partial: false,
        };
        change(&mut candidate);
        self.state().entries.insert(number, candidate);
    }

    pub(super) fn evicted(&self) -> Vec<u64> {
        let numbers = self.state().events.clone().into_iter();
        numbers
            .filter_map(|event| match event {
                Event::Evicted(number) => Some(number),
                _ => None,
            })
            .collect()
    }

    /// Waits until `holds`, for at most an hour.
    pub(super) async fn until(&self, holds: impl Fn(&State) -> bool) {
        let wait = async {
            loop {
                let touched = self.touched.notified();
                if holds(&self.state()) {
                    return;
                }
                touched.await;
            }
        };
        tokio::time::timeout(Duration::from_hours(1), wait)
            .await
            .expect("the condition becomes true");
    }
}

impl State {
    pub(super) fn used(&self) -> u64 {
        let entries: u64 = self.entries.values().map(|entry| entry.bytes).sum();
        entries + self.idle.iter().map(|(_, bytes)| bytes).sum::<u64>()
    }

    fn usage(&self) -> Usage {
        let used = self.used();
        Usage {
            used,
            idle_uploads: self.idle.iter().map(|(_, bytes)| bytes).sum(),
            limit: self.limit,
            wanted: self.waiting.saturating_sub(self.limit.saturating_sub(used)),
            upload: self.upload,
            leases_broken: self.leases_broken,
            evicted: self.evicted,
            files: self.entries.len() as u64,
            free_on_disk: self.disk,
            free_files: self.free_files,
            scanning: self.scanning,
            ..Usage::default()
        }
    }

    fn evict(&mut self, shown: &Candidate, break_leases: bool) -> Option<u64> {
        let number = shown.entry.0;
        let now = self.entries.get(&number)?;
        let may_go = now == shown && !now.in_use && (break_leases || !now.leased);
        if !may_go || self.stubborn.contains(&number) {
            return None;
        }
        let bytes = self.entries.remove(&number)?.bytes;
        if !self.linked {
            self.disk = self.disk.map(|free| free + bytes);
            self.free_files = self.free_files.map(|free| free + 1);
        }
        self.evicted.count += 1;
        self.evicted.bytes += bytes;
        self.events.push(Event::Evicted(number));
        Some(bytes)
    }
}

#[async_trait]
impl Evictable for FakeStore {
    fn usage(&self) -> Usage {
        self.state().usage()
    }

    fn visit(&self, visitor: &mut dyn FnMut(Candidate)) {
        self.visits.fetch_add(1, Relaxed);
        // The youngest first, so that the right order can only come from the janitor.
        for candidate in self.state().entries.values().rev() {
            visitor(*candidate);
        }
    }

    fn evict(&self, candidates: &[Candidate], break_leases: bool) -> EvictionTotal {
        let mut removed = EvictionTotal::default();
        for candidate in candidates {
            if let Some(bytes) = self.state().evict(candidate, break_leases) {
                removed.count += 1;
                removed.bytes += bytes;
            }
        }
        let mut state = self.state();
        if !candidates.is_empty() && std::mem::take(&mut state.upload_leaves) {
            state.upload += 1;
        }
        if state.uploads_end {
            state.idle.clear();
        }
        self.evicting.cancel();
        self.touched.notify_waiters();
        removed
    }

    fn charge_leases(&self, upload: u64, bytes: u64) {
        let mut state = self.state();
        if upload == state.upload {
            state.leases_broken += bytes;
        }
    }

    fn backoff(&self) -> &EvictionBackoff {
        &self.backoff
    }

    fn trim_idle_uploads(&self) -> Result<EvictionTotal> {
        Ok(EvictionTotal::default())
    }

    fn remove_idle_uploads(&self, age: Duration) -> Result<EvictionTotal> {
        let mut state = self.state();
        if state.uploads_fail {
            return Err(Error::Unavailable("the folder cannot be read".to_owned()));
        }
        let mut removed = EvictionTotal::default();
        while let Some((_, bytes)) = state.idle.first().filter(|(old, _)| *old >= age).copied() {
            state.idle.remove(0);
            removed.count += 1;
            removed.bytes += bytes;
        }
        self.touched.notify_waiters();
        Ok(removed)
    }

    fn room_made(&self, exhausted: bool) {
        let mut state = self.state();
        state.events.push(if exhausted {
            Event::Exhausted
        } else {
            Event::RoomMade
        });
        if exhausted || state.usage().wanted == 0 {
            // The upload is refused or continues.
            state.waiting = 0;
        }
        self.touched.notify_waiters();
    }

    async fn pressure(&self) {
        self.pressed.notified().await;
    }
}
