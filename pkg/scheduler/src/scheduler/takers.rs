//! The workers that may run the queued executions, and those that keep failing.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use super::Scheduler;
use crate::{
    ledger::WorkerId,
    queue::{Class, Need},
    state::Time,
};

/// The failures in a row after which a worker rests.
const FAILURES: u32 = 3;
/// The first rest, which doubles with each further failure, and the longest one.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);

/// The time for which a lost execution is left to other workers than those that lost it. They may be back then, while the
/// others run long actions.
const RETURN: Duration = Duration::from_secs(10);

/// A worker that takes queued actions when it has a slot.
#[derive(Clone)]
pub struct Taker {
    /// The worker.
    pub worker: WorkerId,
    /// The most memory that an execution can have there, in bytes.
    pub memory: u64,
    /// Returns whether it meets the requirements of a platform. Peers of the same platform should share one allocation,
    /// which is then asked once for all of them.
    pub fits: Fits,
}

/// A function that returns whether a worker meets the requirements of a platform.
type Fits = Arc<dyn Fn(&str) -> bool + Send + Sync>;

impl Taker {
    fn has_memory(&self, need: Need) -> bool {
        !matches!(need, Need::Memory(bytes) if bytes > self.memory)
    }
}

impl fmt::Debug for Taker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Taker").field(&self.worker).finish()
    }
}

/// The failures of a worker since its last success.
#[derive(Debug, Default)]
struct Failing {
    failures: u32,
    /// The end of the rest; `None` while the worker may take actions.
    until: Option<Time>,
}

/// Peers that meet the same requirements; at least one.
#[derive(Clone, Debug)]
struct Group(Vec<Taker>);

impl Group {
    fn fits(&self, platform: &str) -> bool {
        let first = self.0.first();
        first.is_some_and(|first| (first.fits)(platform))
    }
}

/// The workers that may run this node's actions.
#[derive(Debug, Default)]
pub(super) struct Takers {
    own: Vec<Taker>,
    /// There may be a thousand peers and hundreds of classes, but the peers have few different platforms.
    peers: Vec<Group>,
    failing: BTreeMap<WorkerId, Failing>,
    /// The executions that are left to others than the workers that lost them, with the end of that time.
    avoiding: VecDeque<(Time, u64)>,
}

impl Takers {
    /// Leaves an execution to other workers than those that lost it, for a while.
    pub(super) fn avoid_lost(&mut self, execution: u64, now: Time) {
        self.avoiding
            .push_back((now.saturating_add(RETURN), execution));
    }

    fn rests(&self, worker: &WorkerId) -> bool {
        let failing = self.failing.get(worker);
        failing.is_some_and(|failing| failing.until.is_some())
    }

    /// Returns the groups of peers that meet the requirements of a platform.
    fn fitting(&self, platform: &str) -> Vec<&Group> {
        let groups = self.peers.iter();
        groups.filter(|group| group.fits(platform)).collect()
    }

    /// Removes a worker of this node.
    pub(super) fn remove(&mut self, worker: &WorkerId) {
        self.own.retain(|taker| taker.worker != *worker);
    }

    /// Returns the end of the next rest, or of the next time in which an execution is left to others.
    pub(super) fn deadline(&self) -> Option<Time> {
        let rests = self.failing.values();
        let rests = rests.filter_map(|failing| failing.until);
        let returns = self.avoiding.front().map(|(until, _)| *until);
        rests.chain(returns).min()
    }
}

impl<J, O> Scheduler<J, O> {
    /// Adds or replaces a worker of this node. Executions that failed at other workers are left to it.
    pub fn set_taker(&mut self, taker: Taker) {
        self.takers.remove(&taker.worker);
        self.takers.own.push(taker);
        self.takers_changed();
    }

    /// Replaces the peers that take actions. Executions that failed at other workers are left to them.
    pub fn set_peers(&mut self, peers: Vec<Taker>, now: Time) {
        // The queue is given up, so no worker leaves an execution to another.
        if self.draining && !self.hands_over {
            return;
        }
        let Takers { own, failing, .. } = &mut self.takers;
        let all: BTreeSet<_> = own.iter().chain(&peers).map(|it| &it.worker).collect();
        failing.retain(|worker, _| all.contains(worker));
        self.takers.peers = Vec::new();
        for peer in peers {
            let is_like = |other: &Taker| Arc::ptr_eq(&other.fits, &peer.fits);
            let is_alike = |group: &&mut Group| group.0.first().is_some_and(is_like);
            match self.takers.peers.iter_mut().find(is_alike) {
                Some(group) => group.0.push(peer),
                None => self.takers.peers.push(Group(vec![peer])),
            }
        }
        self.takers_changed();
        self.end_untaken(now);
    }

