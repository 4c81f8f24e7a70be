//! A decorator of workers that counts their attempts and measures their phases.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use gorego_scheduler::{Attempt, Phase, Report, Worker};
use parking_lot::Mutex;
use reapi::{rpc::Code, v2::ExecuteResponse};
use tokio::time::Instant;

use crate::{Call, durations::TracedSeconds};

/// The upper bounds of the buckets of durations, in seconds.
const BOUNDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 1800.0,
];
/// The label of the time before an attempt.
const QUEUE: &str = "queue";

/// The counts of a [`MeteredWorker`].
#[derive(Debug)]
pub struct AttemptCounts {
    /// Actions whose command exited with 0.
    pub(crate) succeeded: AtomicU64,
    /// Actions whose command exited otherwise.
    pub(crate) failed: AtomicU64,
    /// Actions whose command was killed at its timeout.
    pub(crate) timed_out: AtomicU64,
    /// Actions that cannot run on this node, or whose inputs are gone.
    pub(crate) refused: AtomicU64,
    /// Actions without a result by an error of this node that another attempt would not help.
    pub(crate) errors: AtomicU64,
    stages: [(&'static str, TracedSeconds); 6],
}

impl Default for AttemptCounts {
    fn default() -> Self {
        let [fetch, stage, run, collect, publish] = Phase::ALL.map(Phase::name);
        let stages = [QUEUE, fetch, stage, run, collect, publish];
        Self {
            succeeded: AtomicU64::default(),
            failed: AtomicU64::default(),
            timed_out: AtomicU64::default(),
            refused: AtomicU64::default(),
            errors: AtomicU64::default(),
            stages: stages.map(|stage| (stage, TracedSeconds::new(BOUNDS))),
        }
    }
}

impl AttemptCounts {
    /// The durations of each stage, by its name.
    pub(crate) fn stages(&self) -> impl Iterator<Item = &(&'static str, TracedSeconds)> {
        self.stages.iter()
    }

    fn observe(&self, stage: &str, took: Duration) {
        if let Some((_, seconds)) = self.stages.iter().find(|(name, _)| *name == stage) {
            let trace = Call::current().and_then(|call| call.trace_id());
            seconds.observe(took, trace);
        }
    }

    /// Counts the outcome of an action.
    fn record(&self, response: &ExecuteResponse) {
        let count = match ActionOutcome::of(response) {
            ActionOutcome::Succeeded => &self.succeeded,
            ActionOutcome::Failed => &self.failed,
            ActionOutcome::TimedOut => &self.timed_out,
            ActionOutcome::Refused => &self.refused,
            ActionOutcome::Error => &self.errors,
        };
        count.fetch_add(1, Relaxed);
    }
}

/// The outcome of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionOutcome {
    /// The command exited with 0.
    Succeeded,
    /// The command exited otherwise.
    Failed,
    /// The command was killed at its timeout.
    TimedOut,
    /// The action cannot run on this node, or its inputs are gone.
    Refused,
    /// An error of this node.
    Error,
}

impl ActionOutcome {
    /// Returns the outcome that a response reports.
    pub fn of(response: &ExecuteResponse) -> Self {
        let status = response.status.as_ref();
        let code = status.map_or(Code::Ok, |status| {
            Code::try_from(status.code).unwrap_or(Code::Unknown)
        });
        let exit_code = response.result.as_ref().map(|result| result.exit_code);
        match (code, exit_code) {
            (Code::Ok, Some(0)) => Self::Succeeded,
            (Code::Ok, _) => Self::Failed,
            (Code::DeadlineExceeded, _) => Self::TimedOut,
            (Code::FailedPrecondition | Code::InvalidArgument, _) => Self::Refused,
            _ => Self::Error,
        }
    }

    /// Returns the name, as in the metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Refused => "refused",
            Self::Error => "error",
        }
    }
}

/// The current phase of an attempt.
struct CurrentPhase {
    counts: Arc<AttemptCounts>,
    current: Mutex<Option<(Phase, Instant)>>,
}

impl CurrentPhase {
    /// Ends the current phase, and begins another, if there is one.
    fn begin(&self, next: Option<Phase>) {
        let next = next.map(|phase| (phase, Instant::now()));
        let ended = std::mem::replace(&mut *self.current.lock(), next);
        if let Some((phase, began)) = ended {
            self.counts.observe(phase.name(), began.elapsed());
        }
    }
}

/// A worker whose attempts are counted.
pub struct MeteredWorker<J> {
    worker: Arc<dyn Worker<J, ExecuteResponse>>,
    counts: Arc<AttemptCounts>,
}

impl<J> MeteredWorker<J> {
    /// Wraps `worker`.
    pub fn new(worker: Arc<dyn Worker<J, ExecuteResponse>>, counts: Arc<AttemptCounts>) -> Self {
        Self { worker, counts }
    }
}

impl<J> fmt::Debug for MeteredWorker<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeteredWorker").finish_non_exhaustive()
    }
}

