//! The role of the node that takes actions of others: claims, running attempts, and their ends.

use std::collections::HashMap;

use gorego_scheduler::{AttemptId, Generation, Need, Phase, Time};
use reapi::gorego::{
    ResourceUsage,
    cluster::{
        Cancel, Claim, Done, Grant, Nothing, Progress, Received, Running, done::End, frame::Content,
    },
};

use super::{Handover, Host, LEASE, Peer, wire};

/// The most attempts in a frame, which then is far smaller than a link takes.
const MAX_ATTEMPTS: usize = 512;

/// A claim without an answer.
#[derive(Debug)]
pub(super) struct OpenClaim {
    pub(super) slot: AttemptId,
    need: Need,
    since: Time,
}

/// An attempt of a peer's action.
#[derive(Debug)]
pub(super) struct Taken {
    slot: AttemptId,
    phase: Option<Phase>,
    run: u16,
    /// The resources that the command used when they were last measured.
    usage: Option<ResourceUsage>,
    /// The end, until the peer has received it.
    pub(super) done: Option<Done>,
}

impl Taken {
    /// Returns whether the action has not got all of its inputs.
    pub(super) fn reads_inputs(&self) -> bool {
        self.done.is_none() && self.phase < Some(Phase::Run)
    }
}

impl Handover {
    /// Asks an entry node for an action for a slot that was claimed for it.
    pub fn claimed(
        &mut self,
        slot: AttemptId,
        entry: &Generation,
        need: Need,
        now: Time,
        host: &mut impl Host,
    ) {
        let peer = self.peers.get_mut(entry);
        let Some(peer) = peer.filter(|peer| peer.is_up()) else {
            host.free(slot);
            return;
        };
        let since = now;
        let claim = slot.execution();
        peer.claims.insert(claim, OpenClaim { slot, need, since });
        let need = Some(wire::need_frame(need));
        host.send(entry, Content::Claim(Claim { claim, need }));
    }

    /// Records the phase that begins in a slot, and the number of the command's current or next run.
    pub fn progress(&mut self, slot: AttemptId, phase: Phase, run: u16, host: &mut impl Host) {
        if let Some((node, peer, attempt)) = self.find(slot) {
            if let Some(taken) = peer.taken.get_mut(&attempt) {
                (taken.phase, taken.run, taken.usage) = (Some(phase), run, None);
            }
            if peer.is_up() {
                let running = vec![wire::running_frame(attempt, Some(phase), run, None)];
                host.send(node, Content::Progress(Progress { running }));
            }
        }
        self.begin_fetches(host);
    }

    /// Replaces the resources that the commands of other nodes use, by their slots.
    pub fn measured(&mut self, usage: &HashMap<AttemptId, ResourceUsage>) {
        let taken = self.peers.values_mut();
        for taken in taken.flat_map(|peer| peer.taken.values_mut()) {
            taken.usage = usage.get(&taken.slot).copied();
        }
    }

    /// Records the end of the action in a slot, which is then free. Sets the attempt in `done`. The entry node gets it
    /// as soon as it can be reached.
    pub fn ended(&mut self, slot: AttemptId, mut done: Done, host: &mut impl Host) {
        if let Some((node, peer, attempt)) = self.find(slot) {
            done.attempt = Some(wire::attempt_frame(attempt));
            if peer.is_up() {
                host.send(node, Content::Done(done.clone()));
            } else if peer.is_gone() {
                host.orphaned(node, &done);
            }
            if let Some(taken) = peer.taken.get_mut(&attempt) {
                taken.done = Some(done);
            }
        }
        self.begin_fetches(host);
    }

    /// Returns the entry node and the attempt of a slot.
    fn find(&mut self, slot: AttemptId) -> Option<(&Generation, &mut Peer, AttemptId)> {
        self.peers.iter_mut().find_map(|(node, peer)| {
            let mut taken = peer.taken.iter();
            let (attempt, _) = taken.find(|(_, taken)| taken.slot == slot)?;
            let attempt = *attempt;
            Some((node, peer, attempt))
        })
    }
}

