//! The hand-over between two runners of actions, in one process.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, OnceLock},
    time::Duration,
};

use gorego_scheduler::{
    AttemptId, Capacity, End, Foreign, ForeignSlot, Generation, Need, OperationId, Phase, Report,
    Runner, ScriptedAttempt, ScriptedWorker, Stage, Time, Watch, WorkerId,
};
use parking_lot::Mutex;
use reapi::gorego::{
    ResourceUsage,
    cluster::{self as proto, Done, frame::Content},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    handover::{Handover, Host, Member, wire},
    testing,
};

const CAPACITY: Capacity = Capacity {
    slots: 1,
    memory: 1 << 30,
};

type Frames = mpsc::UnboundedReceiver<Content>;

struct Node {
    generation: Generation,
    runner: Runner<u32, u32>,
    handover: Mutex<Handover>,
    start: Instant,
    /// The link with the other node.
    peer: OnceLock<mpsc::UnboundedSender<Content>>,
    claimed: Mutex<HashMap<AttemptId, ForeignSlot<u32, u32>>>,
    running: Mutex<HashMap<AttemptId, CancellationToken>>,
    tasks: TaskTracker,
}

struct NodeHost<'a>(&'a Arc<Node>);

struct Slots(Arc<Node>);

impl Foreign<u32, u32> for Slots {
    fn claimed(&self, slot: ForeignSlot<u32, u32>) {
        let claim = slot.claim.clone();
        self.0.claimed.lock().insert(claim.attempt, slot);
        self.0.with(|handover, now, host| {
            handover.claimed(claim.attempt, &claim.entry, claim.need, now, host);
        });
    }
}

impl Node {
    fn with(self: &Arc<Self>, event: impl FnOnce(&mut Handover, Time, &mut NodeHost<'_>)) {
        let now = self.start.elapsed();
        event(&mut self.handover.lock(), now, &mut NodeHost(self));
    }

    async fn run(self: Arc<Self>, peer: Generation, mut frames: Frames) {
        let mut stops = self.runner.stops();
        let mut changes = self.runner.queue_changes();
        loop {
            let deadline = self.handover.lock().deadline();
            let deadline = deadline.unwrap_or(Duration::from_hours(1));
            tokio::select! {
                Some(frame) = frames.recv() => {
                    self.with(|handover, now, host| handover.frame(&peer, frame, now, host));
                }
                Ok(()) = changes.changed() => {
                    self.with(|handover, now, host| handover.queue_changed(now, host));
                }
                Some(attempt) = stops.recv() => {
                    self.with(|handover, _, host| handover.stop(attempt, host));
                }
                () = tokio::time::sleep_until(self.start + deadline) => {
                    self.with(|handover, now, host| handover.tick(now, host));
                }
            }
        }
    }

    async fn run_slot(self: Arc<Self>, slot: ForeignSlot<u32, u32>, grant: proto::Grant) {
        let id = slot.claim.attempt;
        let grant = testing::grant(&grant);
        let node = Arc::clone(&self);
        let progress = move |phase, run| {
            node.with(|handover, _, host| handover.progress(id, phase, run, host));
        };
        let report = slot.run(grant, progress).await;
        self.running.lock().remove(&id);
        let done = testing::end_frame(&report);
        self.with(|handover, _, host| handover.ended(id, done, host));
    }
}

impl Host for NodeHost<'_> {
    fn send(&mut self, _peer: &Generation, frame: Content) {
        let _ = self.0.peer.get().unwrap().send(frame);
    }

    fn connect(&mut self, _peer: &Generation) {}

    fn queued(&mut self, peer: &Generation) -> Vec<(Need, usize)> {
        let worker = WorkerId::new(&peer.to_string());
        self.0.runner.queued_by_need(&worker, |_| true)
    }

    fn peers_to_free(&self) -> BTreeMap<Need, usize> {
        self.0.runner.peers_to_free()
    }

