//! The runner: a scheduler with a clock, watchers, and workers of this process.

mod closed;
mod foreign;
mod idle;
mod peers;
#[cfg(test)]
mod tests;

pub use foreign::{Foreign, ForeignSlot};
pub use idle::IdleSlot;

use std::{
    collections::HashMap,
    fmt,
    future::pending,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    ledger::{AttemptId, Capacity, WorkerId},
    name::OperationId,
    scheduler::{Claimed, EndedAction, ListedAction, Scheduler, Taker, Totals},
    state::{ActionKey, Effect, Grant, Options, Refused, Report, Request, Stage, Time},
    table::shrink,
    watch::Watch,
    worker::{Attempt, Worker},
};

/// Runs actions on workers in the order of a [`Scheduler`]. Cheap to clone. When the last clone is dropped, attempts
/// are told to stop.
pub struct Runner<J, O> {
    shared: Arc<Shared<J, O>>,
    tasks: TaskTracker,
    stop: Arc<StopOnDrop>,
}

impl<J, O> Clone for Runner<J, O> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            tasks: self.tasks.clone(),
            stop: Arc::clone(&self.stop),
        }
    }
}

impl<J, O> fmt::Debug for Runner<J, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").finish_non_exhaustive()
    }
}

/// Ends the tasks of a runner with its last clone.
struct StopOnDrop(CancellationToken);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// The part of a runner that its tasks and its watchers share.
pub(crate) struct Shared<J, O> {
    start: Instant,
    state: Mutex<RunnerState<J, O>>,
    /// Wakes the tasks that claim or wait for a deadline, or for the end of all operations.
    changed: watch::Sender<()>,
    /// Notified of changes of the numbers that peers are offered.
    queue: watch::Sender<()>,
    /// The receiver of slots for other nodes.
    foreign: OnceLock<Arc<dyn Foreign<J, O>>>,
}

struct RunnerState<J, O> {
    scheduler: Scheduler<J, O>,
    /// The newest stage of each live operation that has watchers.
    stages: HashMap<OperationId, watch::Sender<Stage<O>>>,
    /// The attempts that run here.
    attempts: HashMap<AttemptId, CancellationToken>,
    /// The receiver of the attempts that peers have to stop.
    stops: Option<mpsc::UnboundedSender<AttemptId>>,
}

impl<J, O> Shared<J, O> {
    /// Applies an event, and carries out its effects.
    fn apply<T>(&self, event: impl FnOnce(&mut RunnerState<J, O>, Time) -> T) -> T {
        let mut state = self.state.lock();
        let before = state.scheduler.deadline();
        let version = state.scheduler.queue_version();
        let value = event(&mut state, self.start.elapsed());
        let mut wakes = state.scheduler.deadline() != before;
        let is_requeued = state.scheduler.queue_version() != version;
        for effect in state.scheduler.take_effects() {
            match effect {
                Effect::Claim => wakes = true,
                Effect::Stop(_, attempt) => {
                    if let Some(stop) = state.attempts.get(&attempt) {
                        stop.cancel();
                    } else if let Some(stops) = &state.stops {
                        // This fails if the receiver is gone.
                        let _ = stops.send(attempt);
                    }
                }
                Effect::Notify(id, stage) => {
                    wakes |= matches!(stage, Stage::Completed(_));
                    state.notify(id, stage);
                }
            }
        }
        drop(state);
        if wakes {
            self.changed.send_replace(());
        }
        if is_requeued {
            self.queue.send_replace(());
        }
        value
    }

    /// Removes a watcher, which no longer receives stages.
    pub(crate) fn detach(&self, id: OperationId) {
        self.apply(|state, now| {
            state.scheduler.detach(id, now);
            // A channel takes half a kibibyte.
            let stages = state.stages.get(&id);
            if stages.is_some_and(|stages| stages.receiver_count() == 0) {
                state.stages.remove(&id);
                shrink(&mut state.stages);
            }
        });
    }
}

impl<J, O> RunnerState<J, O> {
    fn notify(&mut self, id: OperationId, stage: Stage<O>) {
        if matches!(stage, Stage::Completed(_)) {
            if let Some(stages) = self.stages.remove(&id) {
                stages.send_replace(stage);
                shrink(&mut self.stages);
            }
        } else if let Some(stages) = self.stages.get(&id) {
            stages.send_replace(stage);
        }
    }
}

