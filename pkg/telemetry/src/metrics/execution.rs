//! Metrics of the execution of actions.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use prometheus_client::metrics::MetricType;

use super::encode::{Encoder, Metric};
use crate::AttemptCounts;

const LEVEL: Metric = Metric::new(
    "execution_sandbox_level",
    "1, with the level at which actions are isolated.",
);
const QUEUED: Metric = Metric::new("execution_queued", "Actions that wait for a slot.");
const RUNNING: Metric = Metric::new(
    "execution_running",
    "Actions that run on this node, including those of other nodes and those that are being stopped.",
);
const ACTIONS: Metric = Metric::new("execution_actions", "Executed actions by outcome.");
const STAGES: Metric = Metric::seconds(
    "execution_stage",
    "The time that attempts to run an action spent in each stage.",
);
const RETRIES: Metric = Metric::new(
    "execution_retries",
    "Attempts to run an action that failed here, so that the action was queued again.",
);
const STAGED: Metric = Metric::new(
    "execution_staged_files",
    "Files, symlinks and folders that were staged as inputs of actions.",
);
const STAGED_BYTES: Metric = Metric::bytes(
    "execution_staged",
    "Bytes of the files that were staged as inputs of actions; most files are links.",
);
const ALTERED: Metric = Metric::new(
    "execution_altered_inputs",
    "Runs of actions whose inputs were altered meanwhile. They ran again on copies.",
);
const VERIFIED: Metric = Metric::new(
    "execution_verified",
    "Actions that ran a second time, to be compared.",
);
const NOT_REPRODUCIBLE: Metric = Metric::new(
    "execution_not_reproducible",
    "Actions whose second run had other outputs.",
);
const WORKERS: Metric = Metric::new(
    "execution_persistent_workers",
    "Persistent workers, idle or not.",
);
const REQUESTS: Metric = Metric::new(
    "execution_persistent_requests",
    "Actions that persistent workers got, by outcome.",
);

/// The sources of the metrics of execution.
pub struct Execution {
    /// The counts of the worker.
    pub attempts: Arc<AttemptCounts>,
    /// The level at which actions are isolated: `full`, `external`, `processes` or `plain`. `None` at a node that runs
    /// none.
    pub level: Option<&'static str>,
    /// The function that reads the numbers of the executor.
    pub read: Box<dyn Fn() -> ExecutionReport + Send + Sync>,
}

impl fmt::Debug for Execution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execution").finish_non_exhaustive()
    }
}

/// The numbers of an executor. All but `queued` and `running` are totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecutionReport {
    /// The actions that wait for a worker.
    pub queued: u64,
    /// The attempts that occupy a worker.
    pub running: u64,
    /// The attempts after which the action was queued again.
    pub retries: u64,
    /// The actions whose result was cached.
    pub cached: u64,
    /// The requests that were refused before the action was queued.
    pub refused: u64,
    /// The actions that ended without an attempt, or after the last one, by an error of this node.
    pub errors: u64,
    /// The actions that were cancelled or abandoned, or ended with the node.
    pub cancelled: u64,
    /// The files, symlinks and folders that were staged.
    pub staged: u64,
    /// The bytes of the staged files.
    pub staged_bytes: u64,
    /// The runs of actions whose inputs were altered meanwhile.
    pub altered: u64,
    /// The actions that ran a second time.
    pub verified: u64,
    /// The actions whose second run had other outputs.
    pub not_reproducible: u64,
    /// The persistent workers, idle or not.
    pub workers: u64,
    /// The actions that persistent workers ran to their end.
    pub answered: u64,
    /// The actions that ran by themselves after a persistent worker failed.
    pub unanswered: u64,
}

pub(super) fn encode(mut encoder: Encoder<'_>, execution: &Execution) -> fmt::Result {
    let (counts, now) = (&execution.attempts, (execution.read)());
    let level = execution.level.map(|level| ([("level", level)], 1_u64));
    encoder.gauges(LEVEL, level)?;
    encoder.gauge(QUEUED, now.queued)?;
    encoder.gauge(RUNNING, now.running)?;
    let outcomes = [
        ("succeeded", counts.succeeded.load(Relaxed)),
        ("failed", counts.failed.load(Relaxed)),
        ("timed_out", counts.timed_out.load(Relaxed)),
        ("refused", counts.refused.load(Relaxed) + now.refused),
        ("error", counts.errors.load(Relaxed) + now.errors),
        ("cancelled", now.cancelled),
        ("cached", now.cached),
    ];
    let outcomes = outcomes.map(|(outcome, total)| ([("outcome", outcome)], total));
    encoder.counters(ACTIONS, outcomes)?;
    let mut family = encoder.descriptor(STAGES, MetricType::Histogram)?;
    for (stage, seconds) in counts.stages() {
        seconds.encode(family.encode_family(&[("stage", *stage)])?)?;
    }
    encoder.counter(RETRIES, now.retries)?;
    encoder.counter(STAGED, now.staged)?;
    encoder.counter(STAGED_BYTES, now.staged_bytes)?;
    encoder.counter(ALTERED, now.altered)?;
    encoder.counter(VERIFIED, now.verified)?;
    encoder.counter(NOT_REPRODUCIBLE, now.not_reproducible)?;
    encoder.gauge(WORKERS, now.workers)?;
    let requests = [("answered", now.answered), ("failed", now.unanswered)];
    let requests = requests.map(|(outcome, total)| ([("outcome", outcome)], total));
    encoder.counters(REQUESTS, requests)
}
