//! Verification that actions are reproducible: some run a second time, and their outputs are compared.

mod hashing;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use gorego_limits::{Budget, LogLimit, Permit};
use gorego_scheduler::{Attempt, Kind, Report, Runner, Worker, WorkerId};
use gorego_storage::shorten;
use reapi::v2::{ActionResult, ExecuteResponse};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::{Job, NodeWorker, found, inputs::Resident};
pub(crate) use hashing::{HashOnly, digests};

/// The most actions that wait for their second run. Others are not verified.
const MAX_WAITING: usize = 32;
/// The most outputs of an action, and the most memory of those of all that wait, in bytes: that of some 30,000 outputs.
const MAX_OUTPUTS: usize = 30_000;
const MAX_BYTES: u64 = 8 << 20;
/// The memory of a path and a description beside their text, in bytes.
const OVERHEAD: usize = 100;
/// The most second runs of an action that give way to others.
const MAX_TRIES: usize = 3;
/// The outputs that a log line names.
const NAMED: usize = 5;

/// An action that is to run a second time. It is read anew then, so that those that wait take no memory for inputs.
#[derive(Debug)]
struct Check {
    action: gorego_storage::Digest,
    kind: Kind,
    target: Arc<str>,
    memory: u64,
    outputs: Outputs,
    /// The memory of the outputs.
    _permit: Permit,
}

/// The actions that wait for their second run.
#[derive(Debug)]
pub struct Checks(mpsc::Receiver<Check>);

/// A worker, some of whose actions are verified after they have succeeded.
pub struct VerifiedWorker {
    worker: Arc<dyn Worker<Job, ExecuteResponse>>,
    fraction: f64,
    random: RandomState,
    actions: AtomicU64,
    checks: mpsc::Sender<Check>,
    /// The memory of the actions that wait.
    waiting: Budget,
    logged: LogLimit,
}

impl VerifiedWorker {
    /// Wraps `worker`, a `fraction` of whose actions is verified. Returns the queue of those, too.
    pub fn new(
        worker: Arc<dyn Worker<Job, ExecuteResponse>>,
        fraction: f64,
    ) -> (Arc<Self>, Checks) {
        let (checks, waiting) = mpsc::channel(MAX_WAITING);
        let verified = Self {
            worker,
            fraction,
            random: RandomState::new(),
            actions: AtomicU64::default(),
            checks,
            waiting: Budget::memory("memory for outputs to be verified", MAX_BYTES),
            logged: LogLimit::new(),
        };
        (Arc::new(verified), Checks(waiting))
    }

    /// Adds an action to those that wait. Returns `None` if they would be too many, or have too many outputs.
    fn add(&self, job: &Job, target: Arc<str>, memory: u64, result: &ActionResult) -> Option<()> {
        let place = self.checks.try_reserve().ok()?;
        // Counted first, since descriptions take time and memory.
        if found::count(result) > MAX_OUTPUTS {
            return None;
        }
        let outputs = Outputs::of(result);
        let permit = self.waiting.try_reserve(outputs.bytes())?;
        place.send(Check {
            action: job.key.action,
            kind: job.kind.clone(),
            target,
            memory,
            outputs,
            _permit: permit,
        });
        Some(())
    }

    /// Returns whether to verify the next action, by chance.
    fn is_chosen(&self) -> bool {
        let action = self.actions.fetch_add(1, Relaxed);
        let drawn = u32::try_from(self.random.hash_one(action) >> 32).unwrap_or_default();
        f64::from(drawn) < self.fraction * f64::from(u32::MAX)
    }
}

