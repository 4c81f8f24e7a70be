//! The links, the scheduler and the tasks of a node, as its hand-over uses them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use futures::FutureExt as _;
use gorego_limits::LogLimit;
use gorego_scheduler::{
    ActionKey, AttemptId, ForeignSlot, Generation, Need, Phase, Report, Runner, WorkerId,
};
use prost::Message as _;
use reapi::gorego::{
    ResourceUsage,
    cluster::{self as proto, Done, Frame, Load, Prefetch, done::End, frame::Content},
};
use tokio::{runtime::Handle, sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Told, Work, ahead::LinkFetches, dials::Dials, view::Counts};
use crate::{
    choice,
    handover::{Host, Member, wire},
    link::{Links, MAX_FRAME, SendError},
    record::Record,
};

/// The most bytes of a grant, which has to fit into a frame.
const MAX_GRANT: usize = MAX_FRAME / 2;

/// The state of a node beside its state machines.
pub(super) struct Parts<J, O> {
    pub(super) links: Arc<Links>,
    pub(super) scheduler: Runner<J, O>,
    pub(super) work: Arc<dyn Work<J, O>>,
    pub(super) told: mpsc::UnboundedSender<Told<J, O>>,
    pub(super) tasks: TaskTracker,
    /// The runtime for work.
    runtime: Handle,
    pub(super) dials: Dials,
    /// The members, by their runs.
    pub(super) records: BTreeMap<Generation, Arc<Record>>,
    /// The peers with a link.
    pub(super) linked: BTreeMap<Generation, Linked>,
    /// The slots that wait for an action of another node, and the times of their claims.
    slots: HashMap<AttemptId, (Instant, ForeignSlot<J, O>)>,
    /// The actions of other nodes at this node, by their slots.
    pub(super) taken: HashMap<AttemptId, Taken<J>>,
    /// The actions of this node at other nodes, as long as a client waits for them.
    pub(super) given: HashMap<AttemptId, Given<J>>,
    pub(super) counts: Counts,
    /// Set while the actions of other nodes are measured.
    pub(super) is_measuring: bool,
    /// The nodes whose last attempts failed.
    pub(super) failing: BTreeSet<String>,
    /// Limits the errors of a node that shares no work.
    pub(super) namesake: LogLimit,
}

/// A peer with a link.
pub(super) struct Linked {
    record: Arc<Record>,
    pub(super) load: Option<Load>,
    /// The last time that gossip was sent or received.
    pub(super) gossiped: Instant,
    /// Ends the fetches of inputs ahead of actions of the peer.
    pub(super) fetches: LinkFetches,
}

/// An action of another node.
pub(super) struct Taken<J> {
    pub(super) entry: Generation,
    attempt: Option<proto::Attempt>,
    /// The job, once it is ready to run.
    pub(super) job: Arc<OnceLock<Arc<J>>>,
    stop: CancellationToken,
    pub(super) has_ended: bool,
}

/// An action of this node at another one.
pub(super) struct Given<J> {
    pub(super) node: Generation,
    key: ActionKey,
    job: Arc<J>,
    pub(super) has_ended: bool,
}

/// Returns the id of the worker that represents a run of a peer in the scheduler. It has the name of the node, as
/// results show it.
pub(super) fn worker(node: &Generation) -> WorkerId {
    WorkerId::new(node.node())
}

