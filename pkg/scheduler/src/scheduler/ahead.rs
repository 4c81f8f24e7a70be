//! The queued executions whose inputs peers fetch while all of their slots are busy.

use super::{Scheduler, claim::MAX_BYPASSED};
use crate::{
    ledger::WorkerId,
    queue::{Class, Need, Next},
    state::ActionKey,
};

/// The entries at the head of the queue among which one is chosen.
const NEAR: usize = 16;

impl<J, O> Scheduler<J, O> {
    /// Chooses a queued execution whose inputs a peer shall fetch, since it will claim soon: the first one in the order
    /// of the queue that no other peer was told. It stays the same until it leaves the queue, and any slot may take it.
    /// `need` and `fits` are those of [`Self::claim_for`]. `None` if there is none among the first of the queue.
    pub fn look_ahead(
        &mut self,
        peer: &WorkerId,
        need: Need,
        fits: impl Fn(&str) -> bool,
    ) -> Option<&ActionKey> {
        if !self.ahead.contains_key(peer) {
            let first = self.queue.first(NEAR, |class| {
                need.covers(class.need) && self.suits(peer, class, &fits)
            });
            let mut first = first.into_iter().map(|next| next.execution);
            let is_told = |execution| self.ahead.values().any(|told| *told == execution);
            let chosen = first.find(|execution| !is_told(*execution))?;
            self.ahead.insert(peer.clone(), chosen);
        }
        let told = self.executions.get(self.ahead.get(peer)?)?;
        Some(&told.key)
    }

    /// Returns the execution that a peer was told, if it may pass the one whose turn is next.
    pub(super) fn told_near(
        &self,
        peer: &WorkerId,
        next: &Next,
        fits: impl Fn(&Class) -> bool,
    ) -> Option<Next> {
        let number = *self.ahead.get(peer)?;
        let passed = self.executions.get(&next.execution)?;
        let told = self.executions.get(&number)?;
        if number == next.execution || passed.bypassed >= MAX_BYPASSED || !fits(&told.class) {
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
    }

    /// Returns whether no worker of this node has a free slot.
    pub fn is_full(&self) -> bool {
        !self.ledger.has_free_slot()
    }
}
