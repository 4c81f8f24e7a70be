//! Needs of the hand-over towards its node.

use std::collections::{BTreeMap, BTreeSet};

use gorego_scheduler::{AttemptId, Generation, Need, Phase};
use reapi::gorego::{
    ResourceUsage,
    cluster::{self as proto, Done, Prefetch, frame::Content},
};

use super::Member;

/// The links and the scheduler of the node. No call may block, or call the `Handover`.
pub trait Host {
    /// Sends a frame on the link with a peer, in order.
    fn send(&mut self, peer: &Generation, frame: Content);
    /// Opens a link with a peer, unless one is being opened. Ends in `Handover::link_up` or `Handover::link_down`.
    fn connect(&mut self, peer: &Generation);

    /// Returns the numbers of this node's queued actions that a peer may run, by need.
    fn queued(&mut self, peer: &Generation) -> Vec<(Need, usize)>;
    /// Returns the most peers that shall become free for this node's queued actions, by need.
    fn peers_to_free(&self) -> BTreeMap<Need, usize>;
    /// Returns the number of classes of queued actions, by platform and need, that [`Self::queued`] has to count.
    fn classes(&self) -> usize;
    /// Returns the peers among `members` that may run queued actions which none of the `chosen` ones may run: a list
    /// for each class of such actions, and at most `most` lists.
    fn peers_to_ask<'a>(
        &self,
        members: &[&'a Member],
        chosen: &BTreeSet<Generation>,
        most: usize,
    ) -> Vec<Vec<&'a Member>>;
    /// Returns the number of this node's queued actions, and the kind of the next one ([`crate::choice::kind`]).
    fn backlog(&mut self) -> (usize, u64);
    /// Grants the next action of this node's queue to a claim of a peer. The machine sets the claim and the attempt in
    /// the frame.
    fn grant(&mut self, peer: &Generation, need: Need) -> Option<(AttemptId, proto::Grant)>;
    /// Chooses queued actions whose inputs a peer shall fetch, so that `most` are chosen for it, and returns the new
    /// ones. They stay in the queue.
    fn look_ahead(&mut self, peer: &Generation, need: Need, most: usize) -> Vec<Prefetch>;
    /// Forgets the actions that were chosen for a peer, which no longer fetches their inputs.
    fn forget_ahead(&mut self, peer: &Generation);
    /// Replaces the peers that take this node's actions. An action that failed at one node is left to others.
    fn set_takers(&mut self, takers: &[&Member]);
    /// Resumes a lost attempt that a peer still runs. Returns false if its action is no longer queued.
    fn adopt(&mut self, peer: &Generation, attempt: AttemptId) -> bool;
    /// Returns whether the outcome of an attempt of this node's action would still be used.
    fn is_awaited(&self, attempt: AttemptId) -> bool;
    /// Records the progress of an attempt at a peer. Repeated calls are allowed.
    fn progress(&mut self, attempt: AttemptId, phase: Phase, run: u16);
    /// Records the resources that the command of an attempt at a peer uses; `None` if it does not run.
    fn record_usage(&mut self, attempt: AttemptId, usage: Option<ResourceUsage>);
    /// Reports the end of an attempt at a peer. Returns false if the response must be read first; then
    /// `Handover::received` is called after the report.
    fn ended(&mut self, peer: &Generation, done: Done) -> bool;
    /// Records that an attempt at a peer is lost.
    fn lose(&mut self, attempt: AttemptId);
    /// Queues an action again whose attempt a peer did not begin.
    fn decline(&mut self, attempt: AttemptId);
    /// Records that all attempts at a peer are lost.
    fn remove(&mut self, peer: &Generation);

    /// Replaces the numbers of actions that a peer has queued, and the needs for which other nodes become free.
    fn set_foreign(&mut self, entry: &Generation, counts: &[(Need, usize)], left: &[Need]);
    /// Records that a peer has no action for a claim.
    fn foreign_empty(&mut self, entry: &Generation, need: Need);
    /// Returns whether no slot of this node is free.
    fn is_full(&self) -> bool;
    /// Fetches the inputs of an action of a peer until the link with the peer ends. Ends in `Handover::fetched`.
    fn fetch_ahead(&mut self, entry: &Generation, prefetch: Prefetch);
    /// Measures the resources that the commands of other nodes use. Ends in `Handover::measured`.
    fn measure(&mut self);
    /// Ends the fetches of inputs of a peer's actions.
    fn end_fetches(&mut self, entry: &Generation);
    /// Frees a slot that was claimed for a peer.
    fn free(&mut self, slot: AttemptId);
    /// Runs an action of a peer in a slot. Ends in `Handover::ended`.
    fn start(&mut self, slot: AttemptId, entry: &Generation, grant: proto::Grant);
    /// Stops the action in a slot. It may be stopped already.
    fn stop(&mut self, slot: AttemptId);
    /// Forgets the ended action in a slot: its entry node received the end, or has been away for too long.
    fn forget(&mut self, slot: AttemptId);
    /// Publishes the result of an action whose entry node is gone, if the node may publish it.
    fn orphaned(&mut self, entry: &Generation, done: &Done);
}
