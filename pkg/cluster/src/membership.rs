//! The members of the cluster, as one node knows them.
//!
//! [`Membership`] is a state machine around foca (SWIM with suspicion) without I/O, tasks or clocks. The caller passes
//! packets and the time, and carries out the [`Effect`]s. Gossip spreads the list of live nodes, and the [`Record`] of
//! each. A node asks for records that gossip missed. A broken connection is the first sign of a death; gossip alone
//! takes seconds.
//!
//! A name belongs to one node at a time. A later run at the same address replaces the former at once. A later run at
//! another address gets the name once the former does not answer. Until then the later node gets [`Effect::Conflict`].

mod contest;
mod effects;
mod identity;
mod options;
mod partners;
mod records;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod swim;
#[cfg(test)]
mod tests;
mod upkeep;
mod wants;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use foca::{AccumulatingRuntime, Foca, PostcardCodec, State, Timer};
use gorego_scheduler::{Generation, Time};
use parking_lot::Mutex;
use prost::Message;
use rand::{SeedableRng, rngs::SmallRng};

use contest::Contest;
pub use effects::{Departure, Effect, Loss, MemberState};
use identity::{Identity, key};
pub use options::MembershipOptions;
use records::{Records, SharedRecords, item};
use wire::{Envelope, Holder, cluster_number};
pub use wire::{MAX_PACKET_LEN, PacketError};

use crate::record::{Record, RecordError};

/// The delay of a tick after which the time counts as lost: the process or the machine was stopped.
const LATE: Duration = Duration::from_millis(500);
/// The time after which a node asks for a missing record, and asks again.
const WANT_AFTER: Duration = Duration::from_millis(300);
/// The period of announcements to nodes that have not answered one.
const ANNOUNCE_PERIOD: Duration = Duration::from_secs(1);
/// The announcements to a node that does not answer, after which it is forgotten until a link to it opens.
const MAX_ANNOUNCEMENTS: u32 = 60;
/// The time after news at which a node asks a partner for all nodes, in case some news was missed. It doubles each
/// time.
const FIRST_SYNC: Duration = Duration::from_millis(500);
/// The nodes that a node announces itself to each second after it was refused, and whenever it looks for nodes while it is
/// alone.
const RETURN_ATTEMPTS: usize = 3;
/// The period of work that no event starts.
const UPKEEP_PERIOD: Duration = Duration::from_secs(1);
/// The time in which only the first connection to a node that cannot be opened makes it suspect. Otherwise a node that
/// others reach would be suspect again and again; then probes by others decide.
const UNREACHABLE_PERIOD: Duration = Duration::from_mins(1);

type Swim = Foca<Identity, PostcardCodec, SmallRng, SharedRecords>;

/// A node whose name is known. There is one for each name.
struct Node {
    id: Identity,
    active: bool,
    /// The run that the caller knows to be up.
    up: Option<Generation>,
    /// The time of the next request for the record, and the number of earlier requests.
    want: Option<(Time, u32)>,
    /// The time at which a connection to it could not be opened.
    unreachable: Option<Time>,
    contest: Option<Contest>,
}

/// A node with a link that is not a member yet.
struct Candidate {
    id: Identity,
    announcements: u32,
}

/// The membership of one node.
pub struct Membership {
    options: MembershipOptions,
    cluster: u64,
    me: Record,
    counter: u32,
    foca: Swim,
    runtime: AccumulatingRuntime<Identity>,
    records: SharedRecords,
    nodes: BTreeMap<u64, Node>,
    candidates: BTreeMap<u64, Candidate>,
    /// The names that were refused because the cluster was full, so that each is reported once.
    refused: VecDeque<u64>,
    timers: BTreeMap<(Time, u64), Timer<Identity>>,
    timer_count: u64,
    /// The newest token of foca's timers.
    token: foca::TimerToken,
    now: Time,
    /// The time in which the process was stopped, which timers do not count.
    stood_still: Duration,
    /// The number of active nodes.
    active: usize,
    /// Set if the nodes changed since foca and the partners were adapted.
    resized: bool,
    /// Set if a node is down, which the next nodes should know without delay.
    urgent: bool,
    partners: Vec<u64>,
    /// The probes that may still be skipped in the current tick.
    skips: usize,
    next_sync: Time,
    sync_wait: Duration,
    next_announce: Time,
    /// The earliest time of the next request for records.
    next_want: Time,
    next_upkeep: Time,
    upkeeps: u32,
    /// The reason for the departures that the current event causes.
    cause: Departure,
    /// The sender of the current packet.
    sender: Option<Identity>,
    /// The time until which this node stays out of the cluster. Set until the node has joined again.
    retreat: Option<Time>,
    left: bool,
    effects: Vec<Effect>,
    random: fastrand::Rng,
}

