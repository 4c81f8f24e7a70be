//! Nodes with real schedulers, and links between them that delay, break and keep the order of their frames.

mod clients;
#[cfg(test)]
mod control;
mod host;
mod network;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fastrand::Rng;
use gorego_scheduler::{
    AttemptId, Capacity, Claimed, Effect, End, Generation, OperationId, Phase, Report, Scheduler,
    Stage, Taker, Time, WorkerId,
};
use reapi::gorego::cluster::{Done, done::End as DoneEnd, frame::Content};

pub(crate) use self::clients::Submitted;
use self::host::{Out, SimulatedHost, report_of};
use crate::{
    handover::{Down, Handover},
    testing,
};

pub(crate) const MIB: u64 = 1 << 20;
const MEMORY: u64 = 1024 * MIB;

/// A node. Its generation grows with each start.
pub(crate) struct Node {
    pub(crate) generation: Generation,
    pub(crate) is_alive: bool,
    pub(crate) scheduler: Scheduler<u32, u32>,
    pub(crate) handover: Handover,
    slots: usize,
    worker: WorkerId,
    /// The link with each peer, as this node sees it.
    links: BTreeMap<Generation, u64>,
    tick: Option<Time>,
    version: u64,
    /// The actions that run at this node, and whether another node owns them.
    pub(crate) running: BTreeMap<AttemptId, (u32, bool)>,
    /// The actions that ended without their entry node.
    pub(crate) orphans: usize,
    pub(crate) busy: Duration,
    /// The hashes of the actions whose inputs were fetched ahead, or are.
    pub(crate) fetched: Vec<Bytes>,
    /// The end of a stop of the process, which handles its events afterwards.
    paused: Time,
}

enum Event {
    Deliver(usize, Generation, u64, Content),
    LinkUp(Generation, Generation, u64),
    LinkDown(usize, Generation, Option<u64>, Down),
    End(Generation, AttemptId, DoneEnd),
    Read(Generation, Generation, Done),
    Fetched(Generation, Generation),
    Tick(Generation),
}

impl Event {
    /// The node that handles the event.
    fn node(&self) -> usize {
        match self {
            Self::Deliver(at, ..) | Self::LinkDown(at, ..) => *at,
            Self::LinkUp(node, ..)
            | Self::End(node, ..)
            | Self::Read(node, ..)
            | Self::Fetched(node, ..)
            | Self::Tick(node) => index(node),
        }
    }
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) nodes: Vec<Node>,
    pub(crate) operations: BTreeMap<OperationId, Submitted>,
    /// The operations that ended since the caller looked.
    pub(crate) ended: usize,
    /// The number of attempts that were begun.
    pub(crate) begun: u64,
    /// The number of links that were to be opened.
    pub(crate) connects: u64,
    /// The number of attempts of each action.
    pub(crate) runs: BTreeMap<u32, usize>,
    events: BTreeMap<(Time, u64), Event>,
    next: u64,
    latency: Duration,
    broken: BTreeSet<u64>,
    /// The nodes at which every attempt fails at once.
    pub(crate) bad: BTreeSet<usize>,
    /// Set if clients may get the failures of nodes.
    pub(crate) failures_are_expected: bool,
    /// The pairs of nodes that cannot connect.
    pub(crate) partitions: BTreeSet<(usize, usize)>,
    pub(crate) random: Rng,
    /// Set if some responses are read over another connection.
    pub(crate) reads: bool,
    pub(crate) duration: fn(u32) -> Duration,
}

pub(crate) fn index(node: &Generation) -> usize {
    node.node()[1..].parse().unwrap()
}

impl Node {
    fn new(index: usize, number: u64, slots: usize) -> Self {
        let generation = Generation::new(&format!("n{index}"), number).unwrap();
        let worker = WorkerId::new("local");
        let mut scheduler = Scheduler::new(testing::options());
        let memory = MEMORY;
        scheduler.set_worker(&worker, Capacity { slots, memory });
        if slots > 0 {
            scheduler.set_taker(Taker {
                worker: worker.clone(),
                memory,
                fits: Arc::new(|_| true),
            });
        }
        Self {
            handover: Handover::new(generation.clone(), slots, 7),
            generation,
            is_alive: true,
            scheduler,
            slots,
            worker,
            links: BTreeMap::new(),
            tick: None,
            version: 0,
            running: BTreeMap::new(),
            orphans: 0,
            busy: Duration::ZERO,
            fetched: Vec::new(),
            paused: Time::ZERO,
        }
    }
}

