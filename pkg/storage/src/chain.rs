//! The chain of gorego instances that a request has passed, to detect loops.

use std::time::Duration;

use gorego_limits::LogLimit;
use parking_lot::Mutex;
use tokio::time::Instant;

/// The most ids in the header, the own one included. The latest callers come first, so that many instances
/// cannot hide a loop for long.
const MAX_IDS: usize = 16;
/// The time after which a caller is dropped from the header.
const CALLER_TTL: Duration = Duration::from_mins(1);

/// The id of this instance, and the ids of its recent callers, direct and indirect. Each request to a backing
/// cache lists them. An instance that finds its own id in a request is in a loop.
#[derive(Debug)]
pub struct Chain {
    own: u64,
    /// The latest caller first.
    callers: Mutex<Vec<(u64, Instant)>>,
    logged: LogLimit,
}

/// A request that returned to an instance that it had passed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "loop: backing_cache.target leads back to this server; it has to name another one \
     (instances passed: {passed})"
)]
pub struct LoopError {
    /// The ids of the instances, the latest first.
    pub passed: String,
}

impl Default for Chain {
    /// Creates a chain of this instance alone, with a random id.
    fn default() -> Self {
        Self {
            own: fastrand::u64(..),
            callers: Mutex::default(),
            logged: LogLimit::default(),
        }
    }
}

impl Chain {
    /// The request header that lists the instances passed.
    pub const HEADER: &str = "gorego-chain";

    /// Records the instances in the header of a request. Fails if this instance is one of them.
    pub fn enter(&self, header: &str) -> Result<(), LoopError> {
        let ids = header.split(',').take(MAX_IDS);
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
        let mut callers = self.callers.lock();
        callers.retain(|(id, _)| !passed.contains(id));
        callers.splice(..0, passed.into_iter().map(|id| (id, now)));
        callers.truncate(MAX_IDS - 1);
        Ok(())
    }

    /// Returns the header's value for requests to the backing cache.
    pub fn header(&self) -> String {
        let mut callers = self.callers.lock();
        callers.retain(|(_, seen)| seen.elapsed() < CALLER_TTL);
        let callers = callers.iter().map(|(id, _)| *id);
        names(&[self.own].into_iter().chain(callers).collect::<Vec<_>>())
    }
}

fn names(ids: &[u64]) -> String {
    let ids: Vec<_> = ids.iter().map(|id| format!("{id:016x}")).collect();
    ids.join(",")
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_of_several_instances_is_detected_until_its_callers_expire() {
        let [a, b, c] = [(); 3].map(|()| Chain::default());
        a.enter("").unwrap();
        b.enter(&a.header()).unwrap();
        c.enter(&b.header()).unwrap();
        let error = a.enter(&c.header()).unwrap_err();
        assert_eq!(error.passed, names(&[c.own, b.own, a.own]));
        a.enter(&a.header()).unwrap_err();

        advance(CALLER_TTL).await;
        a.enter(&c.header()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_header_is_bounded_and_begins_with_the_latest_caller() {
        let chain = Chain::default();
        let callers: Vec<_> = (0..1000).map(|_| Chain::default()).collect();
        for caller in &callers {
            chain.enter(&caller.header()).unwrap();
        }
        chain.enter(&"ffff,".repeat(1000)).unwrap();
        chain.enter("no id, ,\u{e9}").unwrap();
        chain.enter(&callers[0].header()).unwrap();
        let header = chain.header();
        assert!(header.len() <= 17 * MAX_IDS, "{header}");
        assert!(header.starts_with(&names(&[chain.own, callers[0].own])));
    }
}
