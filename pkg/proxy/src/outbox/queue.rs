//! The pending writes in memory: their order, their room, and the time for which they have been refused.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    time::{Duration, SystemTime},
};

use gorego_storage::{Digest, Error, InUse, Result};
use prost::Message as _;
use tokio::time::Instant;

use super::entry::{CHECKSUM, ResultEntry, WriteKey, file_name, fingerprint};

/// The room of an entry in addition to its content, in bytes: a block of the disk, and more than the entry
/// takes in memory.
const ENTRY: u64 = 4096;
/// The number of replaced results that an entry lists. The backing cache may have one of the last.
const REPLACED: usize = 16;

/// The longest time between two accepted writes in which the backing cache counts as accepting.
const GAP: Duration = Duration::from_mins(5);

/// The amount of pending writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// The number of blobs and action results.
    pub entries: u64,
    /// The number of action results.
    pub results: u64,
    /// The bytes that they count against the limit.
    pub bytes: u64,
}

/// The reason why a pending write was not uploaded.
#[derive(Debug)]
pub(crate) struct ReplayError {
    pub(crate) error: Error,
    /// True if the backing cache will never accept the write.
    pub(crate) is_final: bool,
}

impl From<Error> for ReplayError {
    fn from(error: Error) -> Self {
        let is_final = !error.is_general() && !error.may_pass();
        Self { error, is_final }
    }
}

/// A write that the backing cache still has to accept.
pub(super) struct PendingWrite {
    key: WriteKey,
    pub(super) bytes: u64,
    /// The fingerprints of a result and of those that it replaced, the last one first.
    fingerprints: Vec<u64>,
    /// Protects a blob from eviction; none if the local tier has lost it.
    _pin: Option<Box<dyn InUse>>,
    /// The value of [`Queue::accepting`] at the first refusal.
    refused_at: Option<Duration>,
}

/// Returns the room of an entry for `len` bytes.
pub(super) const fn room(len: u64) -> u64 {
    len.saturating_add(ENTRY)
}

impl PendingWrite {
    pub(super) fn blob(digest: &Digest, pin: Option<Box<dyn InUse>>) -> Self {
        let key = WriteKey::Blob(*digest);
        Self::new(key, digest.size(), Vec::new(), pin)
    }

    pub(super) fn result(entry: ResultEntry, action: &Digest) -> Self {
        let len = (CHECKSUM + entry.encoded_len()) as u64;
        let fingerprints = [&[fingerprint(&entry.result)], &*entry.replaced].concat();
        let key = WriteKey::Result(entry.instance, *action);
        Self::new(key, len, fingerprints, None)
    }

    fn new(key: WriteKey, len: u64, fingerprints: Vec<u64>, pin: Option<Box<dyn InUse>>) -> Self {
        Self {
            key,
            bytes: room(len),
            fingerprints,
            _pin: pin,
            refused_at: None,
        }
    }
}

/// The pending writes by number, at most one for each key.
#[derive(Default)]
pub(crate) struct Queue {
    writes: BTreeMap<u64, PendingWrite>,
    numbers: HashMap<WriteKey, u64>,
    pub(crate) next: u64,
    pub(super) depth: Depth,
    /// The room of writes that are being accepted.
    pub(super) reserved: u64,
    /// The time in which the backing cache accepted writes, pending or not, up to the last one.
    accepting: Duration,
    /// The time of the last accepted write. An interruption clears it.
    last_accepted: Option<Instant>,
}

impl Queue {
    pub(crate) fn accepted(&mut self) {
        let last = self.last_accepted.replace(Instant::now());
        let gap = last.map(|last| last.elapsed());
        self.accepting += gap.filter(|gap| *gap <= GAP).unwrap_or_default();
    }

    /// Records that the backing cache is down, or accepts nothing from this proxy.
    pub(crate) const fn interrupted(&mut self) {
        self.last_accepted = None;
    }

