//! Attempts on other nodes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::Runner;
use crate::{
    ledger::{AttemptId, WorkerId},
    queue::Need,
    scheduler::Taker,
    state::{ActionKey, Grant, Phase, Report},
};

impl<J, O> Runner<J, O>
where
    J: Send + Sync + 'static,
    O: Send + Sync + 'static,
{
    /// Grants the next execution to a slot of a peer ([`Scheduler::claim_for`](crate::Scheduler::claim_for)). Its end is
    /// reported by [`Self::report`], [`Self::lose`] or [`Self::decline`].
    pub fn claim_for(
        &self,
        peer: &WorkerId,
        need: Need,
        fits: impl Fn(&str) -> bool,
    ) -> Option<Grant<J>> {
        self.shared
            .apply(|state, now| state.scheduler.claim_for(peer, need, fits, now))
    }

    /// Returns a receiver of the attempts that peers must stop. Their ends are then reported like others. Only the last
    /// caller receives them.
    pub fn stops(&self) -> mpsc::UnboundedReceiver<AttemptId> {
        // The attempts at peers bound the queue: each is stopped once.
        let (sender, receiver) = mpsc::unbounded_channel();
        self.shared.state.lock().stops = Some(sender);
        receiver
    }

    /// Records the end of an attempt at a peer. Returns whether the execution is queued again.
    pub fn report(&self, attempt: AttemptId, report: Report<O>) -> bool {
        self.shared.apply(|state, now| {
            let before = state.scheduler.totals().ends.retries;
            state.scheduler.report(attempt, report, now);
            state.scheduler.totals().ends.retries > before
        })
    }

    /// Records that a peer lost an attempt. The execution is queued again.
    pub fn lose(&self, attempt: AttemptId) {
        self.shared
            .apply(|state, now| state.scheduler.lose(attempt, now));
    }

    /// Resumes a lost attempt that its peer still runs ([`Scheduler::adopt`](crate::Scheduler::adopt)). Returns false if
    /// that is no longer possible.
    pub fn adopt(&self, peer: &WorkerId, attempt: AttemptId) -> bool {
        self.shared
            .apply(|state, now| state.scheduler.adopt(peer, attempt, now))
    }

    /// Records that a peer did not begin an attempt. The execution is queued again, and no loss is counted.
    pub fn decline(&self, attempt: AttemptId) {
        self.shared
            .apply(|state, now| state.scheduler.decline(attempt, now));
    }

    /// Records the phase and the run of the command that a peer reports. It may report them repeatedly.
    pub fn progress(&self, attempt: AttemptId, phase: Phase, run: u16) {
        self.shared.apply(|state, now| {
            state.scheduler.progress_at_peer(attempt, phase, run, now);
        });
    }

    /// Removes a worker, whose attempts are lost.
    pub fn remove_worker(&self, worker: &WorkerId) {
        self.shared
            .apply(|state, now| state.scheduler.remove_worker(worker, now));
    }

    /// Returns whether the outcome of an attempt would be used.
    pub fn is_awaited(&self, attempt: AttemptId) -> bool {
        self.shared.state.lock().scheduler.is_awaited(attempt)
    }

    /// Returns the numbers of queued executions by need that a peer may run: it has the memory for them, and their
    /// platform meets `fits`.
    pub fn queued_by_need(
        &self,
        peer: &WorkerId,
        fits: impl Fn(&str) -> bool,
    ) -> Vec<(Need, usize)> {
        let scheduler = &self.shared.state.lock().scheduler;
        scheduler.queued_by_need(peer, fits)
    }

    /// Returns the most peers that shall become free for queued executions, by need
    /// ([`Scheduler::peers_to_free`](crate::Scheduler::peers_to_free)).
    pub fn peers_to_free(&self) -> BTreeMap<Need, usize> {
        self.shared.state.lock().scheduler.peers_to_free()
    }

    /// Chooses queued executions whose inputs a peer shall fetch
    /// ([`Scheduler::look_ahead`](crate::Scheduler::look_ahead)).
    pub fn look_ahead(
        &self,
        peer: &WorkerId,
        need: Need,
        most: usize,
        fits: impl Fn(&str) -> bool,
    ) -> Vec<ActionKey> {
        let scheduler = &mut self.shared.state.lock().scheduler;
        scheduler.look_ahead(peer, need, most, fits)
    }

    /// Forgets the executions whose inputs a peer fetches
    /// ([`Scheduler::forget_ahead`](crate::Scheduler::forget_ahead)).
    pub fn forget_ahead(&self, peer: &WorkerId) {
        self.shared.state.lock().scheduler.forget_ahead(peer);
    }

    /// Returns whether no worker of this node has a free slot.
    pub fn is_full(&self) -> bool {
        self.shared.state.lock().scheduler.is_full()
    }

    /// Replaces the peers that take actions ([`Scheduler::set_peers`](crate::Scheduler::set_peers)).
    pub fn set_peers(&self, peers: Vec<Taker>) {
        self.shared
            .apply(|state, now| state.scheduler.set_peers(peers, now));
    }

    /// Returns peers that may run executions which the `asked` ones may not run
    /// ([`Scheduler::peers_to_ask`](crate::Scheduler::peers_to_ask)).
    pub fn peers_to_ask(
        &self,
        is_asked: impl Fn(&WorkerId) -> bool,
        most: usize,
    ) -> Vec<Vec<WorkerId>> {
        let scheduler = &self.shared.state.lock().scheduler;
        scheduler.peers_to_ask(is_asked, most)
    }

    /// Returns the workers whose last attempts failed so often that they rest in between.
    pub fn failing(&self) -> Vec<WorkerId> {
        let scheduler = &self.shared.state.lock().scheduler;
        scheduler.failing().cloned().collect()
    }

    /// Returns the number of different platforms and needs of queued executions.
    pub fn count_classes(&self) -> usize {
        self.shared.state.lock().scheduler.count_classes()
    }

    /// Returns the target and the mnemonic of the next action in the order of the queue.
    pub fn next_target(&self) -> Option<(Arc<str>, Arc<str>)> {
        self.shared.state.lock().scheduler.next_target()
    }

    /// Returns a receiver that is notified whenever [`Self::queued_by_need`] may have changed.
    pub fn queue_changes(&self) -> watch::Receiver<()> {
        self.shared.queue.subscribe()
    }

    /// Refuses new operations, and leaves the queued ones to peers, for at most `limit`
    /// ([`Scheduler::hand_over`](crate::Scheduler::hand_over)). To be followed by
    /// [`Self::shut_down`], which ends the rest.
    pub async fn hand_over(&self, limit: Duration) {
        self.shared
            .apply(|state, now| state.scheduler.hand_over(now));
        let mut changed = self.shared.queue.subscribe();
        let empty = changed.wait_for(|()| self.totals().queued == 0);
        // At the time limit, `shut_down` ends the rest.
        let _ = timeout(limit, empty).await;
    }
}
