//! The executor: the front of the scheduler for clients.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use gorego_limits::Budget;
use gorego_scheduler::{
    ActionKey, Capacity, Generation, OperationId, OperationName, Refused, Request, Runner, Stage,
    Totals, Worker, WorkerId,
};
use gorego_storage::{ActionCache, BlobStore, CachedResult, Digest, Error, InstanceName, shorten};
use reapi::{
    longrunning::Operation,
    v2::{ExecuteRequest, ExecuteResponse, RequestMetadata},
};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::debug;

use crate::{
    Admissions, Checks, Failure, Job, NodeWorker, Options,
    action::CheckedAction,
    admit::{Admission, read_action},
    command::check_inline,
    inputs::Resident,
    leases::renew,
    operation::{CachedExecution, OperationHead, Watcher},
    verify::verify,
};

/// The memory for the inputs of all actions that are checked, queued or running, in bytes.
const RESIDENT: u64 = 512 << 20;
/// The most missing blobs that are reported as the status of a call. Its details are in the trailers, of which gRPC
/// clients take 8 KiB, so more of them are reported in an operation.
const MISSING_IN_TRAILERS: usize = 16;
/// The most operations on a page of a list.
const MAX_PAGE: usize = 1000;

/// Checks and queues the actions of clients, and keeps their operations.
pub struct Executor {
    options: Options,
    blobs: Arc<dyn BlobStore>,
    actions: Arc<dyn ActionCache>,
    generation: Generation,
    runner: Runner<Job, ExecuteResponse>,
    resident: Resident,
    random: SystemRandom,
    admissions: Admissions,
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

/// A page of a list of operations.
#[derive(Debug, Default)]
pub struct OperationPage {
    /// The queued and running operations, the oldest first.
    pub operations: Vec<Operation>,
    /// The position of the next page; `None` on the last one.
    pub next: Option<usize>,
}

impl Executor {
    /// Creates an executor with one worker, in the current tokio runtime. `actions` returns complete results only.
    pub fn new(
        options: Options,
        blobs: Arc<dyn BlobStore>,
        actions: Arc<dyn ActionCache>,
        generation: Generation,
        worker: Arc<dyn Worker<Job, ExecuteResponse>>,
    ) -> Self {
        let runner = Runner::new(options.scheduler.clone());
        let capacity = Capacity {
            slots: usize::try_from(options.concurrency).unwrap_or(usize::MAX),
            memory: options.memory,
        };
        runner.add_worker(WorkerId::new(&options.node), capacity, worker);
        let stop = CancellationToken::new();
        let renewal = renew(
            runner.clone(),
            Arc::clone(&blobs),
            options.lease,
            stop.clone(),
        );
        TaskTracker::new().spawn(renewal);
        Self {
            options,
            blobs,
            actions,
            generation,
            runner,
            resident: Resident::within(RESIDENT),
            random: SystemRandom::new(),
            admissions: Admissions::default(),
            epoch: SystemTime::now(),
            _stop: stop.drop_guard(),
        }
    }

    /// Checks an action and returns its cached result, or queues it (REAPI `Execute`). A cached result reserves
    /// `memory`. Every failure is found before the action is queued.
    pub async fn execute(
        &self,
        instance: InstanceName,
        digest: &Digest,
        request: &ExecuteRequest,
        metadata: Option<&RequestMetadata>,
        memory: &Budget,
    ) -> Result<Execution, Failure> {
        let admitted = self
            .admit(instance, digest, request, metadata, memory)
            .await;
        self.admissions.record(&admitted);
        admitted
    }

    async fn admit(
        &self,
        instance: InstanceName,
        digest: &Digest,
        request: &ExecuteRequest,
        metadata: Option<&RequestMetadata>,
        memory: &Budget,
    ) -> Result<Execution, Failure> {
        let queued = SystemTime::now();
        check_inline(&request.inline_output_files)?;
        let (digest, action) = read_action(&*self.blobs, digest).await?;
        let action = CheckedAction::new(action, digest.function(), &self.options)?;
        let id = self.random_id()?;
        let head = OperationHead {
            queued: Some(queued),
            ..self.head(&instance, id, digest)
        };
        if !request.skip_cache_lookup
            && !action.do_not_cache
            && let Some(found) = self.cached(&instance, &digest, memory).await?
        {
            let cached = CachedExecution { head, found };
            return Ok(Execution::Cached(Box::new(cached)));
        }
        let admission = Admission {
            options: &self.options,
            blobs: &*self.blobs,
            resident: &self.resident,
            instance,
            digest,
            action,
            queued,
        };
        let job = match admission.job(request).await {
            Err(failure @ Failure::Missing(_)) if failure.is_long() => {
                return Ok(Execution::Ended(head.failed(&failure)));
            }
            job => job?,
        };
        let request = to_schedule(job, request, metadata);
        let watch = self.runner.submit(id, &request).map_err(refused)?;
        Ok(Execution::Queued(Box::new(Watcher::new(watch, head))))
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
        verify(self.runner.clone(), id, worker, checks)
    }

