//! The queued executions whose inputs peers fetch while all of their slots are busy.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Scheduler, claim::MAX_BYPASSED};
use crate::{
    ledger::WorkerId,
    queue::{Class, Need, Next},
    state::ActionKey,
};

/// The fewest and the most entries at the head of the queue among which executions are chosen. While more than the
/// most are named, peers fetch less.
const NEAR: usize = 16;
const MAX_NEAR: usize = 256;
/// The most times that slots leave an execution to the peer that it was named to, which may get none of its line.
const MAX_LEFT: u32 = 3;
/// The most executions that are named to one peer at once.
const MAX_NAMED: usize = 16;

/// The queued executions that were named to peers, each to one of them.
#[derive(Debug, Default)]
pub(super) struct Named {
    peers: BTreeMap<WorkerId, BTreeSet<u64>>,
    executions: HashMap<u64, WorkerId>,
}

impl Named {
    /// Returns the executions that were named to a peer, the oldest first.
    pub(super) fn of(&self, peer: &WorkerId) -> impl Iterator<Item = u64> {
        self.peers.get(peer).into_iter().flatten().copied()
    }

    fn add(&mut self, peer: &WorkerId, execution: u64) {
        self.executions.insert(execution, peer.clone());
        let named = self.peers.entry(peer.clone()).or_default();
        named.insert(execution);
    }

    /// Removes an execution that leaves the queue.
    pub(super) fn remove(&mut self, execution: u64) {
        if let Some(peer) = self.executions.remove(&execution)
            && let Some(named) = self.peers.get_mut(&peer)
        {
            named.remove(&execution);
            if named.is_empty() {
                self.peers.remove(&peer);
            }
        }
    }

    /// Removes the executions of a peer.
    pub(super) fn remove_peer(&mut self, peer: &WorkerId) {
        for execution in self.peers.remove(peer).into_iter().flatten() {
            self.executions.remove(&execution);
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty() && self.executions.is_empty()
    }
}

impl<J, O> Scheduler<J, O> {
    /// Chooses queued executions whose inputs a peer shall fetch, since it will claim soon, so that `most` of the queue
    /// are named to it. Returns those that are named now: the first ones in the order of the queue that were named to no
    /// peer. Any slot may take them. `need` and `fits` are those of [`Self::claim_for`].
    pub fn look_ahead(
        &mut self,
        peer: &WorkerId,
        need: Need,
        most: usize,
        fits: impl Fn(&str) -> bool,
    ) -> Vec<ActionKey> {
        let named = self.ahead.of(peer).count();
        let wanted = most.min(MAX_NAMED).saturating_sub(named);
        if wanted == 0 {
            return Vec::new();
        }
        let first = self.queue.first(self.near(wanted), |class| {
            need.covers(class.need) && self.suits(peer, class, &fits)
        });
        let mut chosen = Vec::new();
        for Next { execution, .. } in first {
            if chosen.len() == wanted {
                break;
            }
            // Several operations of an execution may be in the queue.
            if !self.ahead.executions.contains_key(&execution)
                && let Some(found) = self.executions.get(&execution)
            {
                chosen.push(found.key.as_ref().clone());
                self.ahead.add(peer, execution);
            }
        }
        chosen
    }

    /// Forgets the executions that were named to a peer, which no longer fetches their inputs.
    pub fn forget_ahead(&mut self, peer: &WorkerId) {
        self.ahead.remove_peer(peer);
    }

    /// Returns the execution that a slot gets when the turn of `next` has come: a slot of a peer prefers those that were
    /// named to it, and every slot leaves those that were named to others to them. An execution passes only those of its
    /// line that are not more urgent.
    pub(super) fn choose_near(
        &self,
        peer: Option<&WorkerId>,
        next: Next,
        fits: impl Fn(&Class) -> bool,
    ) -> Next {
        let named_to = self.ahead.executions.get(&next.execution);
        let passed = self.executions.get(&next.execution);
        let passed = passed.map_or(MAX_BYPASSED, |passed| passed.bypassed);
        if passed >= MAX_BYPASSED || named_to.is_some() && named_to == peer {
            return next;
        }
        let told = peer.and_then(|peer| self.told_near(peer, &next, &fits));
        let is_left = named_to.is_some() && passed < MAX_LEFT;
        let free = || is_left.then(|| self.unnamed_near(&next, &fits)).flatten();
        told.or_else(free).unwrap_or(next)
    }

    /// Counts the claim of an execution whose turn had not come.
    pub(super) fn count_bypassed(&mut self, next: &Next, chosen: &Next) {
        if next.execution != chosen.execution
            && let Some(bypassed) = self.bypassed(next.execution)
        {
            *bypassed = bypassed.saturating_add(1);
            let is_due = *bypassed >= MAX_LEFT;
            // The peer does not claim as was expected.
            if is_due && let Some(peer) = self.ahead.executions.get(&next.execution) {
                let peer = peer.clone();
                self.ahead.remove_peer(&peer);
            }
        }
    }

    /// Returns the first execution named to a peer that may pass the next one.
    fn told_near(
        &self,
        peer: &WorkerId,
        next: &Next,
        fits: impl Fn(&Class) -> bool,
    ) -> Option<Next> {
        self.ahead.of(peer).find_map(|number| {
            let told = self.executions.get(&number)?;
            if !fits(&told.class) {
                return None;
            }
            let operations = told.operations.iter();
            let operations = operations.filter_map(|id| self.operations.live(*id));
            let mut in_line = operations.filter(|live| live.line == Some(next.line));
            let live = in_line.find(|live| live.rank.is_as_urgent_as(next.rank))?;
            Some(Next {
                line: next.line,
                rank: live.rank,
                execution: number,
            })
        })
    }

    /// Returns the first execution named to no peer that may pass the next one.
    fn unnamed_near(&self, next: &Next, fits: impl Fn(&Class) -> bool) -> Option<Next> {
        let first = self.queue.first(self.near(1), fits);
        first.into_iter().find(|other| {
            other.line == next.line
                && other.rank.is_as_urgent_as(next.rank)
                && !self.ahead.executions.contains_key(&other.execution)
        })
    }

    /// Returns the number of entries to look at for this many executions that were named to no peer.
    fn near(&self, wanted: usize) -> usize {
        let named = self.ahead.executions.len();
        named.saturating_add(wanted).clamp(NEAR, MAX_NEAR)
    }

    /// Returns whether no worker of this node has a free slot.
    pub fn is_full(&self) -> bool {
        !self.ledger.has_free_slot()
    }
}
