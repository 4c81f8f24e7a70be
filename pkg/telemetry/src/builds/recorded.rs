//! An action cache whose calls are recorded.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use gorego_limits::Budget;
use gorego_storage::{ActionCache, CachedResult, Digest, Result};
use reapi::v2::ActionResult;

use super::{
    Builds,
    event::{Event, Outcome, ResultFacts, now_ms},
};
use crate::Call;

/// An action cache that hands its calls over to [`Builds`]. Wrap the outermost one, since the build of a call is known
/// only in the task of the call.
pub struct RecordedActions {
    actions: Arc<dyn ActionCache>,
    builds: Builds,
}

impl RecordedActions {
    /// Records the calls of `actions`.
    pub fn new(actions: Arc<dyn ActionCache>, builds: Builds) -> Self {
        Self { actions, builds }
    }

    fn record(&self, instance: &str, action: &Digest, outcome: Outcome) {
        self.builds.record(Event {
            at_ms: now_ms(),
            call: Call::current(),
            instance: instance.into(),
            action: action.only(),
            outcome,
        });
    }
}

#[async_trait]
impl ActionCache for RecordedActions {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        let found = self.actions.get(instance, action, memory).await;
        self.record(instance, action, Outcome::of_lookup(&found));
        found
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let facts = ResultFacts::of(&result);
        self.actions.put(instance, action, result).await?;
        self.record(instance, action, Outcome::Stored(facts));
        Ok(())
    }
}

impl fmt::Debug for RecordedActions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.actions.fmt(f)
    }
}
