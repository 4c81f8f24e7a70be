//! Log lines: the target of those for traces only, and a rate limit.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The target of all spans, and of their events that are not logged.
pub const TRACE: &str = "gorego::trace";

const PAUSE: Duration = Duration::from_mins(1);

/// Permits one log line a minute.
#[derive(Debug, Default)]
pub struct LogLimit(Mutex<Option<Instant>>);

impl LogLimit {
    /// Creates a limit under which the first line is due.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Returns true if a line is due; it then counts as written.
    pub fn is_due(&self) -> bool {
        let mut last = self.0.lock();
        let due = last.is_none_or(|last| last.elapsed() >= PAUSE);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_a_minute_is_due() {
        let limit = LogLimit::new();
        assert!(limit.is_due());
        assert!(!limit.is_due());
        tokio::time::advance(PAUSE).await;
        assert!(limit.is_due());
    }
}
