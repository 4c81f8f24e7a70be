//! The worker of this node: runs actions from their inputs to their published results.

mod again;
pub(crate) mod build_root;
mod command;
mod debug;
mod isolation;
mod persistent;
mod run;
mod space;
mod span;
mod trees;
mod users;

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, atomic::AtomicU32},
    time::SystemTime,
};

use async_trait::async_trait;
use gorego_limits::Budget;
use gorego_sandbox::{Ended, Launch, LaunchError, Launcher};
use gorego_scheduler::{Attempt, Phase, Report, Worker};
use gorego_storage::{ActionCache, BlobStore, Digest, Links};
use parking_lot::Mutex;
use reapi::v2::ExecuteResponse;
use tokio::{sync::Semaphore, task::spawn_blocking};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    Failure, InputCounts, Job, MemoryHistory, Options, Origin, abort::Abort,
    counts::VerificationCounts, guest, platform, publish,
};
use build_root::{BuildRoot, Failed, Trash};
pub use build_root::{BuildRootError, BuildRootFailure, remove_directory};
pub(crate) use isolation::isolation_with;
pub use isolation::{ProbeError, probe};
use persistent::Pool;
pub use persistent::{PersistentCounts, PersistentWish, Protocol};
use run::{Run, Supply};
use space::Shortage;
use trees::Trees;
use users::Users;

/// The most actions that are remembered because they altered their inputs.
const MAX_ALTERING: usize = 1000;

/// The most actions whose outputs are collected at once. Each blocks a thread that waits for others of the same pool,
/// which has 512, and has some files open.
const MAX_COLLECTING: usize = 64;

/// A runner of commands.
#[async_trait]
pub trait Runner: Send + Sync + fmt::Debug + 'static {
    /// Runs a command until it has ended and none of its processes is left, or until `stop` is cancelled.
    async fn run(&self, launch: Launch, stop: CancellationToken) -> Result<Ended, LaunchError>;
}

#[async_trait]
impl Runner for Launcher {
    async fn run(&self, launch: Launch, stop: CancellationToken) -> Result<Ended, LaunchError> {
        Launcher::run(self, launch, stop).await
    }
}

/// The stores of a worker: parts of one store, seen as each of its traits.
#[derive(Clone, Debug)]
pub struct Stores {
    /// The blobs.
    pub blobs: Arc<dyn BlobStore>,
    /// The results of actions.
    pub results: Arc<dyn ActionCache>,
    /// The blobs as inputs and outputs.
    pub links: Arc<dyn Links>,
}

