//! The part of a blob that is in memory, and the places of its readers.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use gorego_storage::{Growth, Result};
use tokio::time::Instant;

/// The time for which a reader may hold up others while memory is short, or stall.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// The longest wait for a reader that is not charged: one that makes progress within this time may not be at fault.
const BRISK: Duration = Duration::from_millis(500);

/// The place of a caller that waits for the end without reading.
pub(super) const END: u64 = u64::MAX;

#[derive(Debug, Default)]
pub(super) struct FlowState {
    /// The file that the blob is written to.
    pub(super) growth: Arc<Growth>,
    /// The newest part of the blob.
    pub(super) newest: VecDeque<Bytes>,
    /// The start and the end of `newest` in the blob.
    pub(super) start: u64,
    pub(super) end: u64,
    /// The most bytes in `newest`, once the blob is no longer written.
    pub(super) in_memory: Option<u64>,
    pub(super) outcome: Option<Result<()>>,
    pub(super) readers: HashMap<u64, Place>,
    next_reader: u64,
}

#[derive(Debug)]
pub(super) struct Place {
    pub(super) at: u64,
    /// The remaining time for which others may wait for this reader.
    patience: Duration,
    /// The offset at which this reader holds up others, and since when.
    late: Option<(u64, Instant)>,
}

impl FlowState {
    /// Adds a reader; `None` if the blob is no longer available from there.
    pub(super) fn add_reader(&mut self, at: u64) -> Option<u64> {
        let is_gone = at < self.start && self.growth.len() < self.start;
        if is_gone || matches!(self.outcome, Some(Err(_))) {
            return None;
        }
        let number = self.next_reader;
        self.next_reader += 1;
        let place = Place {
            at,
            patience: PATIENCE,
            late: None,
        };
        self.readers.insert(number, place);
        Some(number)
    }

    pub(super) fn push(&mut self, chunk: Bytes) {
        self.end += chunk.len() as u64;
        self.newest.push_back(chunk);
        self.drop_written();
    }

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

    pub(super) fn drop_written(&mut self) {
        self.drop_before(self.growth.len());
    }

    /// Returns the rest of the chunk in memory that contains `at`.
    pub(super) fn piece(&self, at: u64) -> Option<Bytes> {
        let mut start = self.start;
        for chunk in &self.newest {
            let next = start + chunk.len() as u64;
            if (start..next).contains(&at) {
                return Some(chunk.slice(usize::try_from(at - start).ok()?..));
            }
            start = next;
        }
        None
    }

    /// Drops chunks down to the most that may be in memory, as far as readers have passed them. Returns the
    /// time until which to wait for the slowest readers; `None` if enough was dropped.
    pub(super) fn make_room(&mut self) -> Option<Instant> {
        let due = self.end.saturating_sub(self.in_memory?);
        let now = Instant::now();
        self.charge(now);
        self.drop_written();
        let slowest = self.readers.values().map(|place| place.at).min();
        let slowest = slowest.unwrap_or(END);
        self.drop_before(due.min(slowest));
        // A chunk across `due` stays, since its end was added last.
        if slowest >= due || self.start >= due {
            self.readers
                .values_mut()
                .for_each(|place| place.late = None);
            return None;
        }
        let late = self.readers.values_mut().filter(|place| place.at < due);
        let until = late.map(|place| {
            let (_, since) = *place.late.get_or_insert((place.at, now));
            since + BRISK + place.patience
        });
        until.min()
    }

    /// Charges readers for the time that others waited for them, and disconnects those whose patience is used up. A
    /// reader that proceeded regains its patience, unless readers wait at the end of the content.
    fn charge(&mut self, now: Instant) {
        let at_end = |place: &Place| place.late.is_none() && place.at >= self.end;
        let others_wait = self.readers.values().any(at_end);
        self.readers.retain(|_, place| {
            let Some((at, since)) = place.late else {
                return true;
            };
            let (waited, proceeded) = (now - since, place.at != at);
            let left = if proceeded && !others_wait {
                PATIENCE
            } else {
                place.patience.saturating_sub(waited.saturating_sub(BRISK))
            };
            if proceeded {
                (place.patience, place.late) = (left, None);
            }
            !left.is_zero()
        });
    }
}
