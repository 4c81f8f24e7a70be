//! The slots and the memory of the workers, and their reservations for attempts.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::queue::{LineId, Need};

/// A worker: the node itself, or one run of a peer. Its name appears in lists and errors.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(Arc<str>);

impl WorkerId {
    /// Creates the id of the worker with this name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The resources that a worker offers to this scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// The most attempts that run at once.
    pub slots: usize,
    /// The memory that the reservations of attempts share, in bytes.
    pub memory: u64,
}

/// One run of an execution. The number grows with each run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptId {
    pub(crate) execution: u64,
    pub(crate) number: u32,
}

impl AttemptId {
    /// Returns the id with the numbers that [`Self::execution`] and [`Self::number`] returned.
    pub fn new(execution: u64, number: u32) -> Self {
        Self { execution, number }
    }

    /// Returns the number of the execution, which is unique in this scheduler.
    pub fn execution(self) -> u64 {
        self.execution
    }

    /// The number of the attempt, from 1.
    pub fn number(self) -> u32 {
        self.number
    }
}

/// The resources of an attempt, until its worker reports its end or is lost.
#[derive(Clone, Debug)]
pub(crate) struct Reservation {
    pub(crate) worker: WorkerId,
    /// The line that counts the slot; `None` for work that no client waits for.
    pub(crate) line: Option<LineId>,
    pub(crate) memory: u64,
    /// Set for the work of another node.
    pub(crate) foreign: bool,
    /// Set for an action of this node that runs at another.
    pub(crate) at_peer: bool,
}

#[derive(Debug)]
struct Worker {
    capacity: Capacity,
    reserved: u64,
    running: usize,
    /// Set while an attempt runs that nothing else may run beside.
    alone: bool,
    /// The queued execution for which the worker starts nothing else until it fits.
    drains_for: Option<u64>,
}

impl Worker {
    fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            reserved: 0,
            running: 0,
            alone: false,
            drains_for: None,
        }
    }

    fn has_slot(&self) -> bool {
        !self.alone && self.running < self.capacity.slots
    }
}

/// The workers, and the attempts that run on them.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    workers: BTreeMap<WorkerId, Worker>,
    reservations: BTreeMap<AttemptId, Reservation>,
    /// The number of reservations at peers.
    at_peers: usize,
}