impl Membership {
    /// Creates the membership of `me`, alone in its cluster. `seed` decides all random choices.
    pub fn new(
        cluster: &str,
        me: Record,
        seed: u64,
        options: MembershipOptions,
        now: Time,
    ) -> Result<Self, RecordError> {
        let first = item(&me, 1)?;
        let id = Identity::of(&me);
        // Those of nodes that are down count, too.
        let max = options.max_nodes.saturating_mul(5);
        let records = SharedRecords(Arc::new(Mutex::new(Records::new(max))));
        let mut foca = new_foca(id, &options, &records, seed);
        // foca refuses only records that are too long or old.
        let _ = foca.add_broadcast(&first);
        Ok(Self {
            cluster: cluster_number(cluster),
            me,
            counter: 1,
            foca,
            runtime: AccumulatingRuntime::new(),
            records,
            nodes: BTreeMap::new(),
            candidates: BTreeMap::new(),
            refused: VecDeque::new(),
            timers: BTreeMap::new(),
            timer_count: 0,
            token: 0,
            now,
            stood_still: Duration::ZERO,
            active: 0,
            resized: false,
            urgent: false,
            partners: Vec::new(),
            skips: 0,
            next_sync: Time::MAX,
            sync_wait: FIRST_SYNC,
            next_announce: now,
            next_want: Time::MAX,
            next_upkeep: now + UPKEEP_PERIOD,
            upkeeps: 0,
            cause: Departure::Reported,
            sender: None,
            retreat: None,
            left: false,
            effects: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
            options,
        })
    }

    /// Records that a link to `peer` is open: this node announces itself to the peer until it answers.
    pub fn greet(&mut self, peer: &Record, now: Time) {
        self.advance(now);
        let id = Identity::of(peer);
        if id.key() == self.key() {
            self.meet_namesake(&id);
            return;
        }
        self.records.0.lock().insert_unnumbered(peer);
        // A node that must wait for its name would declare this one down, which does not answer it yet.
        if self.left || self.candidates.len() >= self.options.max_nodes || self.contests(&id, true)
        {
            self.settle();
            return;
        }
        let candidate = Candidate {
            id: id.clone(),
            announcements: 0,
        };
        self.candidates.insert(id.key(), candidate);
        if !self.retreats() {
            self.announce_to(id);
        }
        self.settle();
    }

    /// Handles a packet that came over the link to `from`.
    pub fn receive(&mut self, from: &Record, packet: &[u8], now: Time) -> Result<(), PacketError> {
        self.advance(now);
        let envelope = Envelope::read(packet, self.cluster)?;
        let sender = Identity::of(from);
        let result = self.read(&sender, &envelope);
        self.sender = None;
        self.settle();
        result
    }

