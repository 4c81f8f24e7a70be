//! Log lines that come no more often than once a minute.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

const PACE: Duration = Duration::from_mins(1);

/// The pace of one kind of log line.
#[derive(Debug, Default)]
pub(super) struct Paced(Mutex<Option<Instant>>);

impl Paced {
    /// Whether another line may be logged now.
    pub(super) fn may_log(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|at| at.elapsed() >= PACE);
        if may {
            *last = Some(Instant::now());
        }
        may
    }
}
