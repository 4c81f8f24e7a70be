//! The state machine: events of clients. Those of workers are in its modules.

mod ahead;
mod claim;
mod closed;
mod foreign;
mod idle;
mod list;
mod peers;
mod recent;
mod report;
mod takers;
#[cfg(test)]
mod tests;

pub use self::{
    claim::Claimed,
    foreign::ForeignClaim,
    list::{Ends, ListedAction, Totals},
    recent::EndedAction,
    takers::Taker,
};

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use self::{ahead::Named, foreign::ForeignQueue, recent::Recent, takers::Takers};
use crate::{
    execution::{Execution, MergeKey},
    ledger::Ledger,
    name::OperationId,
    operations::{Live, OperationState, Operations},
    queue::{Queue, Rank},
    state::{ActionKey, Effect, End, Options, Refused, Request, Stage, Time},
    table::shrink,
    text::truncated,
};

/// The longest id of a build, in bytes; a UUID has 36. Longer ones are cut.
const MAX_BUILD_LEN: usize = 128;

/// The scheduler of one node, with jobs `J` and outcomes `O`.
///
/// Each call of Execute has an operation of its own, with a name of its own. Operations of equal actions share one
/// execution. So a cancelled operation ends for the client that knows its name, and the execution goes on for the
/// others; it ends with its last operation. Each operation stands in the line of its own build with its own priority,
/// and the execution starts when the first of them has its turn.
///
/// Every operation ends exactly once. Its stages never go back, except from executing to queued when an attempt failed
/// or its worker was lost. An event costs time logarithmic in the number of operations.
#[derive(Debug)]
pub struct Scheduler<J, O> {
    options: Options,
    queue: Queue,
    ledger: Ledger,
    operations: Operations<O>,
    /// The executions that have not ended, in the order of their submission.
    executions: BTreeMap<u64, Box<Execution<J>>>,
    /// The executions that may be merged with, by their actions and platforms.
    mergeable: HashMap<MergeKey, u64>,
    /// The executions that have a current attempt.
    executing: usize,
    /// The queues of other nodes, under numbers that no execution has.
    foreign: BTreeMap<u64, ForeignQueue>,
    effects: Vec<Effect<O>>,
    /// Set once no new operations are accepted, and this node's workers get nothing more.
    draining: bool,
    /// Set while queued executions are left to peers.
    hands_over: bool,
    /// Set while neither new operations nor actions of other nodes are accepted.
    is_closed: bool,
    next: u64,
    ends: Ends,
    recent: Recent,
    takers: Takers,
    /// The queued executions whose inputs peers fetch ahead.
    ahead: Named,
}

