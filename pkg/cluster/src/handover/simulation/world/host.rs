//! The host of a node in the world: its scheduler, and a list of its pending effects.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use gorego_scheduler::{
    ActionKey, AttemptId, Generation, Need, Phase, Report, Scheduler, Taker, Time, WorkerId,
};
use reapi::gorego::{
    ResourceUsage,
    cluster::{self as proto, Done, Prefetch, frame::Content},
};

use crate::{
    handover::{Host, Member, wire},
    testing,
};

pub(super) enum Out {
    Send(Generation, Content),
    Connect(Generation),
    Start(AttemptId, u32),
    Stop(AttemptId),
    Orphan,
    Read(Generation, Done),
    Fetch(Generation, Bytes),
}

pub(crate) struct SimulatedHost<'a> {
    pub(super) scheduler: &'a mut Scheduler<u32, u32>,
    pub(super) out: &'a mut Vec<Out>,
    pub(super) now: Time,
    pub(super) reads: bool,
}

/// Returns the attempt and the report of its end.
pub(super) fn report_of(done: &Done) -> (AttemptId, Report<u32>) {
    let attempt = wire::attempt(done.attempt.as_ref());
    let attempt = attempt.unwrap_or_else(|| AttemptId::new(0, 0));
    (attempt, testing::report(done))
}

fn id(peer: &Generation) -> WorkerId {
    WorkerId::new(&peer.to_string())
}

impl Host for SimulatedHost<'_> {
    fn send(&mut self, peer: &Generation, frame: Content) {
        self.out.push(Out::Send(peer.clone(), frame));
    }

    fn connect(&mut self, peer: &Generation) {
        self.out.push(Out::Connect(peer.clone()));
    }

    fn queued(&mut self, peer: &Generation) -> Vec<(Need, usize)> {
        self.scheduler.queued_by_need(&id(peer), |_| true)
    }

    fn peers_to_free(&self) -> BTreeMap<Need, usize> {
        self.scheduler.peers_to_free()
    }

    fn classes(&self) -> usize {
        self.scheduler.count_classes()
    }

    fn peers_to_ask<'a>(
        &self,
        members: &[&'a Member],
        chosen: &BTreeSet<Generation>,
        most: usize,
    ) -> Vec<Vec<&'a Member>> {
        let named = members.iter().map(|member| (id(&member.node), *member));
        let named: BTreeMap<_, _> = named.collect();
        let is_chosen = |peer: &WorkerId| {
            let member = named.get(peer);
            member.is_some_and(|member| chosen.contains(&member.node))
        };
        let lists = self.scheduler.peers_to_ask(is_chosen, most).into_iter();
        let members = |peers: Vec<_>| {
            peers
                .iter()
                .filter_map(|peer| named.get(peer).copied())
                .collect()
        };
        lists.map(members).collect()
    }

    fn backlog(&mut self) -> (usize, u64) {
        (self.scheduler.totals().queued, 0)
    }

    fn grant(&mut self, peer: &Generation, need: Need) -> Option<(AttemptId, proto::Grant)> {
        let grant = self
            .scheduler
            .claim_for(&id(peer), need, |_| true, self.now)?;
        let frame = testing::grant_frame(&grant);
        Some((grant.attempt, frame))
    }

    fn look_ahead(&mut self, peer: &Generation, need: Need, most: usize) -> Vec<Prefetch> {
        let keys = self.scheduler.look_ahead(&id(peer), need, most, |_| true);
        let prefetch = |key: ActionKey| Prefetch {
            hash: Bytes::copy_from_slice(key.action.hash()),
            ..Prefetch::default()
        };
        keys.into_iter().map(prefetch).collect()
    }

    fn forget_ahead(&mut self, peer: &Generation) {
        self.scheduler.forget_ahead(&id(peer));
    }

    fn set_takers(&mut self, takers: &[&Member]) {
        let taker = |member: &&Member| Taker {
            worker: id(&member.node),
            memory: member.memory,
            fits: Arc::new(|_| true),
        };
        let takers = takers.iter().map(taker);
        self.scheduler.set_peers(takers.collect(), self.now);
    }

    fn adopt(&mut self, peer: &Generation, attempt: AttemptId) -> bool {
        self.scheduler.adopt(&id(peer), attempt, self.now)
    }

    fn is_awaited(&self, attempt: AttemptId) -> bool {
        self.scheduler.is_awaited(attempt)
    }

    fn progress(&mut self, attempt: AttemptId, phase: Phase, run: u16) {
        self.scheduler
            .progress_at_peer(attempt, phase, run, self.now);
    }

    fn record_usage(&mut self, _attempt: AttemptId, _usage: Option<ResourceUsage>) {}

    fn ended(&mut self, peer: &Generation, done: Done) -> bool {
        if self.reads {
            self.out.push(Out::Read(peer.clone(), done));
            return false;
        }
        let (attempt, report) = report_of(&done);
        self.scheduler.report(attempt, report, self.now);
        true
    }

    fn lose(&mut self, attempt: AttemptId) {
        self.scheduler.lose(attempt, self.now);
    }

    fn decline(&mut self, attempt: AttemptId) {
        self.scheduler.decline(attempt, self.now);
    }

    fn remove(&mut self, peer: &Generation) {
        self.scheduler.remove_worker(&id(peer), self.now);
    }

    fn set_foreign(&mut self, entry: &Generation, counts: &[(Need, usize)], left: &[Need]) {
        self.scheduler.set_foreign(entry, counts);
        self.scheduler.leave_foreign(entry, left);
    }

    fn foreign_empty(&mut self, entry: &Generation, need: Need) {
        self.scheduler.foreign_empty(entry, need);
    }

    fn is_full(&self) -> bool {
        self.scheduler.is_full()
    }

    fn fetch_ahead(&mut self, entry: &Generation, prefetch: Prefetch) {
        self.out.push(Out::Fetch(entry.clone(), prefetch.hash));
    }

    fn measure(&mut self) {}

    fn end_fetches(&mut self, _entry: &Generation) {}

    fn free(&mut self, slot: AttemptId) {
        self.scheduler.report(slot, Report::Stopped, self.now);
    }

    fn start(&mut self, slot: AttemptId, _entry: &Generation, grant: proto::Grant) {
        let need = if grant.alone {
            Need::Alone
        } else {
            Need::Memory(grant.memory)
        };
        self.scheduler.shrink(slot, need);
        let action = u32::try_from(grant.size).unwrap();
        self.out.push(Out::Start(slot, action));
    }

    fn stop(&mut self, slot: AttemptId) {
        self.out.push(Out::Stop(slot));
    }

    fn forget(&mut self, _slot: AttemptId) {}

    fn orphaned(&mut self, _entry: &Generation, _done: &Done) {
        self.out.push(Out::Orphan);
    }
}