impl<J: Send + Sync + 'static, O: Send + Sync + 'static> Parts<J, O> {
    pub(super) fn new(
        links: Arc<Links>,
        scheduler: Runner<J, O>,
        work: Arc<dyn Work<J, O>>,
        told: mpsc::UnboundedSender<Told<J, O>>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            links,
            scheduler,
            runtime: work.runtime(),
            work,
            told,
            tasks,
            dials: Dials::default(),
            records: BTreeMap::new(),
            linked: BTreeMap::new(),
            slots: HashMap::new(),
            taken: HashMap::new(),
            given: HashMap::new(),
            counts: Counts::default(),
            is_measuring: false,
            failing: BTreeSet::new(),
            namesake: LogLimit::new(),
        }
    }

    pub(super) fn link_up(&mut self, record: Record) {
        let peer = record.node.clone();
        for packet in self.dials.take_packets(&peer) {
            self.send_content(&peer, Content::Gossip(packet));
        }
        let linked = Linked {
            record: Arc::new(record),
            load: None,
            gossiped: Instant::now(),
            fetches: LinkFetches::default(),
        };
        self.linked.insert(peer.clone(), linked);
        let load = self.own_load();
        self.send_content(&peer, Content::Load(load));
    }

    pub(super) fn link_down(&mut self, peer: &Generation) {
        self.linked.remove(peer);
    }

    /// Returns the record of a peer that gossips.
    pub(super) fn linked(&mut self, peer: &Generation) -> Option<Arc<Record>> {
        let linked = self.linked.get_mut(peer)?;
        linked.gossiped = Instant::now();
        Some(Arc::clone(&linked.record))
    }

    pub(super) fn set_load(&mut self, peer: &Generation, load: Load) {
        if let Some(linked) = self.linked.get_mut(peer) {
            linked.load = Some(load);
        }
    }

    pub(super) fn set_records(&mut self, records: Vec<Arc<Record>>) {
        let records = records.into_iter();
        self.records = records
            .map(|record| (record.node.clone(), record))
            .collect();
    }

    pub(super) fn own_load(&self) -> Load {
        let totals = self.scheduler.totals();
        let number = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        Load {
            running: number(totals.running),
            queued: number(totals.queued),
        }
    }

    pub(super) fn send_content(&self, peer: &Generation, content: Content) {
        let content = Some(content);
        match self.links.send(peer, Frame { content }) {
            // The end of the link is reported as an event.
            Ok(()) | Err(SendError::Down | SendError::Full) => {}
            Err(why @ SendError::TooLarge(_)) => {
                tracing::error!(%peer, %why, "failed to send a frame to a node");
                self.links.close(peer, "a frame was too large");
            }
        }
    }

    /// Sends a packet of the membership over the link to a node, and opens the link if needed.
    pub(super) fn gossip(&mut self, to: &Generation, address: &str, packet: Bytes) {
        if let Some(linked) = self.linked.get_mut(to) {
            linked.gossiped = Instant::now();
            self.send_content(to, Content::Gossip(packet));
        } else {
            self.dials.add_packet(to, packet);
            self.dial_at(to, address);
        }
    }

    pub(super) fn add_slot(&mut self, slot: ForeignSlot<J, O>) {
        let now = Instant::now();
        self.slots.insert(slot.claim.attempt, (now, slot));
    }

    /// Records that an action of another node has ended at this node.
    pub(super) fn ended_here(&mut self, slot: AttemptId) {
        if let Some(taken) = self.taken.get_mut(&slot) {
            taken.has_ended = true;
        }
    }

    pub(super) fn fits(&self, peer: &Generation) -> impl Fn(&str) -> bool {
        let record = self.records.get(peer).cloned();
        let work = Arc::clone(&self.work);
        move |platform| {
            let record = record.as_ref();
            record.is_some_and(|record| work.fits(record, platform))
        }
    }
}

impl<J: Send + Sync + 'static, O: Send + Sync + 'static> Host for Parts<J, O> {
    fn send(&mut self, peer: &Generation, frame: Content) {
        self.send_content(peer, frame);
    }

    fn connect(&mut self, peer: &Generation) {
        self.dial(peer);
    }

    fn queued(&mut self, peer: &Generation) -> Vec<(Need, usize)> {
        let fits = self.fits(peer);
        self.scheduler.queued_by_need(&worker(peer), fits)
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
        self.able_peers(members, chosen, most)
    }

    fn backlog(&mut self) -> (usize, u64) {
        let next = self.scheduler.next_target();
        let kind = next.map(|(target, mnemonic)| choice::kind(&target, &mnemonic));
        (self.scheduler.totals().queued, kind.unwrap_or_default())
    }

    fn grant(&mut self, peer: &Generation, need: Need) -> Option<(AttemptId, proto::Grant)> {
        let fits = self.fits(peer);
        let grant = self.scheduler.claim_for(&worker(peer), need, fits)?;
        let given = Given {
            node: peer.clone(),
            key: grant.key.clone(),
            job: Arc::clone(&grant.job),
            has_ended: false,
        };
        self.given.insert(grant.attempt, given);
        self.counts.given += 1;
        let mut frame = self.work.describe(&grant);
        // A wish, which need not be met.
        if frame.encoded_len() > MAX_GRANT {
            frame.inline_output_files.clear();
        }
        if frame.encoded_len() > MAX_GRANT {
            frame.metadata.clear();
        }
        Some((grant.attempt, frame))
    }

    fn look_ahead(&mut self, peer: &Generation, need: Need, most: usize) -> Vec<Prefetch> {
        self.choose_ahead(peer, need, most)
    }

    fn forget_ahead(&mut self, peer: &Generation) {
        self.scheduler.forget_ahead(&worker(peer));
    }

    fn set_takers(&mut self, takers: &[&Member]) {
        self.replace_takers(takers);
    }

    fn adopt(&mut self, peer: &Generation, attempt: AttemptId) -> bool {
        self.resume(peer, attempt)
    }

    fn is_awaited(&self, attempt: AttemptId) -> bool {
        self.scheduler.is_awaited(attempt)
    }

    fn progress(&mut self, attempt: AttemptId, phase: Phase, run: u16) {
        self.scheduler.progress(attempt, phase, run);
    }

    fn record_usage(&mut self, attempt: AttemptId, usage: Option<ResourceUsage>) {
        if let Some(given) = self.given.get(&attempt) {
            self.work.record_usage(&given.job, attempt, usage);
        }
    }