    /// The requests that ended without an attempt.
    pub const fn admissions(&self) -> &Admissions {
        &self.admissions
    }

    /// Returns the numbers of the scheduler.
    pub fn totals(&self) -> Totals {
        self.runner.totals()
    }

    /// Watches an operation (REAPI `WaitExecution`).
    pub fn wait(&self, name: &str) -> Result<Watcher, Failure> {
        let (head, id, _) = self.find(name)?;
        let watch = self.runner.watch(id);
        let watch = watch.ok_or_else(|| unknown(name))?;
        Ok(Watcher::new(watch, head))
    }

    /// Returns the state of an operation.
    pub fn get(&self, name: &str) -> Result<Operation, Failure> {
        let (head, _, stage) = self.find(name)?;
        head.operation(&stage)
    }

    /// Returns the queued and running operations from position `from` on, at most `most` and at most a thousand; with an
    /// instance, only those of it. Operations that are merged are one. Positions shift when operations end.
    pub fn list(&self, instance: Option<&InstanceName>, from: usize, most: usize) -> OperationPage {
        let end = from.saturating_add(most.clamp(1, MAX_PAGE));
        let listed = self.runner.list(end.saturating_add(1));
        let next = (listed.len() > end).then_some(end);
        let page = listed.into_iter().take(end).skip(from);
        let page = page.filter(|action| instance.is_none_or(|of| *of == action.key.instance));
        let operations = page.map(|action| {
            let head = self.head(&action.key.instance, action.operation, action.key.action);
            let head = OperationHead {
                queued: SystemTime::now().checked_sub(action.age),
                ..head
            };
            head.listed(action)
        });
        let operations = operations.collect();
        OperationPage { operations, next }
    }

    /// Ends an operation, and its action unless others wait for it. A completed one stays as it is.
    pub fn cancel(&self, name: &str) -> Result<(), Failure> {
        let (_, id, _) = self.find(name)?;
        self.runner.cancel(id);
        Ok(())
    }

    /// Drops a completed operation.
    pub fn forget(&self, name: &str) -> Result<(), Failure> {
        let (_, id, _) = self.find(name)?;
        if self.runner.forget(id) {
            return Ok(());
        }
        let why = format!("operation {name} has not ended: cancel it first");
        Err(Failure::Unmet(why))
    }

    /// Refuses new actions, and lets the others end within `drain`. Then stops those that are left.
    pub async fn shut_down(&self, drain: Duration) {
        self.runner.shut_down(drain).await;
    }

    /// Finds the operation of this name. Only a client that got the name knows its random part.
    fn find(
        &self,
        name: &str,
    ) -> Result<(OperationHead, OperationId, Stage<ExecuteResponse>), Failure> {
        let parsed = OperationName::parse(name).map_err(|why| Failure::invalid("name", why))?;
        let id = parsed.id;
        let found = self.runner.get(id);
        let found = found.filter(|(key, _)| {
            parsed.generation == self.generation && parsed.instance == key.instance
        });
        let (key, stage) = found.ok_or_else(|| unknown(name))?;
        Ok((self.head(&key.instance, id, key.action), id, stage))
    }

    fn head(&self, instance: &InstanceName, id: OperationId, action: Digest) -> OperationHead {
        let name = OperationName {
            instance: instance.clone(),
            generation: self.generation.clone(),
            id,
        };
        OperationHead {
            name: name.to_string(),
            action,
            queued: None,
            epoch: self.epoch,
        }
    }

    /// Returns an id that no client can guess.
    fn random_id(&self) -> Result<OperationId, Failure> {
        let mut id = [0; 16];
        let filled = self.random.fill(&mut id);
        filled.map_err(|_| Failure::Internal("the system has no random numbers".to_owned()))?;
        Ok(OperationId(u128::from_le_bytes(id)))
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
) -> Request<Job> {
    let text = |field: fn(&RequestMetadata) -> &String| metadata.map(field).cloned();
    let priority = request.execution_policy.as_ref();
    Request {
        key: ActionKey {
            instance: job.instance.clone(),
            action: job.action,
        },
        do_not_cache: job.do_not_cache,
        build: text(|metadata| &metadata.tool_invocation_id).unwrap_or_default(),
        priority: priority.map_or(0, |policy| policy.priority),
        // The platform was checked, and there is one worker.
        platform: "".into(),
        memory: 0,
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

fn unknown(name: &str) -> Failure {
    Failure::UnknownOperation(format!(
        "no operation {}: it expired, or this server has started again since",
        shorten(name)
    ))
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = self.runner.totals();
        f.debug_struct("Executor")
            .field("totals", &totals)
            .finish_non_exhaustive()
    }
}
