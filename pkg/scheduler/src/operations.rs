//! The operations of clients: live ones with their watchers, and completed ones until they expire.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use crate::{
    name::OperationId,
    queue::{LineId, Rank},
    state::{ActionKey, End, Options, Time},
    table::shrink,
};

/// The operation of one call of Execute.
#[derive(Debug)]
pub(crate) struct Operation<O> {
    pub(crate) key: Arc<ActionKey>,
    pub(crate) state: OperationState<O>,
}

#[derive(Debug)]
pub(crate) enum OperationState<O> {
    Live(Live),
    /// The end, and the bytes of the outcome that are counted here.
    Completed(End<O>, u64),
}

/// An operation that waits for its execution.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) execution: u64,
    /// The position among the execution's operations.
    pub(crate) position: usize,
    pub(crate) build: Arc<str>,
    pub(crate) rank: Rank,
    /// The line with the operation's entry; `None` while the execution runs.
    pub(crate) line: Option<LineId>,
    watchers: u32,
    /// The time at which the operation is abandoned, if it has no watcher.
    deadline: Option<Time>,
}

impl Live {
    /// A live operation with one watcher.
    pub(crate) fn new(execution: u64, position: usize, build: Arc<str>, rank: Rank) -> Self {
        Self {
            execution,
            position,
            build,
            rank,
            line: None,
            watchers: 1,
            deadline: None,
        }
    }
}

/// All operations.
#[derive(Debug)]
pub(crate) struct Operations<O> {
    all: HashMap<OperationId, Box<Operation<O>>>,
    live: usize,
    /// The live operations without a watcher, by the time at which they are abandoned.
    unwatched: BTreeSet<(Time, OperationId)>,
    /// The completed operations in the order of their ends.
    completed: VecDeque<(Time, OperationId)>,
    completed_bytes: u64,
}

impl<O> Operations<O> {
    pub(crate) fn new() -> Self {
        Self {
            all: HashMap::new(),
            live: 0,
            unwatched: BTreeSet::new(),
            completed: VecDeque::new(),
            completed_bytes: 0,
        }
    }

    pub(crate) fn get(&self, id: OperationId) -> Option<&Operation<O>> {
        self.all.get(&id).map(Box::as_ref)
    }

    pub(crate) fn live(&self, id: OperationId) -> Option<&Live> {
        match &self.all.get(&id)?.state {
            OperationState::Live(live) => Some(live),
            OperationState::Completed(..) => None,
        }
    }

    pub(crate) fn live_mut(&mut self, id: OperationId) -> Option<&mut Live> {
        match &mut self.all.get_mut(&id)?.state {
            OperationState::Live(live) => Some(live),
            OperationState::Completed(..) => None,
        }
    }

    /// The number of live operations.
    pub(crate) fn count_live(&self) -> usize {
        self.live
    }

    /// The number of completed operations that are kept, and their bytes.
    pub(crate) fn count_completed(&self) -> (usize, u64) {
        (self.completed.len(), self.completed_bytes)
    }

    pub(crate) fn insert(&mut self, id: OperationId, key: Arc<ActionKey>, live: Live) {
        let state = OperationState::Live(live);
        self.all.insert(id, Box::new(Operation { key, state }));
        self.live += 1;
    }

    /// Adds a watcher. Returns false if the operation is unknown.
    pub(crate) fn attach(&mut self, id: OperationId) -> bool {
        let Some(operation) = self.all.get_mut(&id) else {
            return false;
        };
        if let OperationState::Live(live) = &mut operation.state {
            live.watchers = live.watchers.saturating_add(1);
            if let Some(deadline) = live.deadline.take() {
                self.unwatched.remove(&(deadline, id));
            }
        }
        true
    }

    /// Removes a watcher. The last one's leave starts the time until `deadline`.
    pub(crate) fn detach(&mut self, id: OperationId, deadline: Time) {
        if let Some(live) = self.live_mut(id)
            && live.watchers > 0
        {
            live.watchers -= 1;
            if live.watchers == 0 {
                live.deadline = Some(deadline);
                self.unwatched.insert((deadline, id));
            }
        }
    }

    /// Ends a live operation, whose outcome has `bytes`. Returns its last state; `None` if it is not live.
    pub(crate) fn complete(
        &mut self,
        id: OperationId,
        end: End<O>,
        bytes: u64,
        now: Time,
    ) -> Option<Live> {
        let operation = self.all.get_mut(&id)?;
        let completed = OperationState::Completed(end, bytes);
        let live = match std::mem::replace(&mut operation.state, completed) {
            OperationState::Live(live) => live,
            before @ OperationState::Completed(..) => {
                operation.state = before;
                return None;
            }
        };
        self.live -= 1;
        if let Some(deadline) = live.deadline {
            self.unwatched.remove(&(deadline, id));
        }
        self.completed.push_back((now, id));
        self.completed_bytes = self.completed_bytes.saturating_add(bytes);
        Some(live)
    }

    /// Drops the completed operations that are too old or too many, the oldest first.
    pub(crate) fn expire(&mut self, options: &Options, now: Time) {
        while let Some((ended, id)) = self.completed.front().copied()
            && (self.completed.len() > options.max_completed
                || self.completed_bytes > options.max_completed_bytes
                || now.saturating_sub(ended) >= options.retain_completed)
        {
            self.completed.pop_front();
            self.forget(id);
        }
    }

    /// Drops a completed operation. Returns false if the operation is live or unknown.
    pub(crate) fn forget(&mut self, id: OperationId) -> bool {
        let Some(OperationState::Completed(_, bytes)) = self.all.get(&id).map(|o| &o.state) else {
            return false;
        };
        self.completed_bytes = self.completed_bytes.saturating_sub(*bytes);
        self.all.remove(&id);
        shrink(&mut self.all);
        true
    }

    /// Takes an operation that is abandoned at `now`.
    pub(crate) fn take_abandoned(&mut self, now: Time) -> Option<OperationId> {
        let first = self.unwatched.first().copied()?;
        let (deadline, id) = first;
        (deadline <= now && self.unwatched.remove(&first)).then_some(id)
    }

    /// Returns the time of the next abandonment or expiry.
    pub(crate) fn deadline(&self, options: &Options) -> Option<Time> {
        let abandoned = self.unwatched.first().map(|(deadline, _)| *deadline);
        let completed = self.completed.front();
        let expired = completed.map(|(ended, _)| ended.saturating_add(options.retain_completed));
        abandoned.into_iter().chain(expired).min()
    }
}