    /// Does the work that is due. The caller calls it at [`deadline`](Self::deadline).
    ///
    /// Packets that arrived before the deadline must be handled first: they may contain the answers that the work waits
    /// for.
    pub fn tick(&mut self, now: Time) {
        let due = self.deadline();
        self.advance(now);
        if self.now > due + LATE {
            self.stood_still += self.now.saturating_sub(due);
        }
        self.skips = self.active.saturating_mul(4);
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > self.now.saturating_sub(self.stood_still) {
                break;
            }
            let timer = entry.remove();
            if self.is_alone() && matches!(timer, Timer::RemoveDown(_)) {
                self.schedule(timer, self.options.forget_after);
            } else {
                self.fire(timer);
            }
        }
        if self.now >= self.next_sync {
            self.sync();
        }
        if self.now >= self.next_announce {
            self.next_announce = self.now + ANNOUNCE_PERIOD;
            self.announce_to_candidates();
        }
        if self.now >= self.next_upkeep {
            self.next_upkeep = self.now + UPKEEP_PERIOD;
            self.keep_up();
        }
        self.ask_for_records();
        self.settle();
    }

    /// Returns the time of the next [`tick`](Self::tick).
    pub fn deadline(&self) -> Time {
        let timer = self
            .timers
            .keys()
            .next()
            .map(|(at, _)| *at + self.stood_still);
        let others = [
            self.next_announce,
            self.next_want,
            self.next_upkeep,
            self.next_sync,
        ];
        others
            .into_iter()
            .chain(timer)
            .min()
            .unwrap_or(self.next_upkeep)
    }

    /// Returns the effects since the last call, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        mem::take(&mut self.effects)
    }

    /// Records that the connection to `peer` was lost without a farewell, or that none can be opened.
    ///
    /// The node has a few seconds to answer any node, since a firewall may stand between two nodes only. A node that
    /// refuses connections has less time than one that does not answer.
    pub fn connection_lost(&mut self, peer: &Generation, loss: Loss, now: Time) {
        self.advance(now);
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&key(peer.node())) else {
            return;
        };
        if !node.active || node.id.node != *peer {
            return;
        }
        if loss != Loss::Broken {
            let recently = |at: Time| now.saturating_sub(at) < UNREACHABLE_PERIOD;
            if node.unreachable.is_some_and(recently) {
                return;
            }
            node.unreachable = Some(now);
        }
        let id = node.id.clone();
        self.suspect(&id, loss);
        self.settle();
    }

    /// Replaces the record of this node. Its address and its run stay.
    pub fn update(&mut self, mut record: Record, now: Time) -> Result<(), RecordError> {
        self.advance(now);
        record.node = self.me.node.clone();
        record.address.clone_from(&self.me.address);
        let stored = self.records.0.lock().counter(&record.node);
        let counter = self.counter.max(stored) + 1;
        let item = item(&record, counter)?;
        self.counter = counter;
        self.me = record;
        let _ = self.foca.add_broadcast(&item);
        self.settle();
        Ok(())
    }

    /// Leaves the cluster and notifies other nodes. Afterwards the caller only has to carry out the effects.
    pub fn leave(&mut self, now: Time) {
        self.advance(now);
        self.left = true;
        self.candidates.clear();
        self.drive(|foca, runtime| foca.leave_cluster(runtime));
        for _ in 0..3 {
            self.drive(|foca, runtime| foca.gossip(runtime));
        }
        self.timers.clear();
        self.next_sync = Time::MAX;
    }

    /// Returns this node's record.
    pub fn me(&self) -> &Record {
        &self.me
    }

    /// Returns the other nodes whose record is known, and their state.
    pub fn members(&self) -> Vec<(Arc<Record>, MemberState)> {
        let records = self.records.0.lock();
        let listed = self.foca.iter_membership_state().filter_map(|member| {
            let state = match member.state() {
                State::Alive => MemberState::Alive,
                State::Suspect => MemberState::Suspect,
                State::Down => MemberState::Down,
            };
            let id = member.id();
            let record = records.get(&id.node)?;
            (id.key() != self.key()).then(|| (Arc::clone(record), state))
        });
        listed.collect()
    }

    fn key(&self) -> u64 {
        self.foca.identity().key()
    }

    /// Sets the time, which never goes back.
    fn advance(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// Sends a packet, with the number of the cluster and of this node's record.
    fn send(&mut self, to: &Identity, envelope: Envelope) {
        let envelope = Envelope {
            cluster: self.cluster,
            counter: self.counter,
            ..envelope
        };
        self.effects.push(Effect::Send {
            to: to.node.clone(),
            address: Arc::clone(&to.address),
            packet: envelope.encode_to_vec().into(),
        });
    }

    /// Notifies a node that its name is taken.
    fn send_holder(&mut self, to: &Identity, holder: &Identity) {
        let holder = Holder {
            generation: holder.node.number(),
            address: holder.address.to_string(),
        };
        let holder = Some(holder);
        self.send(
            to,
            Envelope {
                holder,
                ..Envelope::default()
            },
        );
    }
}

/// Creates foca's part for an identity.
fn new_foca(id: Identity, options: &MembershipOptions, records: &SharedRecords, seed: u64) -> Swim {
    let random = SmallRng::seed_from_u64(seed);
    let config = options.foca(1);
    Foca::with_custom_broadcast(id, config, random, PostcardCodec, records.clone())
}
