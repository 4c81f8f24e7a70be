//! The links, the scheduler and the tasks of a node, beside its state machines.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use gorego_limits::LogLimit;
use gorego_scheduler::{ActionKey, AttemptId, ForeignSlot, Generation, Runner, WorkerId};
use reapi::gorego::cluster::{self as proto, Frame, Load, frame::Content};
use tokio::{runtime::Handle, sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Told, Work, ahead::LinkFetches, dials::Dials, view::Counts};
use crate::{
    link::{Links, SendError},
    record::Record,
};

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
    pub(super) slots: HashMap<AttemptId, (Instant, ForeignSlot<J, O>)>,
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
    pub(super) attempt: Option<proto::Attempt>,
    /// The job, once it is ready to run.
    pub(super) job: Arc<OnceLock<Arc<J>>>,
    pub(super) stop: CancellationToken,
    pub(super) has_ended: bool,
}

/// An action of this node at another one.
pub(super) struct Given<J> {
    pub(super) node: Generation,
    pub(super) key: ActionKey,
    pub(super) job: Arc<J>,
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

    /// Returns the records of all peers with links.
    pub(super) fn all_linked(&self) -> Vec<Arc<Record>> {
        let linked = self.linked.values();
        linked.map(|it| Arc::clone(&it.record)).collect()
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

    pub(super) fn is_member(&self, peer: &Generation) -> bool {
        self.records.contains_key(peer)
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

    /// Spawns a task on the runtime for work, so that it delays no link.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.runtime);
    }

    pub(super) fn end_given(&mut self, attempt: AttemptId) {
        if let Some(given) = self.given.get_mut(&attempt) {
            given.has_ended = true;
        }
    }
}