impl fmt::Debug for VerifiedWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("VerifiedWorker");
        shown
            .field("fraction", &self.fraction)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Worker<Job, ExecuteResponse> for VerifiedWorker {
    fn fits(&self, platform: &str) -> bool {
        self.worker.fits(platform)
    }

    async fn ready(&self) {
        self.worker.ready().await;
    }

    async fn run(&self, attempt: Attempt<Job>) -> Report<ExecuteResponse> {
        let grant = &attempt.grant;
        let (job, target, memory) = (
            Arc::clone(&grant.job),
            Arc::clone(&grant.target),
            grant.memory,
        );
        let report = self.worker.run(attempt).await;
        if let Report::Done(outcome) = &report
            && outcome.value.status.is_none()
            && let Some(result) = &outcome.value.result
            && result.exit_code == 0
            && !job.do_not_cache
            && self.is_chosen()
            && self.add(&job, target, memory, result).is_none()
            && self.logged.is_due()
        {
            warn!(
                action = %job.key.action,
                outputs = found::count(result),
                "an action is not verified: too many wait for their second run, or their outputs and its own are too many"
            );
        }
        report
    }
}

/// Runs the chosen actions a second time, one at a time, in slots that no other action needs, until the runner shuts
/// down.
pub(crate) async fn verify(
    runner: Runner<Job, ExecuteResponse>,
    id: WorkerId,
    worker: Arc<NodeWorker>,
    resident: Arc<Resident>,
    mut checks: Checks,
) {
    while let Some(check) = checks.0.recv().await {
        for _ in 0..MAX_TRIES {
            let Some(slot) = runner.idle_slot(&id, check.memory).await else {
                return;
            };
            let (action, kind) = (check.action, &check.kind);
            let again = worker.run_again(&action, kind, &resident, &slot.stop);
            match again.await {
                Ok(Some(result)) => {
                    check.compare(&Outputs::of(&result), &worker);
                    break;
                }
                Err(_) if slot.stop.is_cancelled() => {}
                Ok(None) => break,
                Err(error) => {
                    debug!(%action, %error, "an action was not verified");
                    break;
                }
            }
        }
    }
}

impl Check {
    /// Reports the outputs of the second run that differ.
    fn compare(&self, again: &Outputs, worker: &NodeWorker) {
        let counts = worker.verifications();
        counts.verified.fetch_add(1, Relaxed);
        let differing = self.outputs.differing(again);
        if differing.is_empty() {
            return;
        }
        counts.not_reproducible.fetch_add(1, Relaxed);
        let named: Vec<_> = differing
            .iter()
            .take(NAMED)
            .map(|path| shorten(path))
            .collect();
        let (action, target) = (self.action, &*self.target);
        warn!(
            %action,
            target,
            differing = differing.len(),
            outputs = named.join(", "),
            "an action is not reproducible: its second run had other outputs"
        );
    }
}

/// The outputs of a result by path, described so that equal ones have equal descriptions.
#[derive(Debug, PartialEq, Eq)]
struct Outputs(BTreeMap<String, String>);

impl Outputs {
    fn of(result: &ActionResult) -> Self {
        let mut outputs = found::found(result);
        for file in result.output_files.iter().filter(|it| it.is_executable) {
            *outputs.entry(&file.path).or_default() += " executable";
        }
        outputs.insert("(exit code)", result.exit_code.to_string());
        let outputs = outputs.into_iter();
        Self(outputs.map(|(path, it)| (path.to_owned(), it)).collect())
    }

    /// Returns the memory that they take, in bytes.
    fn bytes(&self) -> u64 {
        let bytes = |(path, it): (&String, &String)| path.len() + it.len() + OVERHEAD;
        self.0.iter().map(bytes).sum::<usize>() as u64
    }

