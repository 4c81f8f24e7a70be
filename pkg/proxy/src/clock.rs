//! A clock of the time in which the backing cache accepts writes.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The longest time between two accepted writes in which the backing cache counts as accepting.
const GAP: Duration = Duration::from_mins(5);

/// A clock that runs while the backing cache accepts writes.
#[derive(Debug, Default)]
pub(crate) struct AcceptClock(Mutex<ClockState>);

#[derive(Debug, Default)]
struct ClockState {
    /// The total time in which the backing cache accepted writes.
    total: Duration,
    /// The time of the last accepted write. An interruption clears it.
    last: Option<Instant>,
}

impl AcceptClock {
    /// Records that the backing cache accepted a write.
    pub(crate) fn accepted(&self) {
        let ClockState { total, last } = &mut *self.0.lock();
        let gap = last.replace(Instant::now()).map(|last| last.elapsed());
        *total += gap.filter(|gap| *gap <= GAP).unwrap_or_default();
    }

    /// Records that the backing cache is down, or accepts nothing from this proxy.
    pub(crate) fn interrupted(&self) {
        self.0.lock().last = None;
    }

    /// Returns the time in which the backing cache accepted writes, up to the last one.
    pub(crate) fn total(&self) -> Duration {
        self.0.lock().total
    }
}
