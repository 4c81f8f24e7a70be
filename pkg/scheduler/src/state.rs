//! The values that pass between the scheduler and its callers.

use std::{sync::Arc, time::Duration};

use gorego_storage::{Digest, InstanceName};

use crate::{
    ledger::{AttemptId, WorkerId},
    name::OperationId,
    phases::Phases,
};

/// A point in time: the time since the caller's own start, on a clock that does not go backwards.
pub type Time = Duration;

/// The limits of a scheduler.
#[derive(Clone, Debug)]
pub struct Options {
    /// The most operations that wait: queued ones, and those merged with a running one.
    pub queue_size: usize,
    /// The time without a watcher after which an operation ends.
    pub abandon_after: Duration,
    /// The time that a completed operation is kept.
    pub retain_completed: Duration,
    /// The most completed operations that are kept.
    pub max_completed: usize,
    /// The most bytes of outcomes that are kept.
    pub max_completed_bytes: u64,
    /// The most times that an action runs again after errors of the executor.
    pub max_retries: u32,
    /// The most times that an action runs again after losses of workers.
    pub max_losses: u32,
}

/// The action and its instance. Executions with the same key and platform are merged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ActionKey {
    /// The instance; may be empty.
    pub instance: InstanceName,
    /// The digest of the action.
    pub action: Digest,
}

/// An action to execute.
#[derive(Debug)]
pub struct Request<J> {
    /// The action. One allocation should serve the request and the job.
    pub key: Arc<ActionKey>,
    /// Set if the action is never merged with an equal one (REAPI `Action.do_not_cache`).
    pub do_not_cache: bool,
    /// The build (REAPI `RequestMetadata.tool_invocation_id`). Actions without one share a build.
    pub build: String,
    /// The priority inside the build; lower values start first (REAPI `ExecutionPolicy.priority`).
    pub priority: i32,
    /// The requirements that workers are matched with, in a canonical form. One allocation should serve all requests
    /// with the same requirements.
    pub platform: Arc<str>,
    /// The memory to reserve, in bytes.
    pub memory: u64,
    /// The target, for lists.
    pub target: String,
    /// The mnemonic, for lists.
    pub mnemonic: String,
    /// The work, which workers get. Merged requests share the first one's.
    pub job: Arc<J>,
}

/// The reason why a request was refused. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many operations wait as are allowed.
    #[error("the queue is full: {0} operations wait")]
    Full(usize),
    /// The scheduler is draining.
    #[error("the executor takes no new actions: it drains or shuts down")]
    Draining,
    /// The id belongs to another operation.
    #[error("operation {0} exists")]
    Exists(OperationId),
}

/// A phase of an attempt, which passes through them in this order and may skip some. The command may run again after it
/// ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Inputs are fetched.
    Fetch,
    /// Inputs are staged.
    Stage,
    /// The command runs.
    Run,
    /// Outputs are collected.
    Collect,
    /// Outputs and the result are published.
    Publish,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Self; 5] = [
        Self::Fetch,
        Self::Stage,
        Self::Run,
        Self::Collect,
        Self::Publish,
    ];

    /// Returns the name, for metrics, traces and lists.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Stage => "stage",
            Self::Run => "run",
            Self::Collect => "collect",
            Self::Publish => "publish",
        }
    }
}

/// The stage of an operation (REAPI `ExecutionStage`).
#[derive(Debug)]
pub enum Stage<O> {
    /// The operation waits for a worker.
    Queued,
    /// A worker runs the action.
    Executing(Running),
    /// The operation has ended. It never leaves this stage.
    Completed(End<O>),
}

impl<O> Clone for Stage<O> {
    fn clone(&self) -> Self {
        match self {
            Self::Queued => Self::Queued,
            Self::Executing(running) => Self::Executing(running.clone()),
            Self::Completed(end) => Self::Completed(end.clone()),
        }
    }
}

/// The attempt that an execution waits for.
#[derive(Clone, Debug)]
pub struct Running {
    /// The attempt.
    pub attempt: AttemptId,
    /// The worker of the attempt.
    pub worker: WorkerId,
    /// The worker's current phase; `None` until it reports one.
    pub phase: Option<Phase>,
    /// The number of the command's current or next run, from 1 on; it is larger in each attempt.
    pub run: u16,
    /// The time of the grant.
    pub since: Time,
    /// The phases so far.
    pub phases: Phases,
}

/// The end of an operation.
#[derive(Debug)]
pub enum End<O> {
    /// A worker's outcome.
    Outcome(Arc<O>),
    /// The client cancelled the operation.
    Cancelled,
    /// No client watched the operation for `abandon_after`.
    Abandoned,
    /// Each attempt's worker was lost; in the order of the losses.
    WorkersLost(Arc<[WorkerId]>),
    /// The node shut down first.
    ShutDown,
}

impl<O> Clone for End<O> {
    fn clone(&self) -> Self {
        match self {
            Self::Outcome(outcome) => Self::Outcome(Arc::clone(outcome)),
            Self::Cancelled => Self::Cancelled,
            Self::Abandoned => Self::Abandoned,
            Self::WorkersLost(workers) => Self::WorkersLost(Arc::clone(workers)),
            Self::ShutDown => Self::ShutDown,
        }
    }
}

/// Permission to run an attempt.
#[derive(Debug)]
pub struct Grant<J> {
    /// The attempt, named in every report of it.
    pub attempt: AttemptId,
    /// The action.
    pub key: ActionKey,
    /// The work.
    pub job: Arc<J>,
    /// The target; may be cut.
    pub target: Arc<str>,
    /// The mnemonic; may be cut.
    pub mnemonic: Arc<str>,
    /// The memory reserved on the worker, in bytes.
    pub memory: u64,
    /// Set if nothing else runs on the worker meanwhile.
    pub alone: bool,
    /// The number of the command's first run in this attempt.
    pub run: u16,
    /// The time that the action waited for this grant.
    pub waited: Duration,
}

/// The end of an attempt. Each value carries the outcome that clients get if no other attempt follows.
#[derive(Debug)]
pub enum Report<O> {
    /// The action ended. Its outcome is final, whether the command succeeded or not.
    Done(Outcome<O>),
    /// The kernel killed the action for lack of memory.
    OutOfMemory(Outcome<O>),
    /// The executor failed: an I/O error of its own, or its supervisor died.
    Failed(Outcome<O>),
    /// The worker cannot run the action, and others may: it lacks blobs or programs. As every worker may lack them, this
    /// is no sign that the worker fails.
    Unsuited(Outcome<O>),
    /// The worker stopped the attempt as told, or gave it up.
    Stopped,
}

/// The outcome of an attempt.
#[derive(Debug)]
pub struct Outcome<O> {
    /// The value for clients.
    pub value: O,
    /// Its size in memory, in bytes.
    pub bytes: u64,
}

/// A consequence for the caller to carry out.
#[derive(Debug)]
pub enum Effect<O> {
    /// The watchers of an operation have to learn its new stage. The effects of one operation are in order, and its
    /// completion is the last.
    Notify(OperationId, Stage<O>),
    /// A worker has to stop an attempt, and then to report it.
    Stop(WorkerId, AttemptId),
    /// A claim that was refused may be granted now.
    Claim,
}