    /// Returns the paths that differ or are on one side only.
    fn differing<'a>(&'a self, other: &'a Self) -> Vec<&'a str> {
        let paths: BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let differing = paths
            .into_iter()
            .filter(|path| self.0.get(*path) != other.0.get(*path));
        differing.map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use gorego_scheduler::{ActionKey, Capacity, Request, Runner, ScriptedWorker, WorkerId};
    use gorego_storage::{DigestFunction, InstanceName};
    use reapi::v2::{Digest, OutputFile, OutputSymlink};
    use tokio::time::{Duration, sleep, timeout};

    use super::*;
    use crate::{
        Counted, Directories, Inputs, Live, Network, Origin, PackedCommand, publish,
        testing::options,
    };

    fn file(path: &str, hash: &str) -> OutputFile {
        OutputFile {
            path: path.to_owned(),
            digest: Some(Digest {
                hash: hash.to_owned(),
                size_bytes: 1,
            }),
            ..OutputFile::default()
        }
    }

    fn job() -> Job {
        let digest = DigestFunction::Sha256.digest(b"action");
        Job {
            persistent: None,
            key: Arc::new(ActionKey {
                instance: InstanceName::default(),
                action: digest,
            }),
            command: PackedCommand::from(&reapi::v2::Command::default()),
            kind: Kind::new("", "", ""),
            inputs: Arc::new(Inputs {
                root: digest,
                directories: Directories::default(),
                entries: 0,
                bytes: 0,
            }),
            timeout: Duration::ZERO,
            network: Network::Usual,
            do_not_cache: false,
            inline_stdout: false,
            inline_stderr: false,
            inline_output_files: Vec::new(),
            queued: SystemTime::now(),
            entry: None,
            platform: "".into(),
            origin: Origin::current(),
            live: Live::default(),
            counted: Counted::default(),
        }
    }

    /// Runs an action with this result in a worker that verifies all. Returns whether it waits for its second run, once
    /// its inputs are released.
    async fn waits(result: ActionResult) -> bool {
        let (scripted, mut attempts) = ScriptedWorker::new();
        let (worker, mut checks) = VerifiedWorker::new(scripted, 1.0);
        let runner = Runner::new(options().scheduler);
        let capacity = Capacity {
            slots: 1,
            memory: 1,
        };
        runner.add_worker(WorkerId::new("node"), capacity, worker);
        let job = Arc::new(job());
        let inputs = Arc::downgrade(&job.inputs);
        let request = Request {
            key: Arc::clone(&job.key),
            do_not_cache: false,
            build: String::new(),
            priority: 0,
            platform: "".into(),
            memory: 1,
            target: String::new(),
            mnemonic: String::new(),
            job,
        };
        let _watch = runner.submit(gorego_scheduler::OperationId(1), &request);
        drop(request);
        let response = ExecuteResponse {
            result: Some(result),
            ..ExecuteResponse::default()
        };
        let done = Report::Done(publish::outcome(response));
        attempts.recv().await.unwrap().end(done);
        let released = async {
            while inputs.strong_count() > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_mins(1), released).await.unwrap();
        checks.0.try_recv().is_ok()
    }

    /// Returns a result of this many outputs.
    fn result_of(outputs: usize) -> ActionResult {
        let path = |number| format!("{}/{number}", "d".repeat(100));
        let files = (0..outputs).map(|number| file(&path(number), &"0".repeat(64)));
        ActionResult {
            output_files: files.collect(),
            stdout_raw: vec![b'x'; 2 << 20].into(),
            ..ActionResult::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_action_that_waits_for_its_second_run_takes_no_memory_for_inputs() {
        assert!(waits(ActionResult::default()).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_action_with_a_long_log_and_20_000_outputs_is_verified() {
        assert!(waits(result_of(20_000)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_action_whose_outputs_take_too_much_memory_is_not_verified() {
        let long = ActionResult {
            output_files: vec![file(&"d".repeat(9 << 20), "")],
            ..ActionResult::default()
        };
        for result in [result_of(40_000), long] {
            assert!(!waits(result).await);
        }
    }

    #[test]
    fn outputs_that_changed_appeared_or_vanished_differ() {
        let link = |target: &str| OutputSymlink {
            path: "link".to_owned(),
            target: target.to_owned(),
            ..OutputSymlink::default()
        };
        let one = ActionResult {
            output_files: vec![file("same", "1"), file("changed", "2"), file("gone", "3")],
            output_symlinks: vec![link("a")],
            ..ActionResult::default()
        };
        let mut executable = file("same", "1");
        assert!(Outputs::of(&one).differing(&Outputs::of(&one)).is_empty());
        executable.is_executable = true;
        let other = ActionResult {
            output_files: vec![executable, file("changed", "4"), file("new", "5")],
            output_symlinks: vec![link("b")],
            exit_code: 1,
            ..ActionResult::default()
        };
        assert_eq!(
            Outputs::of(&one).differing(&Outputs::of(&other)),
            ["(exit code)", "changed", "gone", "link", "new", "same"]
        );
    }
}
