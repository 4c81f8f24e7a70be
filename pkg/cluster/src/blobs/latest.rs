//! The action results of an owner: of several results of one action, the last to complete is kept.

use std::{
    cmp::Ordering,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use gorego_limits::Budget;
use gorego_storage::{
    ActionCache, ActionCacheExt as _, CachedResult, Digest, Result, compare_ends,
};
use reapi::v2::ActionResult;
use tokio::sync::Mutex;

/// The number of locks that exclude two writes of one result.
const LOCKS: usize = 64;
/// The time by which the clocks of nodes may differ.
const SKEW: Duration = Duration::from_mins(1);

/// An action cache of an owner, in which a result does not replace one whose action completed later
/// (`execution_completed_timestamp`). A stored result with a time in the future is always replaced: otherwise it would
/// stay even after its outputs are lost.
#[derive(Debug)]
pub struct LatestResults {
    actions: Arc<dyn ActionCache>,
    locks: [Mutex<()>; LOCKS],
}

impl LatestResults {
    /// Creates the view of `actions`, through which all results of the owner are written.
    pub fn new(actions: Arc<dyn ActionCache>) -> Self {
        let locks = std::array::from_fn(|_| Mutex::default());
        Self { actions, locks }
    }
}

#[async_trait]
impl ActionCache for LatestResults {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        self.actions.get(instance, action, memory).await
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let [first, ..] = action.hash_prefix();
        let lock = self.locks.get(usize::from(first) % LOCKS);
        let _locked = match lock {
            Some(lock) => Some(lock.lock().await),
            None => None,
        };
        if let Some(stored) = self.actions.find(instance, action).await?
            && compare_ends(&stored, &result) == Some(Ordering::Greater)
            && !is_in_future(&stored)
        {
            return Ok(());
        }
        self.actions.put(instance, action, result).await
    }
}

/// Returns whether an action completed more than [`SKEW`] after the present time of this node's clock.
fn is_in_future(result: &ActionResult) -> bool {
    let metadata = result.execution_metadata.as_ref();
    let completed = metadata.and_then(|it| it.execution_completed_timestamp.as_ref());
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let latest = now.unwrap_or_default().saturating_add(SKEW).as_secs();
    completed.is_some_and(|completed| u64::try_from(completed.seconds).is_ok_and(|at| at > latest))
}
