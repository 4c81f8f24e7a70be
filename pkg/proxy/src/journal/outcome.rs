//! What became of what was brought up, and when it is given up.

use std::time::Duration;

use gorego_storage::Error;
use tokio::time::Instant;

/// For how long what is refused is offered again, and how often after other things were taken, at least.
const PATIENCE: Duration = Duration::from_hours(1);
const OFFERS: u32 = 10;

/// What became of an entry on its way.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is there, or need not be.
    Done,
    /// It never will be.
    Never(Error),
    /// The backing cache is down, or takes nothing from here.
    Again(Error),
    /// Refused for a reason that may pass, and may lie in the entry.
    Later(Error),
    /// Nobody tried, since the backing cache is down.
    Untried,
}

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        if error.is_general() {
            Self::Again(error)
        } else if error.may_pass() {
            Self::Later(error)
        } else {
            Self::Never(error)
        }
    }
}

/// Since when an entry has been refused, time and again.
pub(super) struct Refused {
    since: Instant,
    /// How much the backing cache had taken when it was last refused.
    taken: u64,
    /// How often something else was taken since it was last refused.
    alone: u32,
}

impl Refused {
    pub(super) fn first(taken: u64) -> Self {
        Self {
            since: Instant::now(),
            taken,
            alone: 0,
        }
    }

    /// It was refused once more. Says whether it is the entry that is at fault: other things are taken,
    /// today as an hour ago.
    pub(super) fn again(&mut self, taken: u64) -> bool {
        if taken == self.taken {
            return false;
        }
        self.taken = taken;
        self.alone = self.alone.saturating_add(1);
        self.alone >= OFFERS && self.since.elapsed() >= PATIENCE
    }
}
