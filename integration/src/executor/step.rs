//! The step that an action is at.

use std::time::Instant;

use prost::Message as _;
use reapi::{
    gorego::ActionState,
    longrunning::{ListOperationsRequest, operations_client::OperationsClient},
    v2::ExecuteOperationMetadata,
};

use super::{Executor, gate::PATIENCE};

/// A step of an action, in the order in which an attempt takes them.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Step {
    /// It waits for a slot.
    Queue,
    /// Its inputs are fetched from the backing cache.
    Fetch,
    /// Its inputs are put into its directory.
    Stage,
    /// Its command runs.
    Run,
    /// Its outputs are read.
    Collect,
    /// Its outputs and its result are stored.
    Publish,
}

impl Step {
    /// The steps after the queue.
    pub const ALL: [Self; 5] = [
        Self::Fetch,
        Self::Stage,
        Self::Run,
        Self::Collect,
        Self::Publish,
    ];

    fn named(name: &str) -> Self {
        match name {
            "queue" => Self::Queue,
            "fetch" => Self::Fetch,
            "stage" => Self::Stage,
            "run" => Self::Run,
            "collect" => Self::Collect,
            "publish" => Self::Publish,
            other => panic!("no step {other:?}"),
        }
    }
}

impl Executor {
    /// Returns the step of the only action of the server; `None` if there is no action.
    pub async fn step(&self) -> Option<Step> {
        let mut operations = OperationsClient::new(self.client.channel());
        let listed = operations.list_operations(ListOperationsRequest::default());
        let listed = listed.await.expect("a list").into_inner().operations;
        let metadata = &listed.first()?.metadata.as_ref().expect("metadata").value;
        let metadata = ExecuteOperationMetadata::decode(metadata.as_slice()).expect("metadata");
        let partial = metadata.partial_execution_metadata.unwrap_or_default();
        let mut auxiliary = partial.auxiliary_metadata.iter();
        let state = auxiliary.find(|any| any.type_url.ends_with("gorego.ActionState"));
        let state = ActionState::decode(state.expect("a state").value.as_slice());
        Some(Step::named(&state.expect("a state").phase))
    }

    /// Waits until the only action of the server is at this step, or has passed it. Panics after a minute.
    pub async fn reach(&self, step: Step) -> Option<Step> {
        let start = Instant::now();
        loop {
            let now = self.step().await;
            if now.is_none_or(|now| now >= step) {
                return now;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "not at {step:?} in time: {now:?}"
            );
        }
    }
}
