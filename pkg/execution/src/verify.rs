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
use gorego_scheduler::{Attempt, Kind, Report, Runner, Worker, WorkerId};
use gorego_storage::shorten;
use reapi::v2::{ActionResult, Digest, ExecuteResponse};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::{Job, NodeWorker, inputs::Resident};
pub(crate) use hashing::{HashOnly, digests};

/// The most actions that wait for their second run. Others are not verified.
const MAX_WAITING: usize = 32;
/// The largest response whose action is verified, in bytes.
const MAX_RESULT: u64 = 256 << 10;
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
        };
        (Arc::new(verified), Checks(waiting))
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
            && outcome.bytes <= MAX_RESULT
            && outcome.value.status.is_none()
            && let Some(result) = &outcome.value.result
            && result.exit_code == 0
            && !job.do_not_cache
            && self.is_chosen()
        {
            let check = Check {
                outputs: Outputs::of(result),
                action: job.action,
                kind: job.kind.clone(),
                target,
                memory,
            };
            // Too many wait.
            let _ = self.checks.try_send(check);
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
    #[expect(deprecated, reason = "clients of REAPI 2.0 get the old lists")]
    fn of(result: &ActionResult) -> Self {
        let name = |digest: Option<&Digest>| digest.map_or("", |digest| &digest.hash).to_owned();
        let files = result.output_files.iter().map(|file| {
            let executable = if file.is_executable { "x" } else { "" };
            let description = name(file.digest.as_ref()) + executable;
            (file.path.clone(), description)
        });
        let directories = result.output_directories.iter().map(|directory| {
            let root = directory.root_directory_digest.as_ref();
            let digest = directory.tree_digest.as_ref().or(root);
            (directory.path.clone(), name(digest))
        });
        let links = result.output_symlinks.iter();
        let links = links
            .chain(&result.output_file_symlinks)
            .chain(&result.output_directory_symlinks)
            .map(|link| (link.path.clone(), format!("-> {}", link.target)));
        let exit_code = ("(exit code)".to_owned(), result.exit_code.to_string());
        let outputs = files.chain(directories).chain(links);
        Self(outputs.chain([exit_code]).collect())
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
    use std::{collections::HashMap, time::SystemTime};

    use gorego_scheduler::{
        ActionKey, Capacity, Outcome, Request, Runner, ScriptedWorker, WorkerId,
    };
    use gorego_storage::{DigestFunction, InstanceName};
    use reapi::v2::{OutputFile, OutputSymlink};
    use tokio::time::{Duration, sleep, timeout};

    use super::*;
    use crate::{Inputs, Live, Network, Origin, testing::options};

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
            instance: InstanceName::default(),
            action: digest,
            command: reapi::v2::Command::default(),
            kind: Kind::new("", "", ""),
            inputs: Arc::new(Inputs {
                root: digest,
                directories: HashMap::new(),
                blobs: Vec::new(),
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
            origin: Origin::current(),
            live: Live::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_action_that_waits_for_its_second_run_takes_no_memory_for_inputs() {
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
            key: ActionKey {
                instance: job.instance.clone(),
                action: job.action,
            },
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
            result: Some(ActionResult::default()),
            ..ExecuteResponse::default()
        };
        let done = Report::Done(Outcome {
            value: response,
            bytes: 1,
        });
        attempts.recv().await.unwrap().end(done);
        let released = async {
            while inputs.strong_count() > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_mins(1), released).await.unwrap();
        assert!(checks.0.try_recv().is_ok());
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
