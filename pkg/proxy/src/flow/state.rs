//! What of a blob is in memory, and where its readers are.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use gorego_storage::Result;
use gorego_storage_local::Growth;
use tokio::time::Instant;

/// A reader that does not go on for this long while memory is short is left behind, and so is one
/// that others have had to wait for as long in total.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Up to here it is no waiting: as long as anybody goes on within this time, there is work for all,
/// and those who come last may not be to blame.
const BRISK: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(super) struct State {
    /// What is in a file.
    pub(super) growth: Arc<Growth>,
    /// The newest part.
    pub(super) newest: VecDeque<Bytes>,
    /// Where it starts and ends in the blob.
    pub(super) start: u64,
    pub(super) end: u64,
    /// How much may be in memory, where nothing is written any more.
    pub(super) in_memory: Option<u64>,
    pub(super) outcome: Option<Result<()>>,
    pub(super) readers: HashMap<u64, Place>,
    pub(super) next_reader: u64,
    /// How many want the end, and how many of those read no more.
    pub(super) waiters: usize,
    pub(super) waiting: usize,
}

/// Where a reader is, and since when. What others had to wait for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) at: u64,
    since: Instant,
    owes: Duration,
    /// It is waited for.
    late: bool,
}

impl Place {
    pub(super) fn new(at: u64) -> Self {
        Self {
            at,
            since: Instant::now(),
            owes: Duration::ZERO,
            late: false,
        }
    }

    pub(super) fn go_on(&mut self, at: u64) {
        self.at = at;
        self.since = Instant::now();
    }

    /// When it will have been waited for too long, if there are `late` of them.
    fn patience(&self, late: u32, others_wait: bool) -> Instant {
        let standing = self.since + PATIENCE;
        if !others_wait {
            return standing;
        }
        let left = PATIENCE.saturating_sub(self.owes) * late;
        standing.min(Instant::now() + BRISK + left)
    }
}

impl State {
    /// Lets go of the chunks that lie wholly before `offset`.
    pub(super) fn drop_before(&mut self, offset: u64) {
        while let Some(first) = self.newest.front() {
            let next = self.start + first.len() as u64;
            if next > offset {
                break;
            }
            self.start = next;
            self.newest.pop_front();
        }
    }

    /// Lets go of what can be read from the file.
    pub(super) fn drop_written(&mut self) {
        self.drop_before(self.growth.len());
    }

    /// Whether anybody is left to get what arrives.
    pub(super) fn is_wanted(&self) -> bool {
        !self.readers.is_empty() || self.waiters > 0
    }

    pub(super) fn slowest(&self) -> u64 {
        let places = self.readers.values().map(|place| place.at);
        places.min().unwrap_or(u64::MAX)
    }

    /// Forgets the readers that were waited for too long: those for whom nobody went on for as long as
    /// `waited` share that, if anybody was at the end and could not.
    pub(super) fn leave_behind(&mut self, waited: Duration) {
        let late = self.late();
        let share = if late > 0 && self.others_wait() {
            waited.saturating_sub(BRISK) / late
        } else {
            Duration::ZERO
        };
        let now = Instant::now();
        self.readers.retain(|_, place| {
            if !place.late {
                return true;
            }
            place.owes += share;
            now - place.since < PATIENCE && place.owes < PATIENCE
        });
    }

    /// From now on those before `offset` are waited for; until when, at most.
    pub(super) fn wait_for(&mut self, offset: u64) -> Instant {
        for place in self.readers.values_mut() {
            place.late = place.at < offset;
        }
        let (late, others_wait) = (self.late(), self.others_wait());
        let places = self.readers.values().filter(|place| place.late);
        let first = places.map(|place| place.patience(late, others_wait)).min();
        first.unwrap_or_else(Instant::now)
    }

    fn late(&self) -> u32 {
        let late = self.readers.values().filter(|place| place.late).count();
        u32::try_from(late).unwrap_or(u32::MAX)
    }

    /// Whether anybody is at the end and could go on.
    fn others_wait(&self) -> bool {
        self.waiting > 0 || self.readers.values().any(|place| place.at == self.end)
    }

    /// The rest of the chunk that `at` is in.
    pub(super) fn piece(&self, at: u64) -> Option<Bytes> {
        let mut start = self.start;
        if at < start {
            return None;
        }
        for chunk in &self.newest {
            let next = start + chunk.len() as u64;
            if at < next {
                let from = usize::try_from(at - start).ok()?;
                return Some(chunk.slice(from..));
            }
            start = next;
        }
        None
    }
}
