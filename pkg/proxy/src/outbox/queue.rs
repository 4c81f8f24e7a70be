//! The pending writes in memory: their order, their room, and how long each was refused.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    time::{Duration, SystemTime},
};

use gorego_storage::{Digest, Error, InUse};
use tokio::time::Instant;

use super::{
    Depth,
    entry::{ResultEntry, WriteKey, file_name, fingerprint},
};

/// The room of an entry beside its content, in bytes: a block of the disk, and more than it takes in
/// memory.
const ENTRY: u64 = 4096;
/// The number of replaced results that an entry remembers. The backing cache may have one of the last.
const REPLACED: usize = 16;
/// The longest time between two accepted writes in which the backing cache counts as accepting.
const GAP: Duration = Duration::from_mins(5);

/// Pins a blob in the local store.
pub(super) type Pin = Box<dyn InUse>;

/// The outcome of an attempt to upload a pending write.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The backing cache has it, or needs it no more.
    Done,
    /// The backing cache will never accept it.
    Rejected(Error),
    /// The backing cache is down, or accepts nothing from this proxy. That says nothing of the write.
    Unreached(Error),
    /// Refused for a reason that may pass, and may lie in the write itself.
    Refused(Error),
}

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        if error.is_general() {
            Self::Unreached(error)
        } else if error.may_pass() {
            Self::Refused(error)
        } else {
            Self::Rejected(error)
        }
    }
}

/// A write that the backing cache still has to accept.
pub(super) struct PendingWrite {
    key: WriteKey,
    bytes: u64,
    /// Identifies a result.
    fingerprint: u64,
    /// The results that it replaced.
    replaced: Vec<u64>,
    /// The value of [`Acceptance::total`] when it was first refused.
    refused_at: Option<Duration>,
    /// Keeps a blob in the local store, unless that lost it.
    pin: Option<Pin>,
}

/// Returns the room that an entry of `len` bytes takes.
pub(super) const fn room(len: u64) -> u64 {
    len.saturating_add(ENTRY)
}

impl PendingWrite {
    pub(super) const fn blob(digest: Digest, pin: Option<Pin>) -> Self {
        Self {
            bytes: room(digest.size()),
            key: WriteKey::Blob(digest),
            fingerprint: 0,
            replaced: Vec::new(),
            refused_at: None,
            pin,
        }
    }

    /// A result whose file has `len` bytes.
    pub(super) fn result(entry: ResultEntry, action: &Digest, len: u64) -> Self {
        Self {
            key: WriteKey::Result(entry.instance, *action),
            bytes: room(len),
            fingerprint: fingerprint(&entry.result),
            replaced: entry.replaced,
            refused_at: None,
            pin: None,
        }
    }
}

/// Measures the time in which the backing cache accepts writes.
#[derive(Default)]
pub(super) struct Acceptance {
    total: Duration,
    last: Option<Instant>,
}

impl Acceptance {
    /// Records that the backing cache accepted a write.
    pub(super) fn accepted(&mut self) {
        let now = Instant::now();
        let gap = self.last.map(|last| now.saturating_duration_since(last));
        self.total += gap.filter(|gap| *gap <= GAP).unwrap_or_default();
        self.last = Some(now);
    }

    /// Records that the backing cache is down or accepts nothing.
    pub(super) const fn interrupted(&mut self) {
        self.last = None;
    }
}

/// The pending writes by number, at most one for each key.
#[derive(Default)]
pub(super) struct Queue {
    writes: BTreeMap<u64, PendingWrite>,
    numbers: HashMap<WriteKey, u64>,
    next: u64,
    bytes: u64,
    results: u64,
    /// The room of writes that are being accepted.
    pub(super) reserved: u64,
    pub(super) acceptance: Acceptance,
}

