//! The messages about operations (`google.longrunning.Operation`), and their watchers.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use gorego_scheduler::{
    End, ListedAction, LogKind, LogName, OperationName, Phase, Running, Stage, Watch,
};
use gorego_storage::{CachedResult, Digest};
use reapi::{
    gorego::{ActionState, ResourceUsage},
    longrunning::{Operation, operation::Result as OperationResult},
    v2::{
        ActionResult, ExecuteOperationMetadata, ExecuteResponse, ExecutedActionMetadata,
        RequestMetadata, execution_stage::Value,
    },
};
use tokio::time::{Instant, timeout_at};

use crate::{Failure, Job, failure::any};

/// The time after which a watcher returns an unchanged state again. Bazel gives up after a minute of silence.
const REPEAT: Duration = Duration::from_secs(20);
const PACKAGE: &str = "build.bazel.remote.execution.v2";

/// An operation, as far as its messages need it.
#[derive(Clone, Debug)]
pub(crate) struct OperationHead {
    pub(crate) name: OperationName,
    pub(crate) action: Digest,
    /// The arrival of the request, if known.
    pub(crate) queued: Option<SystemTime>,
    /// The start of the scheduler's clock.
    pub(crate) epoch: SystemTime,
}

impl OperationHead {
    /// Returns the message about a stage. The end of the node is an error, not a state of the operation.
    pub(crate) fn operation(&self, stage: &Stage<ExecuteResponse>) -> Result<Operation, Failure> {
        let failure = match stage {
            Stage::Queued | Stage::Executing(_) => return Ok(self.unfinished(stage_of(stage))),
            Stage::Completed(End::Outcome(response)) => return Ok(self.completed(response)),
            Stage::Completed(End::Cancelled) => {
                Failure::Cancelled("the operation was cancelled".to_owned())
            }
            Stage::Completed(End::Abandoned) => {
                Failure::Cancelled("no client waited for the operation any longer".to_owned())
            }
            Stage::Completed(End::WorkersLost(workers)) => {
                let workers: Vec<_> = workers.iter().map(ToString::to_string).collect();
                let workers = workers.join(", ");
                Failure::Internal(format!("each worker of the action was lost: {workers}"))
            }
            Stage::Completed(End::ShutDown) => {
                let why = "the executor shut down before the action ended";
                return Err(Failure::Unavailable(why.to_owned()));
            }
        };
        Ok(self.failed(&failure))
    }

    /// Returns the message about an operation that ended with this failure.
    pub(crate) fn failed(&self, failure: &Failure) -> Operation {
        self.completed(&ExecuteResponse {
            status: Some(failure.status()),
            ..ExecuteResponse::default()
        })
    }

    /// Returns the message about an operation that ended with this response. Failures are in its status:
    /// `Operation.error` is never set.
    pub(crate) fn completed(&self, response: &ExecuteResponse) -> Operation {
        let result = response.result.as_ref();
        let metadata = result.and_then(|result| result.execution_metadata.clone());
        let response = any(&format!("{PACKAGE}.ExecuteResponse"), response);
        Operation {
            done: true,
            result: Some(OperationResult::Response(response)),
            ..self.message(Value::Completed, None, metadata)
        }
    }

    /// Returns the message about an action in a list.
    pub(crate) fn listed(
        &self,
        action: ListedAction<Job>,
        usage: Option<ResourceUsage>,
    ) -> Operation {
        let state = ActionState {
            phase: phase(action.running.as_ref()).to_owned(),
            age_ms: milliseconds(action.age),
            operations: action.operations as u64,
            attempts: action.attempts.into(),
            usage,
            node: action
                .running
                .as_ref()
                .map_or_else(String::new, |running| running.worker.to_string()),
        };
        let stage = action.running.map_or(Stage::Queued, Stage::<()>::Executing);
        let (value, running) = stage_of(&stage);
        let mut metadata = self.partial(running);
        let request = RequestMetadata {
            tool_invocation_id: action.build,
            target_id: action.target,
            action_mnemonic: action.mnemonic,
            ..RequestMetadata::default()
        };
        metadata.auxiliary_metadata = vec![
            any(&format!("{PACKAGE}.RequestMetadata"), &request),
            any("gorego.ActionState", &state),
        ];
        self.message(value, running, Some(metadata))
    }

    /// Returns the name of a log of the current or next run.
    fn log(&self, running: &Running, kind: LogKind) -> String {
        let OperationName {
            instance,
            generation,
            id,
            ..
        } = &self.name;
        let name = LogName {
            instance: instance.clone(),
            generation: generation.clone(),
            operation: *id,
            run: running.run.into(),
            kind,
        };
        name.to_string()
    }

    fn unfinished(&self, (value, running): (Value, Option<&Running>)) -> Operation {
        self.message(value, running, Some(self.partial(running)))
    }