impl World {
    pub(crate) fn new(slots: &[usize], latency: Duration, seed: u64) -> Self {
        let nodes = slots.iter().enumerate();
        let mut world = Self {
            now: Duration::from_secs(1),
            nodes: nodes.map(|(at, slots)| Node::new(at, 1, *slots)).collect(),
            operations: BTreeMap::new(),
            ended: 0,
            begun: 0,
            connects: 0,
            runs: BTreeMap::new(),
            events: BTreeMap::new(),
            next: 0,
            latency,
            broken: BTreeSet::new(),
            bad: BTreeSet::new(),
            failures_are_expected: false,
            partitions: BTreeSet::new(),
            random: Rng::with_seed(seed),
            reads: false,
            duration: |_| Duration::from_secs(1),
        };
        world.update_members();
        world
    }

    /// Handles the next event. Returns false if there is none.
    pub(crate) fn step(&mut self) -> bool {
        let Some(((at, _), event)) = self.events.pop_first() else {
            return false;
        };
        self.now = at;
        self.handle(event);
        true
    }

    fn after(&mut self, time: Duration, event: Event) {
        self.next += 1;
        self.events.insert((self.now + time, self.next), event);
    }

    /// Returns the position of a run of a node, if it lives.
    fn alive(&self, generation: &Generation) -> Option<usize> {
        let at = index(generation);
        let node = &self.nodes[at];
        (node.is_alive && node.generation == *generation).then_some(at)
    }

    fn handle(&mut self, event: Event) {
        let paused = self.nodes[event.node()].paused;
        if paused > self.now {
            self.after(paused.saturating_sub(self.now), event);
            return;
        }
        match event {
            Event::Deliver(at, from, link, frame) => {
                if self.nodes[at].links.get(&from) == Some(&link) && !self.broken.contains(&link) {
                    self.with(at, |handover, now, host| {
                        handover.frame(&from, frame, now, host);
                    });
                }
            }
            Event::LinkUp(node, peer, link) => {
                let Some(at) = self.alive(&node) else {
                    return;
                };
                self.nodes[at].links.insert(peer.clone(), link);
                if self.alive(&peer).is_none() || self.broken.contains(&link) {
                    let down = Event::LinkDown(at, peer.clone(), Some(link), Down::Broken);
                    self.after(Duration::from_millis(500), down);
                }
                self.with(at, |handover, now, host| handover.link_up(&peer, now, host));
            }
            Event::LinkDown(at, peer, link, down) => {
                let links = &mut self.nodes[at].links;
                if links.get(&peer).copied() == link {
                    links.remove(&peer);
                    self.with(at, |handover, now, host| {
                        handover.link_down(&peer, down, now, host);
                    });
                }
            }
            Event::End(node, slot, end) => self.end(&node, slot, end),
            Event::Read(node, peer, done) => {
                if let Some(at) = self.alive(&node) {
                    let (attempt, report) = report_of(&done);
                    let now = self.now;
                    self.nodes[at].scheduler.report(attempt, report, now);
                    self.with(at, |handover, _, host| {
                        handover.received(&peer, attempt, host);
                    });
                }
            }
            Event::Fetched(node, entry) => {
                if let Some(at) = self.alive(&node) {
                    self.with(at, |handover, _, host| handover.fetched(&entry, host));
                }
            }
            Event::Tick(node) => {
                if let Some(at) = self.alive(&node) {
                    self.nodes[at].tick = None;
                    let now = self.now;
                    self.nodes[at].scheduler.tick(now);
                    self.with(at, |handover, now, host| handover.tick(now, host));
                }
            }
        }
    }

    fn end(&mut self, node: &Generation, slot: AttemptId, end: DoneEnd) {
        let Some(at) = self.alive(node) else {
            return;
        };
        let now = self.now;
        let node = &mut self.nodes[at];
        let Some((action, is_foreign)) = node.running.remove(&slot) else {
            return;
        };
        let value = if end == DoneEnd::Failed {
            u32::MAX
        } else {
            action
        };
        let done = Done {
            end: end.into(),
            response: value.to_le_bytes().to_vec().into(),
            ..Done::default()
        };
        let (_, report) = report_of(&done);
        if is_foreign {
            node.scheduler.report(slot, Report::Stopped, now);
            self.with(at, |handover, _, host| handover.ended(slot, done, host));
        } else {
            node.scheduler.report(slot, report, now);
            self.pump(at);
        }
    }