impl Ledger {
    /// Adds a worker, or changes its capacity. Running attempts keep their resources.
    pub(crate) fn set(&mut self, id: &WorkerId, capacity: Capacity) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.capacity = capacity;
            worker.drains_for = None;
            return;
        }
        self.workers.insert(id.clone(), Worker::new(capacity));
    }

    /// Removes a worker. Returns its attempts in the order of their executions.
    pub(crate) fn remove(&mut self, id: &WorkerId) -> Vec<(AttemptId, Reservation)> {
        self.workers.remove(id);
        let lost = self
            .reservations
            .extract_if(.., |_, reservation| reservation.worker == *id);
        let lost: Vec<_> = lost.collect();
        let at_peers = lost.iter().filter(|(_, lost)| lost.at_peer).count();
        self.at_peers = self.at_peers.saturating_sub(at_peers);
        lost
    }

    /// Returns whether the worker has a free slot, and no attempt that must be alone.
    pub(crate) fn has_slot(&self, id: &WorkerId) -> bool {
        self.workers.get(id).is_some_and(Worker::has_slot)
    }

    /// Returns whether any worker has a free slot.
    pub(crate) fn has_free_slot(&self) -> bool {
        self.workers.values().any(Worker::has_slot)
    }

    /// Returns whether a need fits the worker's free resources. On an idle worker everything fits, so that no action
    /// waits for ever.
    pub(crate) fn fits(&self, id: &WorkerId, need: &Need) -> bool {
        self.workers.get(id).is_some_and(|worker| {
            let free = worker.capacity.memory.saturating_sub(worker.reserved);
            worker.running == 0 || matches!(need, Need::Memory(bytes) if *bytes <= free)
        })
    }

    /// Reserves the resources of an attempt, which fits. Returns its memory in bytes.
    pub(crate) fn reserve(
        &mut self,
        id: &WorkerId,
        attempt: AttemptId,
        need: &Need,
        line: Option<LineId>,
    ) -> u64 {
        let Some(worker) = self.workers.get_mut(id) else {
            return 0;
        };
        let memory = match need {
            Need::Memory(bytes) => worker.capacity.memory.min(*bytes),
            Need::Alone => worker.capacity.memory,
        };
        worker.running += 1;
        worker.reserved += memory;
        worker.alone = *need == Need::Alone;
        let reservation = Reservation {
            worker: id.clone(),
            line,
            memory,
            foreign: false,
            at_peer: false,
        };
        self.reservations.insert(attempt, reservation);
        memory
    }

    /// Records an attempt on a peer, which reserved the resources itself. Such a worker has no capacity, so that claims
    /// of this node give it nothing.
    pub(crate) fn reserve_at_peer(&mut self, id: &WorkerId, attempt: AttemptId, line: LineId) {
        let capacity = Capacity {
            slots: 0,
            memory: 0,
        };
        let worker = self.workers.entry(id.clone());
        worker.or_insert_with(|| Worker::new(capacity)).running += 1;
        let reservation = Reservation {
            worker: id.clone(),
            line: Some(line),
            memory: 0,
            foreign: false,
            at_peer: true,
        };
        self.reservations.insert(attempt, reservation);
        self.at_peers += 1;
    }

    /// Marks the attempt as work of another node.
    pub(crate) fn set_foreign(&mut self, attempt: AttemptId) {
        if let Some(reservation) = self.reservations.get_mut(&attempt) {
            reservation.foreign = true;
        }
    }

    /// Releases the resources of an attempt that exceed a need. Returns the remaining memory in bytes.
    pub(crate) fn shrink(&mut self, attempt: AttemptId, need: Need) -> u64 {
        let Some(reservation) = self.reservations.get_mut(&attempt) else {
            return 0;
        };
        if let Need::Memory(bytes) = need
            && let Some(worker) = self.workers.get_mut(&reservation.worker)
        {
            let excess = reservation.memory.saturating_sub(bytes);
            reservation.memory -= excess;
            worker.reserved = worker.reserved.saturating_sub(excess);
            worker.alone = false;
        }
        reservation.memory
    }

    /// Releases the resources of an attempt; `None` if it has none.
    pub(crate) fn release(&mut self, attempt: AttemptId) -> Option<Reservation> {
        let reservation = self.reservations.remove(&attempt)?;
        self.at_peers -= usize::from(reservation.at_peer);
        if let Some(worker) = self.workers.get_mut(&reservation.worker) {
            worker.running = worker.running.saturating_sub(1);
            worker.reserved = worker.reserved.saturating_sub(reservation.memory);
            worker.alone = false;
        }
        Some(reservation)
    }

    /// Returns whether the attempt has resources.
    pub(crate) fn has_reservation(&self, attempt: AttemptId) -> bool {
        self.reservations.contains_key(&attempt)
    }

    /// Returns whether no attempt has resources and no worker drains.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        let is_free = |w: &Worker| w.running == 0 && w.reserved == 0 && w.drains_for.is_none();
        self.reservations.is_empty()
            && self
                .workers
                .values()
                .all(|worker| is_free(worker) && !worker.alone)
    }

    /// Returns the work that no client waits for.
    pub(crate) fn idle(&self) -> impl Iterator<Item = (&WorkerId, AttemptId)> {
        let idle = self.reservations.iter();
        let idle = idle.filter(|(_, reservation)| reservation.line.is_none());
        idle.map(|(attempt, reservation)| (&reservation.worker, *attempt))
    }

    /// Returns the work of other nodes.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = (&WorkerId, AttemptId)> {
        let foreign = self.reservations.iter();
        let foreign = foreign.filter(|(_, reservation)| reservation.foreign);
        foreign.map(|(attempt, reservation)| (&reservation.worker, *attempt))
    }

    /// The number of attempts that have resources of this node.
    pub(crate) fn running(&self) -> usize {
        self.reservations.len().saturating_sub(self.at_peers)
    }

    /// The number of attempts at peers.
    pub(crate) fn at_peers(&self) -> usize {
        self.at_peers
    }

    /// The execution for which the worker drains.
    pub(crate) fn drains_for(&self, id: &WorkerId) -> Option<u64> {
        self.workers.get(id)?.drains_for
    }

    /// Makes the worker start nothing until `execution` fits. Returns false if another worker does that already.
    pub(crate) fn drain_for(&mut self, id: &WorkerId, execution: u64) -> bool {
        let mut workers = self.workers.values();
        if workers.any(|worker| worker.drains_for == Some(execution)) {
            return false;
        }
        let worker = self.workers.get_mut(id);
        worker
            .map(|worker| worker.drains_for = Some(execution))
            .is_some()
    }

    /// Ends the draining for an execution that is no longer queued. Returns false if no worker drained for it.
    pub(crate) fn stop_draining(&mut self, execution: u64) -> bool {
        let mut workers = self.workers.values_mut();
        let draining = workers.find(|worker| worker.drains_for == Some(execution));
        draining.map(|worker| worker.drains_for = None).is_some()
    }
}