/// The worker of this node. It runs each action in a directory of its own, below the build root. When it is dropped,
/// the deletion of such directories stops; the next start continues it.
#[derive(Debug)]
pub struct NodeWorker {
    options: Options,
    stores: Stores,
    runner: Arc<dyn Runner>,
    build_root: Arc<BuildRoot>,
    users: Users,
    prepared: Arc<Trees>,
    persistent: Option<Arc<Pool>>,
    /// The directories of failed actions, if they are kept.
    failed: Option<Arc<Failed>>,
    /// The newest actions that altered their inputs, or had altered ones. They run on copies: where the blobs had to be
    /// uploaded again, they would corrupt them again.
    altering: Mutex<VecDeque<Digest>>,
    /// The actions whose outputs may be collected at once.
    collecting: Semaphore,
    /// The memory in which the directories of outputs are looked up.
    trees: Budget,
    inputs: InputCounts,
    memory: Arc<MemoryHistory>,
    shortage: Shortage,
    verifications: VerificationCounts,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for NodeWorker {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl NodeWorker {
    /// Creates a worker, in the current tokio runtime. Deletes the content of the build root in the background; refuses
    /// one with files that is not gorego's. Blocks for a moment.
    pub fn new(
        options: Options,
        stores: Stores,
        runner: Arc<dyn Runner>,
    ) -> Result<Self, BuildRootError> {
        let build_root = BuildRoot::open(&options.build_root)?;
        let failed = debug::open(&build_root, &options)?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(Trash(Arc::clone(&build_root)).run(stop.clone()));
        let memory = Arc::new(build_root.history());
        tasks.spawn(Arc::clone(&memory).keep(stop.clone()));
        // Files of a prepared tree are not in the directory of the action.
        let has_trees = options.has_root() && failed.is_none();
        let prepared = Arc::new(Trees::new(has_trees, options.max_input_bytes));
        tasks.spawn(Arc::clone(&prepared).tend(Arc::clone(&stores.links), stop.clone()));
        let users = Users::new(options.first_user, options.users());
        let persistent = Pool::new(&options);
        if let Some(pool) = &persistent {
            tasks.spawn(Arc::clone(pool).keep(stop.clone()));
        }
        Ok(Self {
            users,
            shortage: Shortage::new(options.min_free),
            persistent,
            prepared,
            failed,
            options,
            stores,
            runner,
            build_root,
            altering: Mutex::default(),
            collecting: Semaphore::new(MAX_COLLECTING),
            trees: Budget::memory("memory for the directories of outputs", publish::TREES),
            inputs: InputCounts::default(),
            memory,
            verifications: VerificationCounts::default(),
            stop,
            tasks,
        })
    }

    /// The inputs of the actions that ran.
    pub const fn inputs(&self) -> &InputCounts {
        &self.inputs
    }

    /// The memory of the actions that ran.
    pub const fn memory(&self) -> &Arc<MemoryHistory> {
        &self.memory
    }

    /// Waits until the deletion of directories has ended, after it was stopped, and the memory of actions is saved.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Runs an action to the end of the attempt. `begin` records the phases.
    async fn report(
        &self,
        attempt: &Attempt<Job>,
        begin: &(dyn Fn(Phase) + Send + Sync),
    ) -> Report<ExecuteResponse> {
        let (job, stop) = (&attempt.grant.job, &attempt.stop);
        let run = Run {
            worker: self,
            job,
            next: AtomicU32::new(attempt.grant.run.into()),
            start: SystemTime::now(),
            alone: attempt.grant.alone,
            stop,
            begin,
        };
        if attempt.grant.alone || self.needs_idle_memory(attempt.grant.memory) {
            self.end_idle().await;
        }
        let ended = self.attempt(&run).await;
        job.live.end(job.entry.is_some());
        let failure = match ended {
            Ok(response) => return Report::Done(publish::outcome(response)),
            Err(_) if stop.is_cancelled() => return Report::Stopped,
            Err(Abort::Stopped) => return Report::Stopped,
            Err(Abort::Final(failure)) => failure,
            Err(Abort::OutOfMemory(why)) => {
                let failure = Failure::Internal(why);
                return Report::OutOfMemory(publish::outcome(publish::failed(&failure)));
            }
            Err(Abort::NoSpace(why)) => Failure::NoSpace(why),
            Err(Abort::Own(why) | Abort::NoTree(why)) => {
                let action = job.key.action;
                tracing::warn!(%action, error = why, "an attempt to run an action failed");
                let failure = Failure::Internal(why);
                return Report::Failed(publish::outcome(publish::failed(&failure)));
            }
        };
        // The node that handed the action over may do better, or know another node.
        let is_guest = job.entry.is_some();
        if is_guest && failure.may_be_of_node() || failure.is_of_machine() && self.has_peers(job) {
            return guest::failed_attempt(failure);
        }
        Report::Done(publish::outcome(publish::failed(&failure)))
    }

    /// Returns whether other nodes may run an action of this one.
    fn has_peers(&self, job: &Job) -> bool {
        let peers = self.options.peer_platforms.as_ref();
        peers.is_some_and(|peers| {
            // Nodes that just joined count.
            peers.check();
            peers.meets(&job.platform)
        })
    }

    /// Deletes what no running action needs.
    async fn make_room(&self, stop: &CancellationToken) {
        self.prepared.clear();
        let failed = self.failed.iter();
        failed.for_each(|failed| failed.discard(&self.build_root, 0));
        Trash(Arc::clone(&self.build_root)).empty(stop).await;
    }

    /// Makes later runs of an action use copies.
    fn remember_altering(&self, action: Digest) {
        let mut altering = self.altering.lock();
        altering.push_back(action);
        if altering.len() > MAX_ALTERING {
            altering.pop_front();
        }
    }

    /// Runs an action, and once more after it altered its inputs, found the disk full, or could not use a prepared tree.
    async fn attempt(&self, run: &Run<'_>) -> Result<ExecuteResponse, Abort> {
        let action = run.job.key.action;
        if let Some(response) = run.in_worker().await? {
            return Ok(response);
        }
        let mut supply = if self.altering.lock().contains(&action) {
            Supply::Copies
        } else {
            Supply::Tree
        };
        let (mut is_full, mut has_altered) = (false, false);
        loop {
            match run.once(supply).await {
                Ok(Some(mut response)) => {
                    if has_altered {
                        let line = "the command altered its inputs, and ran again on copies";
                        publish::add_line(&mut response.message, line);
                    }
                    return Ok(response);
                }
                // Copies are not checked, so that this happens once.
                Ok(None) => (supply, has_altered) = (Supply::Copies, true),
                Err(Abort::NoSpace(_)) if !is_full => {
                    is_full = true;
                    self.make_room(run.stop).await;
                }
                Err(Abort::NoTree(why)) if supply == Supply::Tree => {
                    tracing::warn!(%action, why, "an action runs without the prepared tree of its inputs");
                    supply = Supply::Links;
                }
                Err(abort) => return Err(abort),
            }
        }
    }
}

#[async_trait]
impl Worker<Job, ExecuteResponse> for NodeWorker {
    fn fits(&self, platform: &str) -> bool {
        platform::fits(&self.options, platform)
    }

    async fn ready(&self) {
        // Where the space is unknown, the action itself finds the disk full.
        let space = || self.build_root.space().unwrap_or_default();
        if space().is_little() {
            self.make_room(&self.stop).await;
        }
        self.shortage.passed(space).await;
    }

    async fn run(&self, attempt: Attempt<Job>) -> Report<ExecuteResponse> {
        let job = &attempt.grant.job;
        let begin = |phase| {
            span::begin(phase);
            attempt.begin(phase);
        };
        let run = async {
            let span = span::of(&attempt);
            let report = self.report(&attempt, &begin);
            let report = report.instrument(span.clone()).await;
            span::end(&span, &report);
            report
        };
        job.origin.scope(run).await
    }
}

/// Runs a function that blocks, for the current call. A panic in it is an error of the executor.
pub(crate) async fn block<T: Send + 'static>(
    function: impl FnOnce() -> Result<T, Abort> + Send + 'static,
) -> Result<T, Abort> {
    let origin = Origin::current();
    let ended = spawn_blocking(move || origin.run(function)).await;
    ended.unwrap_or_else(|error| Err(Abort::Own(error.to_string())))
}