    fn classes(&self) -> usize {
        self.0.runner.count_classes()
    }

    fn peers_to_ask<'a>(
        &self,
        _members: &[&'a Member],
        _chosen: &BTreeSet<Generation>,
        _most: usize,
    ) -> Vec<Vec<&'a Member>> {
        Vec::new()
    }

    fn backlog(&mut self) -> (usize, u64) {
        let target = self.0.runner.next_target();
        let kind = target.map(|(target, mnemonic)| crate::choice::kind(&target, &mnemonic));
        (self.0.runner.totals().queued, kind.unwrap_or(0))
    }

    fn grant(&mut self, peer: &Generation, need: Need) -> Option<(AttemptId, proto::Grant)> {
        let worker = WorkerId::new(&peer.to_string());
        let grant = self.0.runner.claim_for(&worker, need, |_| true)?;
        let frame = testing::grant_frame(&grant);
        Some((grant.attempt, frame))
    }

    fn look_ahead(&mut self, _: &Generation, _: Need, _: usize) -> Vec<proto::Prefetch> {
        Vec::new()
    }

    fn forget_ahead(&mut self, _peer: &Generation) {}

    fn set_takers(&mut self, _takers: &[&Member]) {}

    fn adopt(&mut self, peer: &Generation, attempt: AttemptId) -> bool {
        let worker = WorkerId::new(&peer.to_string());
        self.0.runner.adopt(&worker, attempt)
    }

    fn is_awaited(&self, attempt: AttemptId) -> bool {
        self.0.runner.is_awaited(attempt)
    }

    fn progress(&mut self, attempt: AttemptId, phase: Phase, run: u16) {
        self.0.runner.progress(attempt, phase, run);
    }

    fn record_usage(&mut self, _attempt: AttemptId, _usage: Option<ResourceUsage>) {}

    fn ended(&mut self, _peer: &Generation, done: Done) -> bool {
        let attempt = wire::attempt(done.attempt.as_ref()).unwrap();
        self.0.runner.report(attempt, testing::report(&done));
        true
    }

    fn lose(&mut self, attempt: AttemptId) {
        self.0.runner.lose(attempt);
    }

    fn decline(&mut self, attempt: AttemptId) {
        self.0.runner.decline(attempt);
    }

    fn remove(&mut self, peer: &Generation) {
        self.0
            .runner
            .remove_worker(&WorkerId::new(&peer.to_string()));
    }

    fn set_foreign(&mut self, entry: &Generation, counts: &[(Need, usize)], left: &[Need]) {
        self.0.runner.set_foreign(entry, counts, left);
    }

    fn foreign_empty(&mut self, entry: &Generation, need: Need) {
        self.0.runner.foreign_empty(entry, need);
    }

    fn is_full(&self) -> bool {
        self.0.runner.is_full()
    }

    fn fetch_ahead(&mut self, _entry: &Generation, _prefetch: proto::Prefetch) {}

    fn measure(&mut self) {}

    fn end_fetches(&mut self, _entry: &Generation) {}

    fn free(&mut self, slot: AttemptId) {
        self.0.claimed.lock().remove(&slot);
    }

    fn start(&mut self, slot: AttemptId, _entry: &Generation, grant: proto::Grant) {
        let slot = self.0.claimed.lock().remove(&slot).unwrap();
        let mut running = self.0.running.lock();
        running.insert(slot.claim.attempt, slot.stop.clone());
        self.0.tasks.spawn(Arc::clone(self.0).run_slot(slot, grant));
    }

    fn stop(&mut self, slot: AttemptId) {
        if let Some(stop) = self.0.running.lock().get(&slot) {
            stop.cancel();
        }
    }

    fn forget(&mut self, _slot: AttemptId) {}

    fn orphaned(&mut self, _entry: &Generation, _done: &Done) {}
}