    fn ended(&mut self, peer: &Generation, done: Done) -> bool {
        let Some(attempt) = wire::attempt(done.attempt.as_ref()) else {
            return true;
        };
        let Some(given) = self.given.get_mut(&attempt) else {
            // Nobody waits for it, but its slot is still counted.
            self.scheduler.report(attempt, Report::Stopped);
            return true;
        };
        given.has_ended = true;
        // A node that stops is no loss, however often that happens to an action.
        let drains = |record: &Arc<Record>| record.draining;
        if done.end() == End::Stopped && self.records.get(peer).is_none_or(drains) {
            self.scheduler.decline(attempt);
            return true;
        }
        let (key, job) = (given.key.clone(), Arc::clone(&given.job));
        let (work, scheduler) = (Arc::clone(&self.work), self.scheduler.clone());
        let (told, peer) = (self.told.clone(), peer.clone());
        self.spawn(async move {
            let decoded = work.decode(&peer, &key, &job, done);
            let decoded = AssertUnwindSafe(decoded).catch_unwind().await;
            scheduler.report(attempt, decoded.unwrap_or(Report::Stopped));
            // This fails if this node has left the cluster.
            let _ = told.send(Told::Reported(peer, attempt));
        });
        false
    }

    fn lose(&mut self, attempt: AttemptId) {
        self.counts.lost += 1;
        self.end_given(attempt);
        self.scheduler.lose(attempt);
    }

    fn decline(&mut self, attempt: AttemptId) {
        self.counts.declined += 1;
        self.end_given(attempt);
        self.scheduler.decline(attempt);
    }

    fn remove(&mut self, peer: &Generation) {
        for given in self.given.values_mut() {
            if given.node == *peer && !std::mem::replace(&mut given.has_ended, true) {
                self.counts.gone += 1;
            }
        }
        self.scheduler.remove_worker(&worker(peer));
    }

    fn set_foreign(&mut self, entry: &Generation, counts: &[(Need, usize)], left: &[Need]) {
        let offered = counts.iter().map(|(_, actions)| *actions as u64).sum();
        self.counts.offered.insert(entry.clone(), offered);
        self.counts.offered.retain(|_, offered| *offered > 0);
        self.scheduler.set_foreign(entry, counts, left);
    }

    fn foreign_empty(&mut self, entry: &Generation, need: Need) {
        self.scheduler.foreign_empty(entry, need);
    }

    fn is_full(&self) -> bool {
        self.scheduler.is_full()
    }

    fn fetch_ahead(&mut self, entry: &Generation, prefetch: Prefetch) {
        self.start_fetch(entry, prefetch);
    }

    fn measure(&mut self) {
        self.start_measuring();
    }

    fn end_fetches(&mut self, entry: &Generation) {
        if let Some(linked) = self.linked.get_mut(entry) {
            linked.fetches = LinkFetches::default();
        }
    }

    fn free(&mut self, slot: AttemptId) {
        self.slots.remove(&slot);
    }

    fn start(&mut self, slot: AttemptId, entry: &Generation, grant: proto::Grant) {
        let Some((since, claimed)) = self.slots.remove(&slot) else {
            return;
        };
        self.counts.taken += 1;
        let (job, stop) = (Arc::default(), claimed.stop.clone());
        let taken = Taken {
            entry: entry.clone(),
            attempt: grant.attempt,
            job: Arc::clone(&job),
            stop: stop.clone(),
            has_ended: false,
        };
        self.taken.insert(slot, taken);
        let (work, told, entry) = (Arc::clone(&self.work), self.told.clone(), entry.clone());
        self.spawn(async move {
            let phases = told.clone();
            let progress = move |phase, run| {
                let _ = phases.send(Told::Progress(slot, phase, run));
            };
            let run = async {
                let prepared = stop.run_until_cancelled(work.prepare(&entry, &grant)).await;
                let report = match prepared {
                    None => Report::Stopped,
                    Some(Err(report)) => report,
                    Some(Ok(granted)) => {
                        // No other task sets it.
                        let _ = job.set(Arc::clone(&granted.job));
                        work.starts(since.elapsed());
                        claimed.run(granted, progress).await
                    }
                };
                work.encode(report).await
            };
            // Without an end, the lease of the attempt would be renewed forever.
            let done = AssertUnwindSafe(run).catch_unwind().await;
            let _ = told.send(Told::Ended(slot, done.unwrap_or_default()));
        });
    }

    fn stop(&mut self, slot: AttemptId) {
        if let Some(taken) = self.taken.get(&slot) {
            taken.stop.cancel();
        }
    }

    fn forget(&mut self, slot: AttemptId) {
        self.taken.remove(&slot);
    }

    fn orphaned(&mut self, entry: &Generation, done: &Done) {
        let of_done = |taken: &&Taken<J>| taken.entry == *entry && taken.attempt == done.attempt;
        let taken = self.taken.values().find(of_done);
        if let Some(job) = taken.and_then(|taken| taken.job.get()) {
            let (work, job, done) = (Arc::clone(&self.work), Arc::clone(job), done.clone());
            self.spawn(async move { work.adopt(&job, done).await });
        }
    }
}

impl<J: Send + Sync + 'static, O: Send + Sync + 'static> Parts<J, O> {
    /// Spawns a task on the runtime for work, so that it delays no link.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.runtime);
    }

    fn end_given(&mut self, attempt: AttemptId) {
        if let Some(given) = self.given.get_mut(&attempt) {
            given.has_ended = true;
        }
    }
}