    /// While the queue is left to peers, ends the queued executions that none of them may run.
    pub(super) fn end_untaken(&mut self, now: Time) {
        if self.hands_over {
            let classes = self.queue.executions();
            let untaken = classes.filter(|(class, _)| !self.has_peer(class));
            let untaken: BTreeSet<_> = untaken.map(|(class, _)| class.clone()).collect();
            self.end_all(
                |execution| execution.running.is_none() && untaken.contains(&execution.class),
                now,
            );
        }
    }

    /// Returns whether a peer may run the executions of a class.
    pub(super) fn has_peer(&self, class: &Class) -> bool {
        let Some(platform) = class.platform.as_deref() else {
            return false;
        };
        let fitting = self.takers.fitting(platform);
        let need = self.required(class, &fitting);
        let mut peers = fitting.iter().flat_map(|group| &group.0);
        peers.any(|peer| peer.has_memory(need))
    }

    /// Returns a peer that takes actions.
    pub(super) fn peer(&self, worker: &WorkerId) -> Option<&Taker> {
        let mut peers = self.takers.peers.iter().flat_map(|group| &group.0);
        peers.find(|peer| peer.worker == *worker)
    }

    /// Returns whether a peer has the memory for the executions of a class, whose platform it has.
    pub(super) fn has_memory_at(&self, peer: &Taker, class: &Class) -> bool {
        let fitting = || self.takers.fitting(class.platform.as_deref().unwrap_or(""));
        peer.has_memory(class.need) || peer.has_memory(self.required(class, &fitting()))
    }

    /// Returns the memory that a worker must have to run the executions of a class. If no worker of the platform has as
    /// much as they need, returns none: any of these workers may run them, once nothing else runs there. `fitting` are the peers of the
    /// platform.
    fn required(&self, class: &Class, fitting: &[&Group]) -> Need {
        let fits = |own: &&Taker| {
            let platform = class.platform.as_deref();
            !self.draining && platform.is_some_and(|platform| (own.fits)(platform))
        };
        let has_memory = |taker: &Taker| taker.has_memory(class.need);
        let mut peers = fitting.iter().flat_map(|group| &group.0);
        if peers.any(has_memory) || self.takers.own.iter().filter(fits).any(has_memory) {
            class.need
        } else {
            Need::Memory(0)
        }
    }

    /// Returns the workers whose last attempts failed so often that they rest in between.
    pub fn failing(&self) -> impl Iterator<Item = &WorkerId> {
        let failing = self.takers.failing.iter();
        let failing = failing.filter(|(_, failing)| failing.failures >= FAILURES);
        failing.map(|(worker, _)| worker)
    }

    /// Returns whether a worker leaves the executions of a class to others. It does if it failed them or rests, and if
    /// another worker can run them that neither failed them nor rests.
    pub(super) fn leaves(&self, worker: &WorkerId, class: &Class) -> bool {
        !self.is_ready(worker, class) && self.has_ready(class)
    }

    /// Returns whether a worker neither failed the executions of a class nor rests.
    fn is_ready(&self, worker: &WorkerId, class: &Class) -> bool {
        !class.was_tried_at(worker) && !self.takers.rests(worker)
    }

    /// Returns whether a worker can run the executions of a class that neither failed them nor rests.
    fn has_ready(&self, class: &Class) -> bool {
        let Some(platform) = class.platform.as_deref() else {
            return false;
        };
        let fitting = self.takers.fitting(platform);
        let need = self.required(class, &fitting);
        let is_ready =
            |taker: &Taker| taker.has_memory(need) && self.is_ready(&taker.worker, class);
        let is_out_of_service = self.draining || self.is_closed;
        let mut own = self.takers.own.iter().filter(|_| !is_out_of_service);
        own.any(|own| (own.fits)(platform) && is_ready(own))
            || fitting.iter().any(|group| group.0.iter().any(is_ready))
    }

