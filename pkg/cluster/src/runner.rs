//! The tasks of a node: its membership and its hand-over, on its links.
//!
//! [`Cluster::start`] spawns one task that owns both state machines and passes events to them: links, addresses, the
//! queue, slots, and time. The task waits for nothing else, so that a slow disk or action delays no other node.

mod ahead;
mod dials;
mod events;
mod host;
mod leaving;
mod parts;
mod takers;
#[cfg(test)]
mod tests;
mod upkeep;
mod view;
mod work;

use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt as _;
use gorego_scheduler::{AttemptId, Foreign, ForeignSlot, Generation, Phase, Runner, Time};
use parking_lot::Mutex;
use reapi::gorego::{
    ResourceUsage,
    cluster::{Done, Load, frame::Content},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    blobs::{Member as BlobMember, Peers},
    discovery::Discovery,
    handover::{Down, Handover, Member},
    link::{DialError, Events, Links},
    membership::{Departure, Effect, MemberState, Membership, MembershipOptions},
    record::{Record, RecordError},
};

use parts::Parts;
pub use view::{Counts, NodeView, View};
pub use work::Work;

/// The time without a frame after which an unused link is closed.
const IDLE: Duration = Duration::from_mins(1);
/// The period in which the view is refreshed, and idle links are closed.
const UPKEEP: Duration = Duration::from_millis(500);
/// The longest delay of the membership by packets that arrived.
const LATE: Duration = Duration::from_millis(300);
/// The time for delivering ends of actions and the farewell at shutdown.
const FAREWELL: Duration = Duration::from_secs(2);

/// The settings of a node.
#[derive(Debug)]
pub struct Options {
    /// The name of the cluster.
    pub cluster: String,
    /// The facts about this node.
    pub record: Record,
    /// The limits and periods of the membership.
    pub membership: MembershipOptions,
    /// The period in which the load is sent while it changes.
    pub load_period: Duration,
}

/// The parts of a node.
pub struct Components<J, O> {
    /// The links, and their events.
    pub links: (Arc<Links>, Events),
    /// The places where other nodes may be.
    pub discovery: Discovery,
    /// The queue and the slots of this node.
    pub scheduler: Runner<J, O>,
    /// The work for actions of others.
    pub work: Arc<dyn Work<J, O>>,
    /// The other nodes as stores.
    pub peers: Arc<Peers>,
}

/// A node of a cluster that runs.
#[derive(Debug)]
pub struct Cluster {
    view: Arc<Mutex<View>>,
    orders: mpsc::Sender<Order>,
    tasks: TaskTracker,
    /// Cancelled if a task panicked.
    failed: CancellationToken,
}

/// A command to the task.
enum Order {
    /// Take no more work, or take it again.
    Drain(bool),
    /// Count the unfinished actions of other nodes: see [`Cluster::unfinished_foreign`].
    CountForeign(oneshot::Sender<usize>),
    /// Leave the cluster.
    Leave(oneshot::Sender<()>),
}

/// The messages of tasks that the task of the node spawned. The slots and the dials bound their number.
enum Told<J, O> {
    Claimed(ForeignSlot<J, O>),
    Progress(AttemptId, Phase, u16),
    Ended(AttemptId, Done),
    Reported(Generation, AttemptId, Option<RequeueCause>),
    Fetched(Generation),
    Measured(HashMap<AttemptId, ResourceUsage>),
    Dialed {
        node: Generation,
        result: Result<Generation, DialError>,
    },
    Found(Vec<String>),
    Visited {
        address: String,
        result: Result<Generation, DialError>,
    },
}

/// The cause for which an action is queued again after its attempt at another node.
#[derive(Clone, Copy, Debug)]
enum RequeueCause {
    Stopped,
    Failed,
}

/// Passes slots to the task.
struct Slots<J, O>(mpsc::UnboundedSender<Told<J, O>>);

impl<J: Send + Sync, O: Send + Sync> Foreign<J, O> for Slots<J, O> {
    fn claimed(&self, slot: ForeignSlot<J, O>) {
        // Dropping the slot frees it.
        let _ = self.0.send(Told::Claimed(slot));
    }
}

