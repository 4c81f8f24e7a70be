//! The retries of one operation, however many calls it takes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use gorego_storage::span::TARGET;
use tokio::time;
use tracing::info;

/// The delay before the first retry; it doubles each time.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(10);

/// Decides how often an operation is retried, and when.
#[derive(Debug)]
pub(super) struct Retry {
    limit: u32,
    retries: u32,
    /// Set if the operation was retried. It then waits for an open breaker, so that its progress is not
    /// lost; a new operation fails at once.
    pub(super) has_begun: bool,
    /// The total of all operations.
    total: Arc<AtomicU64>,
}

impl Retry {
    /// Counts the retries in `total`, too.
    pub(super) const fn new(limit: u32, total: Arc<AtomicU64>) -> Self {
        Self {
            limit,
            retries: 0,
            has_begun: false,
            total,
        }
    }

    /// Resets the count after progress.
    pub(super) const fn progressed(&mut self) {
        self.retries = 0;
    }

    /// Waits before the next retry; `false` if there is none, or if it would begin after `time_left`.
    pub(super) async fn pause(&mut self, time_left: Duration) -> bool {
        match self.next_delay() {
            Some(delay) if delay < time_left => {
                info!(target: TARGET, ?delay, "retry");
                time::sleep(delay).await;
            }
            _ => return false,
        }
        self.has_begun = true;
        self.total.fetch_add(1, Relaxed);
        true
    }

    fn next_delay(&mut self) -> Option<Duration> {
        if self.retries >= self.limit {
            return None;
        }
        let factor = 1_u32.checked_shl(self.retries).unwrap_or(u32::MAX);
        let delay = FIRST_DELAY.saturating_mul(factor).min(MAX_DELAY);
        self.retries += 1;
        // Calls that failed together should not return together.
        Some(delay.mul_f64(0.5 + fastrand::f64() / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_their_bound_with_jitter() {
        let mut retry = Retry::new(40, Arc::default());
        for tried in 0..40 {
            let full = (FIRST_DELAY * (1 << tried.min(10))).min(MAX_DELAY);
            let delay = retry.next_delay().unwrap();
            assert!((full / 2..=full).contains(&delay), "{delay:?} of {full:?}");
        }
        assert_eq!(retry.next_delay(), None);
        retry.progressed();
        assert!(retry.next_delay().unwrap() <= FIRST_DELAY);
    }
}