impl Peer {
    /// Begins a link: lists the attempts of the peer's actions at this node, and sends the ends that the peer has not
    /// received.
    pub(super) fn resume(&self, node: &Generation, host: &mut impl Host) {
        let attempts = self.taken.keys().copied().map(wire::attempt_frame);
        let attempts = attempts.collect();
        host.send(node, Content::Running(Running { attempts }));
        for done in self.taken.values().filter_map(|taken| taken.done.clone()) {
            host.send(node, Content::Done(done));
        }
    }

    pub(super) fn on_grant(&mut self, node: &Generation, grant: Grant, host: &mut impl Host) {
        let Some(attempt) = wire::attempt(grant.attempt.as_ref()) else {
            return;
        };
        let need = if grant.alone {
            Need::Alone
        } else {
            Need::Memory(grant.memory)
        };
        let claim = self.claims.remove(&grant.claim);
        let slot = claim.as_ref().map(|claim| claim.slot);
        let Some(slot) = slot.filter(|_| claim.is_some_and(|claim| claim.need.covers(need))) else {
            if let Some(slot) = slot {
                host.free(slot);
            }
            host.send(node, Content::Done(wire::end_frame(attempt, End::Declined)));
            return;
        };
        let taken = Taken {
            slot,
            phase: None,
            run: u16::try_from(grant.run).unwrap_or(u16::MAX),
            usage: None,
            done: None,
        };
        self.taken.insert(attempt, taken);
        self.is_ahead = false;
        host.start(slot, node, grant);
    }

    pub(super) fn on_nothing(&mut self, node: &Generation, nothing: Nothing, host: &mut impl Host) {
        if let Some(claim) = self.claims.remove(&nothing.claim) {
            self.offered = self.offered.filter(|offered| !claim.need.covers(*offered));
            host.foreign_empty(node, claim.need);
            host.free(claim.slot);
        }
    }

    pub(super) fn on_received(&mut self, received: &Received, host: &mut impl Host) {
        if let Some(attempt) = wire::attempt(received.attempt.as_ref())
            && let Some(taken) = self.taken.get(&attempt)
            && taken.done.is_some()
        {
            host.forget(taken.slot);
            self.taken.remove(&attempt);
        }
    }

    pub(super) fn on_cancel(&mut self, cancel: &Cancel, host: &mut impl Host) {
        if let Some(attempt) = wire::attempt(cancel.attempt.as_ref())
            && let Some(taken) = self.taken.get(&attempt)
            && taken.done.is_none()
        {
            host.stop(taken.slot);
        }
    }

    /// Renews the leases of the peer's attempts, also of attempts whose end the peer has not received.
    pub(super) fn renew(&self, node: &Generation, host: &mut impl Host) {
        let running = self.taken.iter();
        let running: Vec<_> = running
            .map(|(attempt, taken)| {
                wire::running_frame(*attempt, taken.phase, taken.run, taken.usage)
            })
            .collect();
        for running in running.chunks(MAX_ATTEMPTS) {
            let running = running.to_vec();
            host.send(node, Content::Progress(Progress { running }));
        }
    }

    /// Frees the slots of claims that the peer has not answered.
    pub(super) fn end_claims(&mut self, node: &Generation, now: Time, host: &mut impl Host) {
        let unanswered = self
            .claims
            .extract_if(.., |_, claim| now.saturating_sub(claim.since) >= LEASE);
        for (_, claim) in unanswered {
            host.foreign_empty(node, claim.need);
            host.free(claim.slot);
        }
    }

    /// Stops the attempts of a peer that has been away for [`ORPHAN`](super::ORPHAN), and drops their ends.
    pub(super) fn end_orphans(&mut self, host: &mut impl Host) {
        self.taken.retain(|_, taken| {
            let runs = taken.done.is_none();
            if runs {
                host.stop(taken.slot);
            } else {
                host.forget(taken.slot);
            }
            runs
        });
    }
}