    /// Returns whether a worker of this node may run the executions of a class, and does not leave them to others.
    pub(super) fn has_own_taker(&self, class: &Class) -> bool {
        let Some(platform) = class.platform.as_deref() else {
            return false;
        };
        if self.draining || self.is_closed && self.has_peer(class) {
            return false;
        }
        let need = self.required(class, &self.takers.fitting(platform));
        let may_run = |own: &Taker| own.has_memory(need) && (own.fits)(platform);
        let mut own = self.takers.own.iter();
        own.any(|own| may_run(own) && !self.leaves(&own.worker, class))
    }

    /// Returns the peers that may run queued executions which none of the `asked` ones may run: a list for each class of
    /// such executions, and at most `most` lists.
    pub fn peers_to_ask(
        &self,
        is_asked: impl Fn(&WorkerId) -> bool,
        most: usize,
    ) -> Vec<Vec<WorkerId>> {
        let asked = |group: &Group| {
            let asked = group.0.iter().filter(|peer| is_asked(&peer.worker));
            asked.cloned().collect::<Vec<_>>()
        };
        let groups: Vec<_> = self.takers.peers.iter().map(|it| (it, asked(it))).collect();
        let lists = self.queue.executions().filter_map(|(class, _)| {
            let platform = class.platform.as_deref()?;
            let fitting = groups.iter().filter(|(group, _)| group.fits(platform));
            let fitting: Vec<_> = fitting.collect();
            let groups: Vec<_> = fitting.iter().map(|(group, _)| *group).collect();
            let need = self.required(class, &groups);
            let has_ready = LazyCell::new(|| self.has_ready(class));
            let is_able = |peer: &&Taker| {
                peer.has_memory(need) && (self.is_ready(&peer.worker, class) || !*has_ready)
            };
            let mut asked = fitting.iter().flat_map(|(_, asked)| asked);
            if asked.any(|peer| is_able(&peer)) {
                return None;
            }
            let able = fitting
                .iter()
                .flat_map(|(group, _)| &group.0)
                .filter(is_able);
            let able: Vec<_> = able.map(|peer| peer.worker.clone()).collect();
            (!able.is_empty()).then_some(able)
        });
        lists.take(most).collect()
    }

    /// Records that a worker completed an attempt.
    pub(super) fn succeeded(&mut self, worker: &WorkerId) {
        if self.takers.failing.remove(worker).is_some() {
            self.takers_changed();
        }
    }

    /// Records that an attempt failed for a reason of its worker. After several in a row, the worker rests.
    pub(super) fn failed(&mut self, worker: &WorkerId, now: Time) {
        if self.takers.peers.is_empty() || self.takers.rests(worker) {
            return;
        }
        let failing = self.takers.failing.entry(worker.clone()).or_default();
        failing.failures = failing.failures.saturating_add(1);
        if let Some(more) = failing.failures.checked_sub(FAILURES) {
            let factor = 1_u32.checked_shl(more).unwrap_or(u32::MAX);
            let rest = REST.saturating_mul(factor).min(LONGEST_REST);
            failing.until = Some(now.saturating_add(rest));
            self.takers_changed();
        }
    }

    /// Lets workers run the queued executions that they lost a while ago.
    pub(super) fn readmit_lost(&mut self, now: Time) {
        while let Some((until, number)) = self.takers.avoiding.front().copied()
            && until <= now
        {
            self.takers.avoiding.pop_front();
            let execution = self.executions.get(&number);
            // An execution that was queued again since waits for its own time.
            let is_due = |queued: Time| queued.saturating_add(RETURN) <= now;
            if execution.is_some_and(|it| it.running.is_none() && is_due(it.queued)) {
                self.leave_queue(number);
                if let Some(execution) = self.executions.get_mut(&number) {
                    execution.readmit_lost();
                }
                self.enter_queue(number);
                self.wake();
            }
        }
    }

    /// Ends the rests that are over.
    pub(super) fn end_rests(&mut self, now: Time) {
        let mut has_changed = false;
        for failing in self.takers.failing.values_mut() {
            let is_over = failing.until.is_some_and(|until| until <= now);
            if is_over {
                failing.until = None;
                has_changed = true;
            }
        }
        if has_changed {
            self.takers_changed();
        }
    }

    /// Makes all workers claim again, and makes the counts that peers were offered outdated.
    fn takers_changed(&mut self) {
        self.queue.renumber();
        self.wake();
    }
}