impl Queue {
    /// Continues after the highest number of an earlier run. An emptied outbox does not tell it: the
    /// time does, in microseconds, since no run accepts writes faster.
    pub(super) fn start_after(&mut self, last: Option<u64>) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_micros();
        let after = last.map_or(0, |last| last.saturating_add(1));
        self.next = after.max(u64::try_from(now).unwrap_or_default());
    }

    pub(super) const fn take_number(&mut self) -> u64 {
        let number = self.next;
        self.next = number.saturating_add(1);
        number
    }

    /// Returns the number after all pending writes.
    pub(super) const fn end(&self) -> u64 {
        self.next
    }

    pub(super) fn depth(&self) -> Depth {
        Depth {
            entries: self.writes.len() as u64,
            results: self.results,
            bytes: self.bytes,
        }
    }

    /// Returns all room in use once `writes` replace the pending ones of their keys.
    pub(super) fn with(&self, writes: &[(WriteKey, u64)]) -> (u64, u64) {
        let more = writes.iter().fold(0u64, |sum, (key, bytes)| {
            let pending = self.get(key).map_or(0, |write| write.bytes);
            sum.saturating_add(bytes.saturating_sub(pending))
        });
        let used = self.bytes.saturating_add(self.reserved);
        (more, used.saturating_add(more))
    }

    fn get(&self, key: &WriteKey) -> Option<&PendingWrite> {
        self.writes.get(self.numbers.get(key)?)
    }

    pub(super) fn has(&self, key: &WriteKey) -> bool {
        self.numbers.contains_key(key)
    }

    /// Whether a blob is pending and pinned.
    pub(super) fn has_pinned(&self, digest: &Digest) -> bool {
        let write = self.get(&WriteKey::Blob(*digest));
        write.is_some_and(|write| write.pin.is_some())
    }

    /// Returns the results that a new one replaces: the local one, and the pending one with those that
    /// it replaced.
    pub(super) fn replaced_by(&self, key: &WriteKey, local: Option<u64>) -> Vec<u64> {
        let pending = self.get(key);
        let earlier = pending.map_or(&[][..], |write| &write.replaced);
        let mut all: Vec<u64> = local.into_iter().collect();
        all.extend(pending.map(|write| write.fingerprint));
        all.extend(earlier);
        let mut distinct = Vec::new();
        for fingerprint in all {
            if !distinct.contains(&fingerprint) && distinct.len() < REPLACED {
                distinct.push(fingerprint);
            }
        }
        distinct
    }

    /// Adds a write in place of an older one of its key. Returns the file that is no longer needed.
    pub(super) fn insert(&mut self, number: u64, write: PendingWrite) -> Option<String> {
        let other = self.numbers.get(&write.key).copied();
        if other.is_some_and(|other| other > number) {
            return Some(file_name(number, &write.key));
        }
        let replaced = other.and_then(|other| self.remove(other));
        self.bytes = self.bytes.saturating_add(write.bytes);
        self.results += u64::from(matches!(write.key, WriteKey::Result(..)));
        self.numbers.insert(write.key.clone(), number);
        self.writes.insert(number, write);
        replaced
    }

    /// Removes a write, and returns its file.
    pub(super) fn remove(&mut self, number: u64) -> Option<String> {
        let write = self.writes.remove(&number)?;
        self.bytes = self.bytes.saturating_sub(write.bytes);
        self.results -= u64::from(matches!(write.key, WriteKey::Result(..)));
        self.numbers.remove(&write.key);
        Some(file_name(number, &write.key))
    }

    pub(super) fn remove_key(&mut self, key: &WriteKey) -> Option<String> {
        self.remove(*self.numbers.get(key)?)
    }

    /// Returns the first writes of `range`: at most `most`, or until they have `bytes` bytes.
    pub(super) fn first(&self, range: Range<u64>, most: usize, bytes: u64) -> Vec<(u64, WriteKey)> {
        let mut sum = 0u64;
        let writes = self
            .writes
            .range(range)
            .take(most)
            .take_while(|(_, write)| {
                let is_within = sum < bytes;
                sum = sum.saturating_add(write.bytes);
                is_within
            });
        let writes = writes.map(|(number, write)| (*number, write.key.clone()));
        writes.collect()
    }

    /// Records the outcome of an upload. A write that is refused is given up once the backing cache
    /// has accepted others for `retry`. Returns the file of a write that leaves the outbox.
    pub(super) fn settle(
        &mut self,
        number: u64,
        outcome: Outcome,
        retry: Duration,
    ) -> Option<String> {
        let total = self.acceptance.total;
        // A newer write of its key may have taken its place.
        let write = self.writes.get_mut(&number)?;
        let key = &write.key;
        match outcome {
            Outcome::Done => {}
            Outcome::Rejected(error) => tracing::error!(
                ?key,
                %error,
                "dropped a pending write that the backing cache will never accept"
            ),
            Outcome::Unreached(_) => {
                write.refused_at = None;
                return None;
            }
            Outcome::Refused(error) => {
                let since = *write.refused_at.get_or_insert(total);
                if total.saturating_sub(since) < retry {
                    return None;
                }
                tracing::error!(
                    ?key,
                    %error,
                    ?retry,
                    "dropped a pending write that the backing cache refused while it accepted others"
                );
            }
        }
        self.remove(number)
    }
}