#[async_trait]
impl<J: Send + Sync + 'static> Worker<J, ExecuteResponse> for MeteredWorker<J> {
    fn fits(&self, platform: &str) -> bool {
        self.worker.fits(platform)
    }

    async fn ready(&self) {
        self.worker.ready().await;
    }

    async fn run(&self, attempt: Attempt<J>) -> Report<ExecuteResponse> {
        self.counts.observe(QUEUE, attempt.grant.waited);
        let current = Arc::new(CurrentPhase {
            counts: Arc::clone(&self.counts),
            current: Mutex::default(),
        });
        let (stop, begun) = (attempt.stop.clone(), Arc::clone(&current));
        let attempt = attempt.observed(move |phase| begun.begin(Some(phase)));
        let report = self.worker.run(attempt).await;
        current.begin(None);
        // The scheduler counts the attempts that have no outcome for clients, and the actions that it has ended.
        if let Report::Done(outcome) = &report
            && !stop.is_cancelled()
        {
            self.counts.record(&outcome.value);
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use gorego_scheduler::{
        ActionKey, Capacity, OperationId, Options, Outcome, Request, Runner, ScriptedWorker,
        WorkerId,
    };
    use gorego_storage::DigestFunction;
    use reapi::{rpc, v2::ActionResult};

    use super::*;
    use crate::{Execution, ExecutionReport, Metrics, Sources};

    const MINUTE: Duration = Duration::from_mins(1);

    fn options() -> Options {
        Options {
            queue_size: 10,
            abandon_after: MINUTE,
            retain_completed: MINUTE,
            max_completed: 10,
            max_completed_bytes: 1 << 20,
            max_retries: 0,
            max_losses: 0,
        }
    }

    fn request(number: u8) -> Request<u8> {
        Request {
            key: Arc::new(ActionKey {
                instance: gorego_storage::InstanceName::default(),
                action: DigestFunction::Sha256.digest(&[number]),
            }),
            do_not_cache: true,
            build: String::new(),
            priority: 0,
            platform: "".into(),
            memory: 0,
            target: String::new(),
            mnemonic: String::new(),
            job: Arc::new(number),
        }
    }

    fn outcome(code: Code, exit_code: i32) -> Outcome<ExecuteResponse> {
        let status = rpc::Status {
            code: code as i32,
            ..rpc::Status::default()
        };
        let value = ExecuteResponse {
            result: Some(ActionResult {
                exit_code,
                ..ActionResult::default()
            }),
            status: (code != Code::Ok).then_some(status),
            ..ExecuteResponse::default()
        };
        Outcome { value, bytes: 0 }
    }

    #[tokio::test]
    async fn each_final_outcome_of_a_worker_counts_once() {
        let (worker, mut attempts) = ScriptedWorker::new();
        let counts = Arc::<AttemptCounts>::default();
        let metered = Arc::new(MeteredWorker::new(worker, Arc::clone(&counts)));
        let runner = Runner::new(options());
        let capacity = Capacity {
            slots: 1,
            memory: 0,
        };
        runner.add_worker(WorkerId::new("node"), capacity, metered);
        let done = |code, exit_code| Report::Done(outcome(code, exit_code));
        let reports = [
            done(Code::Ok, 0),
            done(Code::Ok, 1),
            done(Code::DeadlineExceeded, 137),
            done(Code::FailedPrecondition, 0),
            done(Code::ResourceExhausted, 0),
            Report::Failed(outcome(Code::Internal, 0)),
        ];
        for (number, report) in (0..).zip(reports) {
            let id = OperationId(u128::from(number));
            let mut watch = runner.submit(id, &request(number)).unwrap();
            let scripted = attempts.recv().await.unwrap();
            scripted.attempt.begin(Phase::Fetch);
            scripted.attempt.begin(Phase::Run);
            scripted.end(report);
            while watch.next().await.is_some() {}
        }
        let counted = [
            &counts.succeeded,
            &counts.failed,
            &counts.timed_out,
            &counts.refused,
            &counts.errors,
        ];
        assert_eq!(counted.map(|count| count.load(Relaxed)), [1; 5]);
        // That of the scheduler.
        assert_eq!(runner.totals().ends.failed, 1);
        let metrics = Metrics::new(Sources {
            execution: Some(Execution {
                attempts: counts,
                level: Some("full"),
                read: Box::new(ExecutionReport::default),
            }),
            ..Sources::new("1.2.3")
        });
        let (_, text) = metrics.expose("").unwrap();
        assert!(text.contains("gorego_execution_sandbox_level{level=\"full\"} 1\n"));
        for (stage, times) in [("queue", 6), ("fetch", 6), ("run", 6), ("publish", 0)] {
            let count =
                format!("gorego_execution_stage_seconds_count{{stage=\"{stage}\"}} {times}\n");
            assert!(text.contains(&count), "{stage}: {text}");
        }
    }
}