fn node(name: &str) -> Arc<Node> {
    let generation = Generation::new(name, 1).unwrap();
    let node = Arc::new(Node {
        handover: Mutex::new(Handover::new(generation.clone(), CAPACITY.slots, 7)),
        generation,
        runner: Runner::new(testing::options()),
        start: Instant::now(),
        peer: OnceLock::new(),
        claimed: Mutex::default(),
        running: Mutex::default(),
        tasks: TaskTracker::new(),
    });
    node.runner
        .set_foreign_handler(Arc::new(Slots(Arc::clone(&node))));
    node
}

/// Starts an entry node without slots, and a node with one. Returns the entry node and the attempts of the other.
fn start() -> (Arc<Node>, mpsc::Receiver<ScriptedAttempt<u32, u32>>) {
    let nodes = [node("entry"), node("taker")];
    let (worker, attempts) = ScriptedWorker::new();
    let id = WorkerId::new("local");
    nodes[1].runner.add_worker(id, CAPACITY, worker);
    let [to_entry, to_taker] = [mpsc::unbounded_channel(), mpsc::unbounded_channel()];
    nodes[0].peer.set(to_taker.0).unwrap();
    nodes[1].peer.set(to_entry.0).unwrap();
    let pairs = [
        (&nodes[0], &nodes[1], to_entry.1),
        (&nodes[1], &nodes[0], to_taker.1),
    ];
    for (own, peer, frames) in pairs {
        let members = nodes.iter().map(|node| Member {
            node: node.generation.clone(),
            slots: 1,
            memory: 1 << 30,
            draining: false,
        });
        own.with(|handover, now, host| {
            handover.members(members, now, host);
            handover.link_up(&peer.generation, now, host);
        });
        let run = Arc::clone(own).run(peer.generation.clone(), frames);
        own.tasks.spawn(run);
    }
    let [entry, _] = nodes;
    (entry, attempts)
}

fn submit(node: &Node, action: u32) -> Watch<u32, u32> {
    let request = testing::request(action);
    let id = OperationId(action.into());
    node.runner.submit(id, &request).unwrap()
}

/// Returns the worker and the phase of the next running stage, or the result.
async fn next(watch: &mut Watch<u32, u32>) -> Result<(String, Option<Phase>), u32> {
    loop {
        match watch.next().await.unwrap() {
            Stage::Queued => {}
            Stage::Executing(running) => return Ok((running.worker.to_string(), running.phase)),
            Stage::Completed(End::Outcome(value)) => return Err(*value),
            Stage::Completed(end) => panic!("{end:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn actions_of_one_node_run_at_another() {
    let (entry, mut attempts) = start();
    let mut watches = [submit(&entry, 1), submit(&entry, 2)];
    for (at, watch) in watches.iter_mut().enumerate() {
        let running = attempts.recv().await.unwrap();
        let action = u32::try_from(at + 1).unwrap();
        let grant = &running.attempt.grant;
        assert_eq!((*grant.job, grant.memory), (action, 1 << 20));
        assert_eq!(next(watch).await, Ok(("taker-1".to_owned(), None)));
        running.attempt.begin(Phase::Run);
        let run = Some(Phase::Run);
        assert_eq!(next(watch).await, Ok(("taker-1".to_owned(), run)));
        // The lease is renewed.
        tokio::time::sleep(Duration::from_secs(20)).await;
        running.end(testing::done(action));
        assert_eq!(next(watch).await, Err(action));
    }
    assert_eq!(entry.runner.totals().ends.retries, 0);
}

#[tokio::test(start_paused = true)]
async fn an_action_that_is_cancelled_stops_at_the_other_node() {
    let (entry, mut attempts) = start();
    let watch = submit(&entry, 1);
    let running = attempts.recv().await.unwrap();
    entry.runner.cancel(watch.operation());
    running.attempt.stop.cancelled().await;
    running.end(Report::Stopped);
    // The slot serves the next one.
    let _watch = submit(&entry, 2);
    assert_eq!(*attempts.recv().await.unwrap().attempt.grant.job, 2);
}
