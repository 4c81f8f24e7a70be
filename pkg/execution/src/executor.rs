//! The executor: the front of the scheduler for clients.

mod operations;
mod tokens;
mod unmet;
mod watching;

pub use watching::{CurrentAction, GuestLog, Log, OperationPage, RecentAction};

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use gorego_limits::Budget;
use gorego_scheduler::{Capacity, Generation, Refused, Request, Runner, Totals, Worker, WorkerId};
use gorego_storage::{ActionCache, BlobStore, CachedResult, Digest, Error, InstanceName};
use reapi::{
    longrunning::Operation,
    v2::{ExecuteRequest, ExecuteResponse, RequestMetadata},
};
use ring::rand::SystemRandom;
use tokio::{
    sync::{Mutex, Semaphore},
    time::Instant,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::debug;

use crate::{
    Admissions, Checks, Failure, Job, MemoryHistory, NodeWorker, Options,
    action::CheckedAction,
    admit::{Admission, kind_of, read_action},
    command::check_inline,
    guest::GuestJobs,
    inputs::Resident,
    leases::renew,
    operation::{CachedExecution, OperationHead, Watcher},
    publish,
    verify::verify,
};
use tokens::Tokens;
use watching::MAX_READERS;

/// The memory for the inputs of all actions that are checked, queued or running, in bytes.
const RESIDENT: u64 = 512 << 20;
/// The most missing blobs that are reported as the status of a call. Its details are in the trailers, of which gRPC
/// clients take 8 KiB, so more of them are reported in an operation.
const MISSING_IN_TRAILERS: usize = 16;

/// Checks and queues the actions of clients, and keeps their operations.
pub struct Executor {
    options: Options,
    blobs: Arc<dyn BlobStore>,
    actions: Arc<dyn ActionCache>,
    generation: Generation,
    runner: Runner<Job, ExecuteResponse>,
    resident: Arc<Resident>,
    memory: Arc<MemoryHistory>,
    random: SystemRandom,
    tokens: Tokens,
    admissions: Admissions,
    waiting: unmet::Waiting,
    /// The clients that may begin to follow a log.
    readers: Arc<Semaphore>,
    /// Set if actions come from other nodes only.
    is_for_nodes: bool,
    guests: GuestJobs,
    /// Held while running commands are measured, so that few calls cannot keep all processors busy.
    measuring: Mutex<()>,
    /// The start of the runner's clock.
    epoch: SystemTime,
    /// Ends the tasks with the executor.
    _stop: DropGuard,
}

/// An accepted request.
#[derive(Debug)]
pub enum Execution {
    /// The result was cached, and the action takes no slot of the queue.
    Cached(Box<CachedExecution>),
    /// The action is queued.
    Queued(Box<Watcher>),
    /// The operation ended before the action was queued.
    Ended(Operation),
}

impl Executor {
    /// Creates an executor with one worker, in the current tokio runtime; without one, all actions run on other nodes.
    /// `actions` returns complete results only, and the worker records `memory`.
    pub fn new(
        mut options: Options,
        blobs: Arc<dyn BlobStore>,
        actions: Arc<dyn ActionCache>,
        generation: Generation,
        worker: Option<Arc<dyn Worker<Job, ExecuteResponse>>>,
        memory: Arc<MemoryHistory>,
    ) -> Self {
        let runner = Runner::new(options.scheduler.clone());
        let stop = CancellationToken::new();
        if let Some(worker) = worker {
            let capacity = Capacity {
                slots: usize::try_from(options.concurrency).unwrap_or(usize::MAX),
                memory: options.memory.saturating_sub(options.idle_memory()),
            };
            let (id, most) = (WorkerId::new(&options.node), options.memory);
            runner.add_worker_with_max_memory(id, capacity, most, worker);
        } else {
            (options.concurrency, options.memory) = (0, 0);
            options.platform.clear();
        }
        if let Some(peers) = options.peer_platforms.clone() {
            let ending = unmet::end(runner.clone(), options.clone(), peers);
            TaskTracker::new().spawn(stop.clone().run_until_cancelled_owned(ending));
        }
        let renewal = renew(
            runner.clone(),
            Arc::clone(&blobs),
            options.lease,
            stop.clone(),
        );
        TaskTracker::new().spawn(renewal);
        Self {
            waiting: unmet::Waiting::new(&options),
            options,
            blobs,
            actions,
            generation,
            runner,
            resident: Resident::within(RESIDENT),
            memory,
            random: SystemRandom::new(),
            tokens: Tokens::new(),
            admissions: Admissions::default(),
            readers: Arc::new(Semaphore::new(MAX_READERS)),
            is_for_nodes: false,
            guests: GuestJobs::default(),
            measuring: Mutex::default(),
            epoch: SystemTime::now(),
            _stop: stop.drop_guard(),
        }
    }

    /// Refuses the actions of clients, and accepts those of other nodes only.
    #[must_use]
    pub fn for_nodes(self) -> Self {
        Self {
            is_for_nodes: true,
            ..self
        }
    }

    /// Returns whether clients may execute actions.
    pub const fn is_for_clients(&self) -> bool {
        !self.is_for_nodes
    }

    /// Checks an action and returns its cached result, or queues it (REAPI `Execute`). A cached result reserves
    /// `memory`. Every failure is found before the action is queued. With `is_here`, the action is not handed over.
    pub async fn execute(
        &self,
        instance: InstanceName,
        digest: &Digest,
        request: &ExecuteRequest,
        metadata: Option<&RequestMetadata>,
        memory: &Budget,
        is_here: bool,
    ) -> Result<Execution, Failure> {
        let begin = Instant::now();
        let admitted = loop {
            let admitted = self.admit(&instance, digest, request, metadata, memory, is_here);
            match (admitted.await, &self.options.peer_platforms) {
                // Only the request is in memory meanwhile.
                (Err(Failure::NoNode { platform, why }), Some(peers)) => {
                    let waited = self.waiting.wait(peers, &platform, begin, why);
                    if let Err(failure) = waited.await {
                        break Err(failure);
                    }
                }
                (admitted, _) => break admitted,
            }
        };
        self.admissions.record(&admitted);
        admitted
    }

    async fn admit(
        &self,
        instance: &InstanceName,
        digest: &Digest,
        request: &ExecuteRequest,
        metadata: Option<&RequestMetadata>,
        memory: &Budget,
        is_here: bool,
    ) -> Result<Execution, Failure> {
        self.check_role()?;
        let queued = SystemTime::now();
        check_inline(&request.inline_output_files)?;
        let (digest, action) = read_action(&*self.blobs, digest).await?;
        let action = CheckedAction::new(action, digest.function(), &self.options)?;
        let id = self.random_id()?;
        let head = OperationHead {
            queued: Some(queued),
            ..self.head(instance, id, digest)
        };
        if !request.skip_cache_lookup
            && !action.do_not_cache
            && let Some(found) = self.cached(instance, &digest, memory).await?
        {
            let cached = CachedExecution { head, found };
            return Ok(Execution::Cached(Box::new(cached)));
        }
        let admission = Admission {
            options: &self.options,
            blobs: &*self.blobs,
            resident: &self.resident,
            instance: instance.clone(),
            digest,
            kind: kind_of(&action, metadata),
            action,
            queued,
            entry: None,
            is_here,
        };
        let job = match admission.job(request).await {
            Err(failure @ Failure::Missing(_)) if failure.is_long() => {
                return Ok(Execution::Ended(head.failed(&failure)));
            }
            job => job?,
        };
        let memory = self.memory.estimate(&job.kind);
        let request = to_schedule(job, request, metadata, memory);
        let watch = self.runner.submit(id, &request).map_err(refused)?;
        Ok(Execution::Queued(Box::new(Watcher::new(watch, head))))
    }

    /// Returns the settings. Without a worker, there are no slots, no memory and no platform.
    pub const fn options(&self) -> &Options {
        &self.options
    }

    /// Records the memory that an action of this node used on another, for the estimate of the next of its kind.
    pub fn record_memory(&self, job: &Job, response: &ExecuteResponse) {
        if let Some(peak) = publish::peak_of(response) {
            self.memory.record(&job.kind, peak);
        }
    }

    fn check_role(&self) -> Result<(), Failure> {
        if self.is_for_nodes {
            let why = "this node runs actions of other nodes only (`cluster.role: worker`): send them to a node of the \
                       cluster with `cluster.role: node`";
            return Err(Failure::Unmet(why.to_owned()));
        }
        Ok(())
    }

    /// Returns the stores and settings for reading and checking an action.
    pub(crate) fn parts(&self) -> (&Options, &dyn BlobStore, &Arc<Resident>) {
        (&self.options, &*self.blobs, &self.resident)
    }

    pub(crate) const fn guest_jobs(&self) -> &GuestJobs {
        &self.guests
    }

    async fn cached(
        &self,
        instance: &InstanceName,
        digest: &Digest,
        memory: &Budget,
    ) -> Result<Option<CachedResult>, Failure> {
        match self.actions.get(instance.as_str(), digest, memory).await {
            Ok(found) => Ok(Some(found)),
            Err(error @ Error::Unavailable(_)) => Err(Failure::from_store(error)),
            Err(error) => {
                debug!(instance = instance.as_str(), %error, "action cache miss");
                Ok(None)
            }
        }
    }

    /// Runs the actions that are to be verified a second time on the worker of this executor, until it shuts down.
    pub fn verify(
        &self,
        worker: Arc<NodeWorker>,
        checks: Checks,
    ) -> impl Future<Output = ()> + Send + use<> {
        let id = WorkerId::new(&self.options.node);
        let resident = Arc::clone(&self.resident);
        verify(self.runner.clone(), id, worker, resident, checks)
    }

    /// The requests that ended without an attempt.
    pub const fn admissions(&self) -> &Admissions {
        &self.admissions
    }

    /// Returns the queue and the slots, for other nodes.
    pub fn scheduler(&self) -> Runner<Job, ExecuteResponse> {
        self.runner.clone()
    }

    /// Returns this run of the node, which is part of the names of its operations.
    pub const fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Returns the numbers of the scheduler.
    pub fn totals(&self) -> Totals {
        self.runner.totals()
    }

    /// Refuses new actions, and lets the others end within `drain`. Then stops those that are left.
    pub async fn shut_down(&self, drain: Duration) {
        self.runner.shut_down(drain).await;
    }
}

impl Failure {
    /// Returns whether the status is too long for trailers.
    const fn is_long(&self) -> bool {
        matches!(self, Self::Missing(digests) if digests.len() > MISSING_IN_TRAILERS)
    }
}

/// Creates the request of a job to the scheduler.
fn to_schedule(
    job: Arc<Job>,
    request: &ExecuteRequest,
    metadata: Option<&RequestMetadata>,
    memory: u64,
) -> Request<Job> {
    let text = |field: fn(&RequestMetadata) -> &String| metadata.map(field).cloned();
    let priority = request.execution_policy.as_ref();
    Request {
        key: Arc::clone(&job.key),
        do_not_cache: job.do_not_cache,
        build: text(|metadata| &metadata.tool_invocation_id).unwrap_or_default(),
        priority: priority.map_or(0, |policy| policy.priority),
        platform: Arc::clone(&job.platform),
        memory,
        target: text(|metadata| &metadata.target_id).unwrap_or_default(),
        mnemonic: text(|metadata| &metadata.action_mnemonic).unwrap_or_default(),
        job,
    }
}

fn refused(why: Refused) -> Failure {
    match why {
        Refused::Full(_) => Failure::QueueFull(format!("{why} (`execution.queue_size`)")),
        Refused::Draining => Failure::Unavailable(why.to_string()),
        Refused::Exists(_) => Failure::Internal(why.to_string()),
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = self.runner.totals();
        f.debug_struct("Executor")
            .field("totals", &totals)
            .finish_non_exhaustive()
    }
}