impl<J, O> Scheduler<J, O> {
    /// Creates a scheduler without workers.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            queue: Queue::default(),
            ledger: Ledger::default(),
            operations: Operations::new(),
            executions: BTreeMap::new(),
            mergeable: HashMap::new(),
            executing: 0,
            foreign: BTreeMap::new(),
            effects: Vec::new(),
            draining: false,
            hands_over: false,
            is_closed: false,
            next: 0,
            ends: Ends::default(),
            recent: Recent::default(),
            takers: Takers::default(),
            ahead: Named::default(),
        }
    }

    /// Returns the effects since the last call, in order. To be called after every event.
    #[must_use]
    pub fn take_effects(&mut self) -> Vec<Effect<O>> {
        std::mem::take(&mut self.effects)
    }

    /// Queues an action as a new operation with one watcher, or merges it with an execution of the same action for the
    /// same platform. `id` is random. Returns the operation's stage.
    pub fn submit(
        &mut self,
        id: OperationId,
        request: &Request<J>,
        now: Time,
    ) -> Result<Stage<O>, Refused> {
        // One operation of each running execution is not counted.
        let waiting = self.operations.count_live().saturating_sub(self.executing);
        if self.draining || self.is_closed {
            return Err(Refused::Draining);
        }
        if self.operations.get(id).is_some() {
            return Err(Refused::Exists(id));
        }
        if waiting >= self.options.queue_size {
            return Err(Refused::Full(waiting));
        }
        self.next += 1;
        let new = Box::new(Execution::new(request, now));
        let merge_key = new.merge_key();
        let shared = self.mergeable.get(&merge_key);
        let shared = shared.filter(|_| !request.do_not_cache).copied();
        let number = shared.unwrap_or(self.next);
        let execution = self.executions.entry(number).or_insert(new);
        if shared.is_none() && !request.do_not_cache {
            self.mergeable.insert(merge_key, number);
        }
        let rank = Rank {
            first_run: true,
            priority: request.priority,
            number: self.next,
        };
        let build = truncated(&request.build, MAX_BUILD_LEN);
        let build = self.queue.build(build);
        let mut live = Live::new(number, execution.operations.len(), build, rank);
        let stage = execution.stage();
        if execution.running.is_none() {
            let line = self.queue.push(&live.build, &execution.class, rank, number);
            live.line = Some(line);
            if shared.is_none() {
                self.queue.count_execution(&execution.class);
            }
        }
        execution.operations.push(id);
        let key = Arc::clone(&execution.key);
        self.operations.insert(id, key, live);
        self.wake();
        Ok(stage)
    }

    /// Adds a watcher to an operation. Returns the operation's stage; `None` if the operation is unknown.
    pub fn attach(&mut self, id: OperationId) -> Option<Stage<O>> {
        self.operations.attach(id);
        self.stage(id)
    }

    /// Removes a watcher from an operation, which ends after `abandon_after` without one.
    pub fn detach(&mut self, id: OperationId, now: Time) {
        let deadline = now.saturating_add(self.options.abandon_after);
        self.operations.detach(id, deadline);
    }

    /// Ends an operation, and not the others of its execution. Returns false if the operation is unknown. A completed
    /// operation stays as it is.
    pub fn cancel(&mut self, id: OperationId, now: Time) -> bool {
        self.end_operation(id, End::Cancelled, now);
        self.operations.get(id).is_some()
    }

    /// Drops a completed operation. Returns false if the operation is live or unknown.
    pub fn forget(&mut self, id: OperationId) -> bool {
        self.operations.forget(id)
    }

    /// Returns an operation's stage; `None` if it is unknown, or expired.
    pub fn stage(&self, id: OperationId) -> Option<Stage<O>> {
        Some(match &self.operations.get(id)?.state {
            OperationState::Completed(end, _) => Stage::Completed(end.clone()),
            OperationState::Live(live) => self.executions.get(&live.execution)?.stage(),
        })
    }

    /// Returns the work of an operation; `None` if it is unknown, or has ended.
    pub fn job(&self, id: OperationId) -> Option<&Arc<J>> {
        let number = self.operations.live(id)?.execution;
        Some(&self.executions.get(&number)?.job)
    }

    /// Returns the action of an operation; `None` if the operation is unknown.
    pub fn key(&self, id: OperationId) -> Option<&ActionKey> {
        Some(&self.operations.get(id)?.key)
    }

    /// Ends abandoned operations and drops expired ones. To be called at [`Self::deadline`].
    pub fn tick(&mut self, now: Time) {
        while let Some(id) = self.operations.take_abandoned(now) {
            self.end_operation(id, End::Abandoned, now);
        }
        self.operations.expire(&self.options, now);
        self.end_rests(now);
        self.readmit_lost(now);
    }

    /// Returns the time of the next [`Self::tick`]; `None` if nothing is due without another event.
    pub fn deadline(&self) -> Option<Time> {
        let deadline = self.operations.deadline(&self.options);
        let deadlines = deadline.into_iter().chain(self.takers.deadline());
        deadlines.min()
    }

    /// Refuses new operations from now on, and leaves the queued ones to peers ([`Self::claim_for`]). This node's workers
    /// get nothing more, so executions that no peer may run end. To be ended with [`Self::drain`].
    pub fn hand_over(&mut self, now: Time) {
        self.leave_service(true);
        self.end_untaken(now);
    }

    /// Refuses new operations from now on, and ends the queued ones, so that their clients go to another node. Running
    /// ones go on; they do not run again after a failure.
    pub fn drain(&mut self, now: Time) {
        self.leave_service(false);
        self.end_all(|execution| execution.running.is_none(), now);
    }

    /// Ends all operations, and stops the running attempts.
    pub fn shut_down(&mut self, now: Time) {
        self.leave_service(false);
        self.stop_foreign();
        self.end_all(|_| true, now);
    }

    /// Refuses new work for the workers of this node.
    fn leave_service(&mut self, hands_over: bool) {
        self.draining = true;
        self.hands_over = hands_over;
        if !hands_over {
            self.takers = Takers::default();
        }
        self.stop_idle(None);
        self.forget_foreign();
    }

    fn end_all(&mut self, which: impl Fn(&Execution<J>) -> bool, now: Time) {
        let selected = self
            .executions
            .iter()
            .filter(|(_, execution)| which(execution));
        let selected: Vec<_> = selected.map(|(number, _)| *number).collect();
        for number in selected {
            self.end_execution(number, &End::ShutDown, 0, now);
        }
    }

    /// Ends one operation, and its execution with the last one.
    fn end_operation(&mut self, id: OperationId, end: End<O>, now: Time) {
        let Some(live) = self.operations.live(id) else {
            return;
        };
        let (number, position) = (live.execution, live.position);
        let Some(execution) = self.executions.get_mut(&number) else {
            return;
        };
        if execution.operations.len() <= 1 {
            self.end_execution(number, &end, 0, now);
            return;
        }
        execution.operations.swap_remove(position);
        if let Some(moved) = execution.operations.get(position)
            && let Some(moved) = self.operations.live_mut(*moved)
        {
            moved.position = position;
        }
        let class = execution.class.clone();
        if let Some(live) = self.operations.complete(id, end.clone(), 0, now)
            && let Some(line) = live.line
        {
            self.queue.remove(line, &class, live.rank);
        }
        self.effects.push(Effect::Notify(id, Stage::Completed(end)));
        self.operations.expire(&self.options, now);
    }

    /// Ends an execution and all its operations, and stops its running attempt.
    fn end_execution(&mut self, number: u64, end: &End<O>, bytes: u64, now: Time) {
        self.leave_queue(number);
        let Some(execution) = self.executions.remove(&number) else {
            return;
        };
        self.remember(&execution, now);
        match end {
            End::Outcome(_) => {}
            End::WorkersLost(_) => self.ends.failed += 1,
            End::Cancelled | End::Abandoned | End::ShutDown => self.ends.cancelled += 1,
        }
        if !execution.do_not_cache {
            self.mergeable.remove(&execution.merge_key());
            shrink(&mut self.mergeable);
        }
        if let Some(running) = execution.running {
            self.executing -= 1;
            if self.ledger.has_reservation(running.attempt) {
                let stop = Effect::Stop(running.worker, running.attempt);
                self.effects.push(stop);
            }
        }
        // The operations share one outcome, which is freed with the last of them.
        let last = execution.operations.last().copied();
        for id in execution.operations {
            let bytes = if last == Some(id) { bytes } else { 0 };
            self.operations.complete(id, end.clone(), bytes, now);
            let stage = Stage::Completed(end.clone());
            self.effects.push(Effect::Notify(id, stage));
        }
        self.operations.expire(&self.options, now);
    }

    /// Makes the workers with free slots claim again.
    fn wake(&mut self) {
        if !matches!(self.effects.last(), Some(Effect::Claim)) {
            self.effects.push(Effect::Claim);
        }
    }

    /// Removes the entries of an execution from the queue.
    fn leave_queue(&mut self, number: u64) {
        let Some(execution) = self.executions.get(&number) else {
            return;
        };
        if execution.running.is_some() {
            return;
        }
        self.ahead.remove(number);
        self.queue.uncount_execution(&execution.class);
        for id in &execution.operations {
            if let Some(live) = self.operations.live_mut(*id)
                && let Some(line) = live.line.take()
            {
                self.queue.remove(line, &execution.class, live.rank);
            }
        }
        if self.ledger.stop_draining(number) {
            self.wake();
        }
    }

    /// Notifies the watchers of all operations of an execution of its stage.
    fn notify(&mut self, number: u64) {
        if let Some(execution) = self.executions.get(&number) {
            let stage = execution.stage();
            let notify = |id: &OperationId| Effect::Notify(*id, stage.clone());
            self.effects.extend(execution.operations.iter().map(notify));
        }
    }
}
