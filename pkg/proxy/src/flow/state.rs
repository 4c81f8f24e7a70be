//! What of a blob is in memory, and where its readers are.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use gorego_storage::Result;
use tokio::time::Instant;

/// A reader that does not go on for this long while memory is short is left behind.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct State {
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
    /// How many wait for the end without reading.
    pub(super) waiters: usize,
}

/// Where a reader is, and since when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) at: u64,
    pub(super) since: Instant,
}

impl Place {
    pub(super) fn new(at: u64) -> Self {
        let since = Instant::now();
        Self { at, since }
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

    /// Whether anybody is left to get what arrives.
    pub(super) fn is_wanted(&self) -> bool {
        !self.readers.is_empty() || self.waiters > 0
    }

    pub(super) fn slowest(&self) -> u64 {
        let places = self.readers.values().map(|place| place.at);
        places.min().unwrap_or(u64::MAX)
    }

    /// Forgets the readers that have stood still before `offset` for too long.
    pub(super) fn leave_behind(&mut self, offset: u64) {
        let now = Instant::now();
        self.readers
            .retain(|_, place| place.at >= offset || now - place.since < PATIENCE);
    }

    /// When the first of those that stand before `offset` will have stood there for too long.
    pub(super) fn patience(&self, offset: u64) -> Instant {
        let before = self.readers.values().filter(|place| place.at < offset);
        let first = before.map(|place| place.since).min();
        first.unwrap_or_else(Instant::now) + PATIENCE
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