    /// Returns the times that are known. There is no worker name, since Bazel then expects all times.
    fn partial(&self, running: Option<&Running>) -> ExecutedActionMetadata {
        let started = running.and_then(|running| self.epoch.checked_add(running.since));
        ExecutedActionMetadata {
            queued_timestamp: self.queued.map(Into::into),
            worker_start_timestamp: started.map(Into::into),
            ..ExecutedActionMetadata::default()
        }
    }

    fn message(
        &self,
        stage: Value,
        running: Option<&Running>,
        partial: Option<ExecutedActionMetadata>,
    ) -> Operation {
        let log = |kind| running.map_or_else(String::new, |running| self.log(running, kind));
        let metadata = ExecuteOperationMetadata {
            stage: stage as i32,
            action_digest: Some(self.action.to_proto()),
            stdout_stream_name: log(LogKind::Stdout),
            stderr_stream_name: log(LogKind::Stderr),
            partial_execution_metadata: partial,
            digest_function: self.action.function().to_proto() as i32,
        };
        Operation {
            name: self.name.to_string(),
            metadata: Some(any(
                &format!("{PACKAGE}.ExecuteOperationMetadata"),
                &metadata,
            )),
            ..Operation::default()
        }
    }
}

/// Returns the name of the phase of an action.
fn phase(running: Option<&Running>) -> &'static str {
    match running {
        None => "queue",
        Some(running) => running.phase.unwrap_or(Phase::Fetch).name(),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn stage_of<O>(stage: &Stage<O>) -> (Value, Option<&Running>) {
    match stage {
        Stage::Queued => (Value::Queued, None),
        Stage::Executing(running) => (Value::Executing, Some(running)),
        Stage::Completed(_) => (Value::Completed, None),
    }
}

/// A client that watches an operation, until it is dropped.
pub struct Watcher {
    watch: Watch<Job, ExecuteResponse>,
    head: OperationHead,
    /// The stage of the last message, and the time at which it is due again.
    last: Option<(Stage<ExecuteResponse>, Instant)>,
}

impl Watcher {
    pub(crate) const fn new(watch: Watch<Job, ExecuteResponse>, head: OperationHead) -> Self {
        Self {
            watch,
            head,
            last: None,
        }
    }

    /// Returns the current state at once, then each later one, and every 20 seconds the current one again; `None` after
    /// the completion. A slow caller misses states, but neither the newest nor the completion. The error is that of the
    /// whole stream, and its end. Cancelling the call loses no state.
    pub async fn next(&mut self) -> Option<Result<Operation, Failure>> {
        loop {
            let stage = match &self.last {
                None => self.watch.next().await,
                Some((last, due)) => match timeout_at(*due, self.watch.next()).await {
                    Err(_) => Some(last.clone()),
                    // A phase is not a stage.
                    Ok(Some(stage)) if self.is_last(&stage) => continue,
                    Ok(stage) => stage,
                },
            };
            let stage = stage?;
            let operation = self.head.operation(&stage);
            self.last = Some((stage, Instant::now() + REPEAT));
            return Some(operation);
        }
    }

    /// Waits for the completion, at most for `limit`. Returns the newest state.
    pub async fn completed(&mut self, limit: Option<Duration>) -> Result<Operation, Failure> {
        let limit = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut newest = None;
        loop {
            let next = self.next();
            let next = match limit {
                // The first state comes at once.
                Some(limit) if newest.is_some() => timeout_at(limit, next).await.unwrap_or(None),
                _ => next.await,
            };
            match next.transpose()? {
                Some(operation) => newest = Some(operation),
                None => break,
            }
        }
        newest.ok_or_else(|| Failure::Internal("the operation has no state".to_owned()))
    }

    /// Returns whether a message about this run was returned last.
    fn is_last(&self, stage: &Stage<ExecuteResponse>) -> bool {
        match (self.last.as_ref().map(|(last, _)| last), stage) {
            (Some(Stage::Queued), Stage::Queued) => true,
            (Some(Stage::Executing(last)), Stage::Executing(now)) => {
                (last.attempt, last.run) == (now.attempt, now.run)
            }
            _ => false,
        }
    }
}

/// An action whose result was cached.
#[derive(Debug)]
pub struct CachedExecution {
    pub(crate) head: OperationHead,
    pub(crate) found: CachedResult,
}

impl CachedExecution {
    /// The digest of the action. Its function is that of the digests in the result.
    pub const fn action(&self) -> &Digest {
        &self.head.action
    }

    /// The result, in which the caller may inline outputs.
    pub const fn result_mut(&mut self) -> &mut ActionResult {
        &mut self.found.result
    }

    /// Returns the only message about the operation.
    pub fn into_operation(self) -> Operation {
        self.head.completed(&ExecuteResponse {
            result: Some(*self.found.result),
            cached_result: true,
            ..ExecuteResponse::default()
        })
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watcher").field(&self.head.name.id).finish()
    }
}
