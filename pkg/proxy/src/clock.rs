//! A clock of the time in which the backing cache accepts writes.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The longest time between two accepted writes in which the backing cache counts as accepting.
const GAP: Duration = Duration::from_mins(5);

/// The time from one accepted write to the next, in total, and the last accepted write since the last
/// interruption.
#[derive(Debug, Default)]
pub(crate) struct AcceptClock(Mutex<(Duration, Option<Instant>)>);

impl AcceptClock {
    fn state(&self) -> MutexGuard<'_, (Duration, Option<Instant>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the backing cache accepted a write.
    pub(crate) fn accepted(&self) {
        let (total, last) = &mut *self.state();
        let gap = last.replace(Instant::now()).map(|last| last.elapsed());
        *total += gap.filter(|gap| *gap <= GAP).unwrap_or_default();
    }

    /// Records that the backing cache is down, or accepts nothing from this proxy.
    pub(crate) fn interrupted(&self) {
        self.state().1 = None;
    }

    /// Returns the time in which the backing cache accepted writes, up to the last one.
    pub(crate) fn total(&self) -> Duration {
        self.state().0
    }
}
