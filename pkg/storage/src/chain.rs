//! The gorego instances that stand in front of each other, and how a loop of them is noticed.

use std::{
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gorego_limits::LogLimit;
use tokio::time::Instant;

/// The most instances that are remembered and named, this one included, which bounds the header.
/// Direct callers come first, so that a large number of instances cannot hide a loop for long.
const MOST: usize = 16;
/// The time after which an instance that no longer calls is forgotten.
const REMEMBERED: Duration = Duration::from_mins(1);

/// An instance of gorego: its id, and the ids of the instances that lately called it, directly or
/// through others. Each request to a backing cache names them. An instance that finds its own id in
/// a request is in a loop.
#[derive(Debug)]
pub struct Chain {
    own: u64,
    /// The last caller first.
    ahead: Mutex<Vec<(u64, Instant)>>,
    logged: LogLimit,
}

/// A request that came back to an instance that it had passed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "loop: backing_cache.target leads back to this server; it has to name another one \
     (instances passed: {passed})"
)]
pub struct LoopError {
    /// The ids of the instances, the last one first.
    pub passed: String,
}

impl Default for Chain {
    /// A chain of one instance, with a random id.
    fn default() -> Self {
        Self {
            own: fastrand::u64(..),
            ahead: Mutex::default(),
            logged: LogLimit::default(),
        }
    }
}

impl PartialEq for Chain {
    fn eq(&self, other: &Self) -> bool {
        self.own == other.own
    }
}

impl Eq for Chain {}

impl Chain {
    /// The header of requests that names the instances which they passed.
    pub const HEADER: &str = "gorego-chain";

    /// Remembers the instances that a request passed, by its header. An error if this is one of them.
    pub fn enter(&self, header: &str) -> Result<(), LoopError> {
        let ids = header.split(',').take(MOST);
        let passed: Vec<u64> = ids
            .filter_map(|id| u64::from_str_radix(id.trim(), 16).ok())
            .collect();
        if passed.contains(&self.own) {
            let error = LoopError {
                passed: names(&passed),
            };
            if self.logged.is_due() {
                tracing::error!("requests are refused: {error}");
            }
            return Err(error);
        }
        let now = Instant::now();
        let mut ahead = self.ahead();
        ahead.retain(|(id, _)| !passed.contains(id));
        ahead.splice(..0, passed.into_iter().map(|id| (id, now)));
        ahead.truncate(MOST - 1);
        Ok(())
    }

    /// The value of the header for requests that leave this instance.
    pub fn header(&self) -> String {
        let mut ahead = self.ahead();
        ahead.retain(|(_, seen)| seen.elapsed() < REMEMBERED);
        let ahead = ahead.iter().map(|(id, _)| *id);
        names(&[self.own].into_iter().chain(ahead).collect::<Vec<_>>())
    }

    fn ahead(&self) -> MutexGuard<'_, Vec<(u64, Instant)>> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn names(ids: &[u64]) -> String {
    let mut text = String::with_capacity(17 * ids.len());
    for id in ids {
        if !text.is_empty() {
            text.push(',');
        }
        // Writing to a string does not fail.
        let _ = write!(text, "{id:016x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_that_comes_back_is_noticed_over_several_hops() {
        let [a, b, c] = [(); 3].map(|()| Chain::default());
        a.enter("").unwrap();
        b.enter(&a.header()).unwrap();
        c.enter(&b.header()).unwrap();
        let error = a.enter(&c.header()).unwrap_err();
        assert_eq!(error.passed, names(&[c.own, b.own, a.own]));
        a.enter(&a.header()).unwrap_err();

        // Once nobody calls any more, what was in front is forgotten.
        advance(REMEMBERED).await;
        a.enter(&c.header()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_header_is_bounded_and_begins_with_the_last_caller() {
        let chain = Chain::default();
        let callers: Vec<_> = (0..1000).map(|_| Chain::default()).collect();
        for caller in &callers {
            chain.enter(&caller.header()).unwrap();
        }
        chain.enter(&"ffff,".repeat(1000)).unwrap();
        chain.enter("no id, ,\u{e9}").unwrap();
        chain.enter(&callers[0].header()).unwrap();
        let header = chain.header();
        assert!(header.len() <= 17 * MOST, "{header}");
        assert!(header.starts_with(&names(&[chain.own, callers[0].own])));
    }
}
