//! Upkeep of a node: idle links, ended actions, and the counts, states and warnings that users see.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt as _;
use gorego_scheduler::Generation;

use super::{Told, parts::Parts};
use crate::{membership::MemberState, record::Record};

impl<J: Send + Sync + 'static, O: Send + Sync + 'static> Parts<J, O> {
    /// Returns whether a link was unused for `time`.
    pub(super) fn is_idle(&self, peer: &Generation, time: Duration) -> bool {
        let gossiped = self
            .linked
            .get(peer)
            .map(|linked| linked.gossiped.elapsed());
        let worked = self.links.idle_for(peer);
        gossiped.is_none_or(|since| since > time) && worked.is_some_and(|since| since > time)
    }

    /// Measures the running actions of other nodes, unless an earlier measurement has not ended.
    pub(super) fn start_measuring(&mut self) {
        let running = self.taken.iter().filter(|(_, taken)| !taken.has_ended);
        let running =
            running.filter_map(|(slot, taken)| Some((*slot, Arc::clone(taken.job.get()?))));
        let (slots, jobs): (Vec<_>, Vec<_>) = running.unzip();
        if slots.is_empty() || std::mem::replace(&mut self.is_measuring, true) {
            return;
        }
        let (work, told) = (Arc::clone(&self.work), self.told.clone());
        self.spawn(async move {
            let usage = AssertUnwindSafe(work.measure(&jobs)).catch_unwind().await;
            let usage = slots.into_iter().zip(usage.unwrap_or_default());
            let usage = usage.filter_map(|(slot, usage)| Some((slot, usage?)));
            let _ = told.send(Told::Measured(usage.collect()));
        });
    }

    /// Removes actions at other nodes that are no longer needed.
    pub(super) fn forget_given(&mut self) {
        let scheduler = &self.scheduler;
        self.given
            .retain(|attempt, _| scheduler.is_awaited(*attempt));
    }

    /// Logs an error, at most once a minute, while the name of this node belongs to another.
    pub(super) fn warn_of_namesake(&self, holder: &Generation, address: &str) {
        if self.namesake.is_due() {
            tracing::error!(
                %holder,
                address,
                "another node already has the name of this one, so this node works alone: set another cluster.node_id here"
            );
        }
    }

    /// Logs an error, at most once a minute, while the cluster has no place for this node.
    pub(super) fn warn_of_full(&self) {
        if self.namesake.is_due() {
            tracing::error!(
                "the cluster already has cluster.max_nodes and refuses this node, so it shares no work: stop a node, \
                 or raise cluster.max_nodes at all nodes"
            );
        }
    }

    /// Returns the number of actions of this node at a peer, and of those of the peer here.
    pub(super) fn shared_with(&self, peer: &Generation) -> (u64, u64) {
        let given = self.given.values();
        let given = given.filter(|given| given.node == *peer && !given.has_ended);
        let taken = self.taken.values();
        let taken = taken.filter(|taken| taken.entry == *peer && !taken.has_ended);
        (given.count() as u64, taken.count() as u64)
    }

    /// Returns whether an action of another node runs at this one.
    pub(super) fn runs_for_others(&self) -> bool {
        self.taken.values().any(|taken| !taken.has_ended)
    }

    /// Returns the state of a member as text for users.
    pub(super) fn state_of(&self, record: &Record, state: MemberState) -> &'static str {
        match state {
            MemberState::Down => "down",
            MemberState::Suspect => "suspect",
            MemberState::Alive if record.draining => "draining",
            MemberState::Alive if self.failing.contains(record.node.node()) => "failing",
            MemberState::Alive => "alive",
        }
    }
}