impl<J, O> Runner<J, O>
where
    J: Send + Sync + 'static,
    O: Send + Sync + 'static,
{
    /// Creates a runner without workers, in the current tokio runtime.
    pub fn new(options: Options) -> Self {
        let state = RunnerState {
            scheduler: Scheduler::new(options),
            stages: HashMap::new(),
            attempts: HashMap::new(),
            stops: None,
        };
        let shared = Arc::new(Shared {
            start: Instant::now(),
            state: Mutex::new(state),
            changed: watch::Sender::default(),
            queue: watch::Sender::default(),
            foreign: OnceLock::new(),
        });
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.spawn(keep_time(Arc::clone(&shared), stop.clone()));
        Self {
            shared,
            tasks,
            stop: Arc::new(StopOnDrop(stop)),
        }
    }

    /// Adds a worker, which gets attempts from now on.
    pub fn add_worker(&self, id: WorkerId, capacity: Capacity, worker: Arc<dyn Worker<J, O>>) {
        self.add_worker_with_max_memory(id, capacity, capacity.memory, worker);
    }

    /// Adds a worker that can make `max_memory` bytes free for one attempt, which may be more than `capacity.memory`.
    pub fn add_worker_with_max_memory(
        &self,
        id: WorkerId,
        capacity: Capacity,
        max_memory: u64,
        worker: Arc<dyn Worker<J, O>>,
    ) {
        let fitting = Arc::clone(&worker);
        let taker = Taker {
            worker: id.clone(),
            memory: max_memory,
            fits: Arc::new(move |platform| fitting.fits(platform)),
        };
        self.shared.apply(|state, _| {
            state.scheduler.set_worker(&id, capacity);
            state.scheduler.set_taker(taker);
        });
        let claimant = Claimant {
            shared: Arc::clone(&self.shared),
            tasks: self.tasks.clone(),
            stop: self.stop.0.clone(),
            id,
            worker,
        };
        self.tasks.spawn(claimant.run());
    }

    /// Submits an action as a new operation ([`Scheduler::submit`]). Returns its first watcher.
    pub fn submit(&self, id: OperationId, request: &Request<J>) -> Result<Watch<J, O>, Refused> {
        self.shared.apply(|state, now| {
            let first = state.scheduler.submit(id, request, now)?;
            Ok(self.watch_from(state, id, first))
        })
    }

    /// Adds a watcher to an operation; `None` if the operation is unknown.
    pub fn watch(&self, id: OperationId) -> Option<Watch<J, O>> {
        self.shared.apply(|state, _| {
            let first = state.scheduler.attach(id)?;
            Some(self.watch_from(state, id, first))
        })
    }

    /// Returns a watcher of an operation whose stage is `first`.
    fn watch_from(
        &self,
        state: &mut RunnerState<J, O>,
        id: OperationId,
        first: Stage<O>,
    ) -> Watch<J, O> {
        let stages = (!matches!(first, Stage::Completed(_))).then(|| {
            let sender = || watch::Sender::new(first.clone());
            state.stages.entry(id).or_insert_with(sender).subscribe()
        });
        Watch::new(id, Arc::clone(&self.shared), first, stages)
    }

    /// Ends an operation ([`Scheduler::cancel`]). Returns false if the operation is unknown.
    pub fn cancel(&self, id: OperationId) -> bool {
        let event = |state: &mut RunnerState<J, O>, now| state.scheduler.cancel(id, now);
        self.shared.apply(event)
    }

    /// Drops a completed operation. Returns false if the operation is live or unknown.
    pub fn forget(&self, id: OperationId) -> bool {
        let event = |state: &mut RunnerState<J, O>, _| state.scheduler.forget(id);
        self.shared.apply(event)
    }

    /// Returns an operation's action and stage; `None` if the operation is unknown.
    pub fn get(&self, id: OperationId) -> Option<(ActionKey, Stage<O>)> {
        let scheduler = &self.shared.state.lock().scheduler;
        Some((scheduler.key(id)?.clone(), scheduler.stage(id)?))
    }

    /// Returns the work of an operation; `None` if it is unknown, or has ended.
    pub fn job(&self, id: OperationId) -> Option<Arc<J>> {
        self.shared.state.lock().scheduler.job(id).map(Arc::clone)
    }

    /// Returns at most `most` of the queued and running actions, the oldest first.
    pub fn list(&self, most: usize) -> Vec<ListedAction<J>> {
        let now = self.shared.start.elapsed();
        let scheduler = &self.shared.state.lock().scheduler;
        scheduler.list(now).take(most).collect()
    }

    /// Returns the work of the queued and running actions, the oldest first.
    pub fn jobs(&self) -> Vec<Arc<J>> {
        let scheduler = &self.shared.state.lock().scheduler;
        scheduler.jobs().cloned().collect()
    }

    /// Returns the actions that ended last, the newest first, with the ends of those whose operation is still known.
    pub fn recent(&self) -> Vec<(EndedAction, Option<Stage<O>>)> {
        let scheduler = &self.shared.state.lock().scheduler;
        let recent = scheduler.recent();
        let with_end = |action: &EndedAction| (action.clone(), scheduler.stage(action.operation));
        recent.map(with_end).collect()
    }

    /// Returns the current numbers.
    pub fn totals(&self) -> Totals {
        self.shared.state.lock().scheduler.totals()
    }

    /// Refuses new operations, ends the queued ones, and lets the running ones end within `drain`, also those of other
    /// nodes. Then ends the rest, stops its attempts, and waits until their workers have returned.
    pub async fn shut_down(&self, drain: Duration) {
        let begin = |state: &mut RunnerState<J, O>, now| state.scheduler.drain(now);
        self.shared.apply(begin);
        let mut changed = self.shared.changed.subscribe();
        let idle = changed.wait_for(|()| {
            let scheduler = &self.shared.state.lock().scheduler;
            scheduler.totals().live == 0 && scheduler.count_foreign() == 0
        });
        // The time limit has no other consequence than the end of the rest.
        let _ = timeout(drain, idle).await;
        let end_all = |state: &mut RunnerState<J, O>, now| state.scheduler.shut_down(now);
        self.shared.apply(end_all);
        self.stop.0.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Ends abandoned operations and drops expired ones at their time, and ends all operations with the runner.
async fn keep_time<J, O>(shared: Arc<Shared<J, O>>, stop: CancellationToken) {
    let mut changed = shared.changed.subscribe();
    loop {
        changed.borrow_and_update();
        let deadline = shared.state.lock().scheduler.deadline();
        let deadline = deadline.and_then(|deadline| shared.start.checked_add(deadline));
        let due = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            () = due => shared.apply(|state, now| state.scheduler.tick(now)),
            _ = changed.changed() => {}
        }
    }
    shared.apply(|state, now| state.scheduler.shut_down(now));
}

/// The claims of one worker.
struct Claimant<J, O> {
    shared: Arc<Shared<J, O>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    id: WorkerId,
    worker: Arc<dyn Worker<J, O>>,
}

impl<J: Send + Sync + 'static, O: Send + Sync + 'static> Claimant<J, O> {
    async fn run(self) {
        let mut changed = self.shared.changed.subscribe();
        loop {
            changed.borrow_and_update();
            loop {
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = self.worker.ready() => {}
                }
                if !self.claim() {
                    break;
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = changed.changed() => {}
            }
        }
    }

    /// Claims work for a free slot, and starts it. Returns false if there is none.
    fn claim(&self) -> bool {
        let stop = self.stop.child_token();
        let claimed = self.shared.apply(|state, now| {
            let fits = |platform: &str| self.worker.fits(platform);
            let claimed = state.scheduler.claim(&self.id, fits, now)?;
            let attempt = match &claimed {
                Claimed::Own(grant) => grant.attempt,
                Claimed::Foreign(claim) => claim.attempt,
            };
            state.attempts.insert(attempt, stop.clone());
            let running = RunningAttempt {
                shared: Arc::clone(&self.shared),
                id: attempt,
            };
            Some((claimed, running))
        });
        match claimed {
            Some((Claimed::Own(grant), running)) => self.start(grant, running, stop),
            Some((Claimed::Foreign(claim), attempt)) => {
                let slot = ForeignSlot {
                    attempt,
                    worker: Arc::clone(&self.worker),
                    claim,
                    stop,
                };
                if let Some(foreign) = self.shared.foreign.get() {
                    foreign.claimed(slot);
                }
            }
            None => return false,
        }
        true
    }

    fn start(&self, grant: Grant<J>, running: RunningAttempt<J, O>, stop: CancellationToken) {
        let id = grant.attempt;
        let shared = Arc::clone(&self.shared);
        let progress = move |phase| {
            shared.apply(|state, now| state.scheduler.progress(id, phase, now));
        };
        let attempt = Attempt {
            grant,
            stop,
            progress: Arc::new(progress),
        };
        let worker = Arc::clone(&self.worker);
        self.tasks.spawn(async move {
            let report = worker.run(attempt).await;
            running.report(report);
        });
    }
}

/// An attempt that has not been reported. If dropped so, it is reported as stopped.
struct RunningAttempt<J, O> {
    shared: Arc<Shared<J, O>>,
    id: AttemptId,
}

impl<J, O> RunningAttempt<J, O> {
    fn report(&self, report: Report<O>) {
        self.shared.apply(|state, now| {
            if state.attempts.remove(&self.id).is_some() {
                state.scheduler.report(self.id, report, now);
            }
        });
    }
}

impl<J, O> Drop for RunningAttempt<J, O> {
    fn drop(&mut self) {
        self.report(Report::Stopped);
    }
}