    /// Passes an event to the machine of a live node, and carries out the effects.
    pub(crate) fn with(
        &mut self,
        at: usize,
        event: impl FnOnce(&mut Handover, Time, &mut SimulatedHost<'_>),
    ) {
        if !self.nodes[at].is_alive {
            return;
        }
        let mut out = Vec::new();
        let node = &mut self.nodes[at];
        let mut host = SimulatedHost {
            scheduler: &mut node.scheduler,
            out: &mut out,
            now: self.now,
            reads: self.reads && self.random.bool(),
        };
        event(&mut node.handover, self.now, &mut host);
        for out in out {
            self.carry_out(at, out);
        }
        self.pump(at);
    }

    fn carry_out(&mut self, at: usize, out: Out) {
        let own = self.nodes[at].generation.clone();
        match out {
            Out::Send(peer, frame) => {
                if let Some(link) = self.nodes[at].links.get(&peer).copied() {
                    let deliver = Event::Deliver(index(&peer), own, link, frame);
                    self.after(self.latency, deliver);
                }
            }
            Out::Connect(peer) => self.connect(at, peer),
            Out::Start(slot, action) => self.start(at, slot, action, true),
            Out::Orphan => self.nodes[at].orphans += 1,
            Out::Stop(slot) => {
                let end = Event::End(own, slot, DoneEnd::Stopped);
                self.after(Duration::from_millis(1), end);
            }
            Out::Fetch(entry, action) => {
                self.nodes[at].fetched.push(action);
                let fetched = Event::Fetched(own, entry);
                self.after(Duration::from_millis(50), fetched);
            }
            Out::Read(peer, done) => {
                let read = Event::Read(own, peer, done);
                self.after(Duration::from_millis(50), read);
            }
        }
    }

    fn start(&mut self, at: usize, slot: AttemptId, action: u32, is_foreign: bool) {
        let time = (self.duration)(action);
        self.begun += 1;
        *self.runs.entry(action).or_default() += 1;
        let node = &mut self.nodes[at];
        node.running.insert(slot, (action, is_foreign));
        node.busy += time;
        assert!(node.running.len() <= node.slots);
        let (time, end) = if self.bad.contains(&at) {
            (Duration::from_millis(1), DoneEnd::Failed)
        } else {
            (time, DoneEnd::Done)
        };
        let end = Event::End(node.generation.clone(), slot, end);
        self.after(time, end);
        if is_foreign {
            self.with(at, |handover, _, host| {
                handover.progress(slot, Phase::Run, 1, host);
            });
        }
    }

    /// Carries out the effects of a node's scheduler, and lets its worker claim.
    pub(crate) fn pump(&mut self, at: usize) {
        loop {
            let now = self.now;
            let node = &mut self.nodes[at];
            for effect in node.scheduler.take_effects() {
                self.carry_out_effect(at, effect);
            }
            let node = &mut self.nodes[at];
            let version = node.scheduler.queue_version();
            if std::mem::replace(&mut node.version, version) != version {
                self.with(at, |handover, now, host| handover.queue_changed(now, host));
                return;
            }
            match node.scheduler.claim(&node.worker, |_| true, now) {
                None => break,
                Some(Claimed::Own(grant)) => self.start(at, grant.attempt, *grant.job, false),
                Some(Claimed::Foreign(claim)) => {
                    self.with(at, |handover, now, host| {
                        handover.claimed(claim.attempt, &claim.entry, claim.need, now, host);
                    });
                    return;
                }
            }
        }
        let node = &mut self.nodes[at];
        if let Some(deadline) = node.handover.deadline()
            && node.tick.is_none_or(|tick| deadline < tick)
        {
            node.tick = Some(deadline);
            let tick = Event::Tick(node.generation.clone());
            self.after(deadline.saturating_sub(self.now), tick);
        }
    }

    fn carry_out_effect(&mut self, at: usize, effect: Effect<u32>) {
        match effect {
            Effect::Claim => {}
            Effect::Stop(worker, attempt) if worker == self.nodes[at].worker => {
                self.carry_out(at, Out::Stop(attempt));
            }
            Effect::Stop(_, attempt) => {
                self.with(at, |handover, _, host| handover.stop(attempt, host));
            }
            Effect::Notify(id, stage) => {
                let operation = self.operations.get_mut(&id).unwrap();
                assert!(operation.end.is_none(), "{id} ended before");
                match stage {
                    Stage::Queued => {}
                    Stage::Executing(_) => {
                        let wait = self.now.checked_sub(operation.at);
                        operation.wait = operation.wait.or(wait);
                    }
                    Stage::Completed(end) => {
                        if let End::Outcome(value) = &end {
                            assert!(**value == operation.action || self.failures_are_expected);
                        }
                        operation.end = Some(end);
                        self.ended += 1;
                    }
                }
            }
        }
    }
}
