//! Log lines of refused peers, limited to one a minute for each source.

use std::{collections::HashMap, fmt::Display, net::IpAddr, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{debug, warn};

const PAUSE: Duration = Duration::from_mins(1);
/// The most sources with a line each in a minute.
const MAX_SOURCES: usize = 256;

/// The sources that were logged in the last minute.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<HashMap<IpAddr, Instant>>);

impl Refusals {
    /// Warns of a refusal, unless one of this source was logged within a minute.
    pub(crate) fn report(&self, source: IpAddr, why: impl Display) {
        if self.is_due(source) {
            warn!("node at {source} refused: {why}; more are not logged for a minute");
        } else {
            debug!("node at {source} refused: {why}");
        }
    }

    fn is_due(&self, source: IpAddr) -> bool {
        let mut logged = self.0.lock();
        logged.retain(|_, at| at.elapsed() < PAUSE);
        let due = logged.len() < MAX_SOURCES && !logged.contains_key(&source);
        if due {
            logged.insert(source, Instant::now());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_source_is_logged_once_a_minute_and_many_are_bounded() {
        let refusals = Refusals::default();
        let source = |n: u32| IpAddr::from(n.to_be_bytes());
        assert!(refusals.is_due(source(1)));
        assert!(!refusals.is_due(source(1)));
        assert!(refusals.is_due(source(2)));
        let due = (0..10_000).filter(|n| refusals.is_due(source(*n))).count();
        assert_eq!(due, MAX_SOURCES - 2);
        tokio::time::advance(PAUSE).await;
        assert!(refusals.is_due(source(1)));
    }
}