impl Cluster {
    /// Joins a cluster, in the current tokio runtime. Needs no other node: a node alone is a cluster of one.
    pub fn start<J, O>(options: Options, components: Components<J, O>) -> Result<Self, RecordError>
    where
        J: Send + Sync + 'static,
        O: Send + Sync + 'static,
    {
        let Components {
            links: (links, events),
            discovery,
            scheduler,
            work,
            peers,
        } = components;
        let seed = fastrand::u64(..);
        let start = Instant::now();
        let record = options.record;
        let slots = usize::try_from(record.slots).unwrap_or(usize::MAX);
        let membership = Membership::new(
            &options.cluster,
            record.clone(),
            seed,
            options.membership,
            Time::ZERO,
        )?;
        let tasks = TaskTracker::new();
        let (told, tells) = mpsc::unbounded_channel();
        scheduler.set_foreign_handler(Arc::new(Slots(told.clone())));
        let view = Arc::new(Mutex::new(View::of(&options.cluster, &record)));
        let (orders, ordered) = mpsc::channel(4);
        let task = Task {
            handover: Handover::new(record.node.clone(), slots, seed),
            membership,
            queue: scheduler.queue_changes(),
            stops: scheduler.stops(),
            parts: Parts::new(links, scheduler, work, told, tasks.clone()),
            peers,
            view: Arc::clone(&view),
            start,
            load: Load::default(),
            next_load: Time::ZERO,
            next_upkeep: Time::ZERO,
            cluster: options.cluster,
        };
        let failed = CancellationToken::new();
        let discovering = dials::discover(discovery, task.parts.told.clone(), Arc::clone(&view));
        tasks.spawn(supervise(discovering, failed.clone()));
        let (following, closing) = (Arc::clone(&task.parts.links), task.parts.told.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = following.follow_authorities() => {}
                () = closing.closed() => {}
            }
        });
        let running = task.run(events, tells, ordered, options.load_period);
        tasks.spawn(supervise(running, failed.clone()));
        Ok(Self {
            view,
            orders,
            tasks,
            failed,
        })
    }

    /// Returns the nodes and the counts as of at most a second ago.
    pub fn view(&self) -> View {
        self.view.lock().clone()
    }

    /// Waits until a task of the node has panicked. From then on, the node claims no actions and knows no changes of
    /// other nodes.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }
}

/// Runs a task, and cancels `failed` if it panics.
async fn supervise(task: impl Future<Output = ()>, failed: CancellationToken) {
    if AssertUnwindSafe(task).catch_unwind().await.is_err() {
        failed.cancel();
    }
}

/// The task that owns the state of a node.
struct Task<J, O> {
    cluster: String,
    membership: Membership,
    handover: Handover,
    parts: Parts<J, O>,
    peers: Arc<Peers>,
    view: Arc<Mutex<View>>,
    queue: watch::Receiver<()>,
    stops: mpsc::UnboundedReceiver<AttemptId>,
    start: Instant,
    /// The load that was sent last.
    load: Load,
    next_load: Time,
    next_upkeep: Time,
}

impl<J: Send + Sync + 'static, O: Send + Sync + 'static> Task<J, O> {
    fn now(&self) -> Time {
        self.start.elapsed()
    }

    async fn run(
        mut self,
        mut events: Events,
        mut tells: mpsc::UnboundedReceiver<Told<J, O>>,
        mut orders: mpsc::Receiver<Order>,
        load_period: Duration,
    ) {
        loop {
            let due = self.start + self.deadline();
            let mut is_due = false;
            tokio::select! {
                // Packets are handled before timers, which may wait for them.
                biased;
                Some(order) = orders.recv() => match order {
                    Order::Drain(draining) => self.drain(draining),
                    Order::CountForeign(count) => {
                        // This fails if the caller does not wait.
                        let _ = count.send(self.handover.unfinished_foreign());
                    }
                    Order::Leave(left) => return self.leave(&mut events, &mut tells, left).await,
                },
                Some(event) = events.recv() => self.on_link(event),
                Some(told) = tells.recv() => self.on_told(told),
                Some(attempt) = self.stops.recv() => {
                    self.handover.stop(attempt, &mut self.parts);
                }
                Ok(()) = self.queue.changed() => {
                    let now = self.now();
                    self.handover.queue_changed(now, &mut self.parts);
                }
                () = sleep_until(due) => is_due = true,
            }
            self.keep_time(is_due, load_period);
            self.carry_out();
        }
    }

    /// Returns the time of the next work that no event starts.
    fn deadline(&self) -> Time {
        let others = [self.membership.deadline(), self.next_load, self.next_upkeep];
        let all = others.into_iter().chain(self.handover.deadline());
        all.min().unwrap_or_default()
    }