    /// Continues after the highest number of earlier runs. If the outbox is empty, the time in microseconds
    /// exceeds it, since no run accepts writes faster.
    pub(super) fn start_after(&mut self, last: u64) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = u64::try_from(now.unwrap_or_default().as_micros());
        self.next = last.saturating_add(1).max(now.unwrap_or_default());
    }

    pub(super) const fn take_number(&mut self) -> u64 {
        let number = self.next;
        self.next = number.saturating_add(1);
        number
    }

    pub(super) fn get(&self, key: &WriteKey) -> Option<&PendingWrite> {
        self.writes.get(self.numbers.get(key)?)
    }

    /// Reserves room for writes that replace the pending ones of their keys. Returns the bytes of each.
    pub(super) fn reserve(&mut self, writes: &[(WriteKey, u64)], max: u64) -> Result<Vec<u64>> {
        let used = self.depth.bytes.saturating_add(self.reserved);
        let (mut more, mut rooms) = (0u64, Vec::with_capacity(writes.len()));
        for (key, bytes) in writes {
            let pending = self.get(key).map_or(0, |write| write.bytes);
            let room = bytes.saturating_sub(pending);
            rooms.push(room);
            more = more.saturating_add(room);
            if more > max.saturating_sub(used) {
                return Err(Error::Unavailable(format!(
                    "no room for {} in the outbox of at most {max} bytes \
                     (backing_cache.journal_max)",
                    key.digest()
                )));
            }
        }
        self.reserved += more;
        Ok(rooms)
    }

    /// Returns the results that a new one replaces: the local one, and the pending one with those that it
    /// replaced.
    pub(super) fn replaced_by(&self, key: &WriteKey, local: Option<u64>) -> Vec<u64> {
        let pending = self.get(key).map_or(&[][..], |write| &write.fingerprints);
        let mut replaced = Vec::new();
        for fingerprint in local.iter().chain(pending) {
            if !replaced.contains(fingerprint) && replaced.len() < REPLACED {
                replaced.push(*fingerprint);
            }
        }
        replaced
    }

    /// Adds a write in place of an older one of its key. Returns the older one's file.
    pub(super) fn insert(&mut self, number: u64, write: PendingWrite) -> Option<String> {
        let replaced = self.remove(&write.key);
        self.depth.entries += 1;
        self.depth.results += u64::from(matches!(write.key, WriteKey::Result(..)));
        self.depth.bytes = self.depth.bytes.saturating_add(write.bytes);
        self.numbers.insert(write.key.clone(), number);
        self.writes.insert(number, write);
        replaced
    }

    /// Removes a write, and returns its file.
    pub(super) fn remove(&mut self, key: &WriteKey) -> Option<String> {
        let number = self.numbers.remove(key)?;
        let write = self.writes.remove(&number)?;
        self.depth.entries -= 1;
        self.depth.results -= u64::from(matches!(write.key, WriteKey::Result(..)));
        self.depth.bytes = self.depth.bytes.saturating_sub(write.bytes);
        Some(file_name(number, key))
    }

    pub(crate) fn first(&self, range: Range<u64>, most: usize) -> Vec<(u64, WriteKey)> {
        let writes = self.writes.range(range).take(most);
        let writes = writes.map(|(number, write)| (*number, write.key.clone()));
        writes.collect()
    }

    /// Records the outcome of an upload. Returns the file of a write that leaves the outbox, or the reason why it
    /// stays. A refused write is dropped after `retry` in which the backing cache accepted others.
    pub(super) fn record_outcome(
        &mut self,
        number: u64,
        uploaded: Result<(), ReplayError>,
        retry: Duration,
    ) -> Result<Option<String>> {
        let Some(write) = self.writes.get_mut(&number) else {
            // A newer write has replaced it.
            return Ok(None);
        };
        let key = write.key.clone();
        if let Err(ReplayError { error, is_final }) = uploaded {
            if error.is_general() && !is_final {
                write.refused_at = None;
                return Err(error);
            }
            let since = *write.refused_at.get_or_insert(self.accepting);
            if !is_final && self.accepting.saturating_sub(since) < retry {
                return Err(error);
            }
            let why = if is_final {
                "rejected"
            } else {
                "refused for long"
            };
            let entry = file_name(number, &key);
            tracing::error!(entry, %error, "dropped a pending write that was {why}");
        }
        Ok(self.remove(&key))
    }
}