    /// Does the work that is due, also while events arrive without a pause.
    fn keep_time(&mut self, is_due: bool, load_period: Duration) {
        let now = self.now();
        let gossip = self.membership.deadline();
        if gossip <= now && (is_due || now.saturating_sub(gossip) >= LATE) {
            self.membership.tick(now);
        }
        if self.handover.deadline().is_some_and(|due| due <= now) {
            self.handover.tick(now, &mut self.parts);
        }
        if self.next_load <= now {
            self.next_load = now + load_period;
            self.send_load();
        }
        if self.next_upkeep <= now {
            self.next_upkeep = now + UPKEEP;
            self.keep_up();
        }
    }

    /// Carries out the effects of the membership.
    fn carry_out(&mut self) {
        let mut has_changed = false;
        for effect in self.membership.take_effects() {
            match effect {
                Effect::Send {
                    to,
                    address,
                    packet,
                } => self.parts.gossip(&to, &address, packet),
                Effect::Up(record) => {
                    tracing::info!(node = %record.node, address = record.address, "a node joined");
                    let load = self.parts.own_load();
                    self.parts.send_content(&record.node, Content::Load(load));
                    if record.backing != self.membership.me().backing {
                        tracing::warn!(
                            node = %record.node,
                            "the node has another backing cache than this one, so its outputs are copied: set the same \
                             backing_cache.target and backing_cache.instance_name at all nodes"
                        );
                    }
                    has_changed = true;
                }
                Effect::Changed(_) => has_changed = true,
                Effect::Down { node, why } => {
                    report_down(&node, why);
                    has_changed = true;
                    // A link that is up outweighs gossip.
                    if !self.parts.links.is_up(&node) {
                        let now = self.now();
                        let down = Down::Refused;
                        self.handover.link_down(&node, down, now, &mut self.parts);
                    }
                }
                Effect::Conflict { holder, address } => {
                    self.parts.warn_of_namesake(&holder, &address);
                }
                Effect::Full => self.parts.warn_of_full(),
                Effect::Rejoined => {
                    tracing::info!("this node joined the cluster again");
                }
                Effect::Refused(node) => {
                    tracing::warn!(
                        %node,
                        "a node is refused, since the cluster already has cluster.max_nodes: stop one, or raise it at \
                         all nodes"
                    );
                }
            }
        }
        if has_changed {
            self.set_members();
        }
    }

    fn set_members(&mut self) {
        let now = self.now();
        let members = self.membership.members();
        let alive = members
            .iter()
            .filter(|(_, state)| *state != MemberState::Down);
        let alive: Vec<_> = alive.map(|(record, _)| Arc::clone(record)).collect();
        self.peers.set(alive.iter().map(|record| BlobMember {
            node: record.node.clone(),
            address: record.address.clone(),
        }));
        let takers = alive.iter().map(|record| Member {
            node: record.node.clone(),
            slots: record.slots,
            memory: record.memory,
            draining: record.draining,
        });
        let takers: Vec<_> = takers.collect();
        self.parts.set_records(alive);
        self.handover.members(takers, now, &mut self.parts);
        self.refresh();
    }

    /// Sends this node's load to the members with links, if it changed. It would keep links to others open, over which
    /// the two nodes do not greet each other again.
    fn send_load(&mut self) {
        let load = self.parts.own_load();
        if load != self.load {
            self.load = load;
            for peer in self.parts.links.peers() {
                if self.parts.is_member(&peer) {
                    self.parts.send_content(&peer, Content::Load(load));
                }
            }
        }
    }

    fn keep_up(&mut self) {
        for peer in self.parts.links.peers() {
            if self.parts.is_idle(&peer, IDLE) && !self.handover.is_busy(&peer) {
                self.parts.links.close(&peer, "idle");
            }
        }
        self.refresh();
    }

    fn refresh(&mut self) {
        let members = self.membership.members();
        let view = self
            .parts
            .view(&self.cluster, self.membership.me(), &members);
        *self.view.lock() = view;
    }
}

/// Logs that a node is no member any more.
fn report_down(node: &Generation, why: Departure) {
    match why {
        Departure::Silent => tracing::warn!(
            %node,
            "a node is down: it did not answer for seconds, and its actions are queued again: see its process and its \
             network"
        ),
        Departure::Reported => {
            tracing::info!(%node, "a node is down: it left, or other nodes found that it does not answer");
        }
        Departure::Replaced => tracing::info!(%node, "a node is down: a later run replaced it"),
        Departure::Withdrawn => {
            tracing::info!(%node, "a node is out of reach: this node is alone for now");
        }
    }
}
