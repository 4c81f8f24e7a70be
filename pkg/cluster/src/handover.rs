//! The hand-over of actions between nodes.
//!
//! [`Handover`] is the state machine of one node, without I/O, tasks or clocks. As an entry node, it offers its queue
//! to peers and grants actions to their claims. As a taker, it claims actions of other entry nodes for free slots of
//! its own. Its [`Host`] carries out the decisions: the links and the scheduler of the node.
//!
//! An action stays in the queue of its entry node until a node has a free slot for it. The entry node owns the action
//! to the end: when the node of an attempt is lost, it loses the attempt and queues the action again. So an action may
//! run twice, but ends once.

mod ahead;
mod entry;
mod host;
mod reach;
#[cfg(any(test, feature = "simulation"))]
pub mod simulation;
mod taker;
#[cfg(test)]
mod tests;
pub mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fastrand::Rng;
use gorego_scheduler::{AttemptId, Generation, Need, Time};
use reapi::gorego::cluster::{Load, frame::Content};

use ahead::Fetches;
use entry::{Given, Offer};
pub use host::Host;
pub use reach::Member;
use taker::{OpenClaim, Taken};

/// The time after which an attempt at a peer is lost if no news of it arrives.
pub const LEASE: Duration = Duration::from_secs(4);
/// The time that a broken link has to be replaced before its attempts are lost.
pub const RECONNECT: Duration = Duration::from_secs(1);
/// The time for which an attempt goes on without its entry node.
pub const ORPHAN: Duration = Duration::from_secs(30);
/// The time between renewals of leases.
const RENEWAL: Duration = Duration::from_secs(1);
/// The time after which another node becomes free for actions that wait. The nodes that do so may run long actions.
const FREE_ANOTHER: Duration = Duration::from_secs(30);
/// The time between ticks while something is handed over.
const TICK: Duration = Duration::from_millis(100);

/// The end of a link, or of the attempt to open one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// The peer closed it on purpose.
    Bye,
    /// It broke, or timed out. The peer may be alive.
    Broken,
    /// The peer counts as lost: its address refused, another run of it answered, or it is no member any more.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkState {
    Up,
    Down {
        since: Time,
        /// Set once the attempts at the peer are lost.
        is_gone: bool,
    },
}

/// The state shared with one run of a peer.
#[derive(Debug)]
struct Peer {
    link: LinkState,
    /// Set while a link is being opened.
    connects: bool,
    /// The last time that a link was opened for an offer.
    dialed: Option<Time>,
    /// The last news of the peer's load.
    load: Option<Load>,
    /// The numbers of this node's queued actions as last sent to the peer, and the time of the message.
    told: BTreeMap<Need, Offer>,
    told_at: Time,
    /// The attempts of this node's actions at the peer.
    given: BTreeMap<AttemptId, Given>,
    /// The claims without an answer, by their numbers.
    claims: BTreeMap<u64, OpenClaim>,
    /// The attempts of the peer's actions at this node.
    taken: BTreeMap<AttemptId, Taken>,
    /// The largest need of the actions that the peer offers.
    offered: Option<Need>,
    /// The actions that the peer may still name, since it was asked for them.
    awaited: usize,
    /// Set once the peer has named an action to fetch ahead, until one of its actions starts here.
    is_ahead: bool,
}

impl Peer {
    fn new(now: Time) -> Self {
        Self {
            link: LinkState::Down {
                since: now,
                is_gone: true,
            },
            connects: false,
            dialed: None,
            load: None,
            told: BTreeMap::new(),
            told_at: Time::ZERO,
            given: BTreeMap::new(),
            claims: BTreeMap::new(),
            taken: BTreeMap::new(),
            offered: None,
            awaited: 0,
            is_ahead: false,
        }
    }

    fn is_up(&self) -> bool {
        self.link == LinkState::Up
    }

    fn is_gone(&self) -> bool {
        matches!(self.link, LinkState::Down { is_gone: true, .. })
    }

    /// Returns whether a link may be opened for an offer. One that fails at once is not opened again at once.
    fn may_dial(&self, now: Time) -> bool {
        self.dialed
            .is_none_or(|dialed| now.saturating_sub(dialed) >= RENEWAL)
    }

    fn is_busy(&self) -> bool {
        let has_told = self.told.values().any(|offer| offer.actions > 0);
        has_told || !self.claims.is_empty() || self.has_attempts()
    }

    fn has_attempts(&self) -> bool {
        !self.given.is_empty() || !self.taken.is_empty()
    }
}

/// The hand-over of one node.
#[derive(Debug)]
pub struct Handover {
    own: Generation,
    /// The actions that this node runs at once.
    slots: usize,
    peers: BTreeMap<Generation, Peer>,
    members: BTreeMap<Generation, Member>,
    /// The members with which no link could be opened, or whose link broke.
    unreachable: BTreeSet<Generation>,
    /// The needs of queued actions, and the times since which there are such actions.
    queued_since: BTreeMap<Need, Time>,
    /// The members that are offered the queue.
    chosen: BTreeSet<Generation>,
    fetches: Fetches,
    has_queue: bool,
    random: Rng,
    ticked: Time,
    renewed: Time,
}

impl Handover {
    /// Creates the machine of a node that runs `slots` actions at once. `seed` is random.
    pub fn new(own: Generation, slots: usize, seed: u64) -> Self {
        Self {
            own,
            slots,
            peers: BTreeMap::new(),
            members: BTreeMap::new(),
            unreachable: BTreeSet::new(),
            queued_since: BTreeMap::new(),
            chosen: BTreeSet::new(),
            fetches: Fetches::default(),
            has_queue: false,
            random: Rng::with_seed(seed),
            ticked: Time::ZERO,
            renewed: Time::ZERO,
        }
    }

    /// Replaces the members of the cluster.
    pub fn members(
        &mut self,
        members: impl IntoIterator<Item = Member>,
        now: Time,
        host: &mut impl Host,
    ) {
        let members = members.into_iter();
        let members = members.map(|member| (member.node.clone(), member));
        self.members = members.filter(|(node, _)| *node != self.own).collect();
        for node in self.members.keys().cloned().collect::<Vec<_>>() {
            self.end_others(&node, now, host);
        }
        self.set_takers(host);
        self.choose(true, host);
        self.offer(now, false, host);
    }

    /// Records that a link with a peer is up. It may replace another link.
    pub fn link_up(&mut self, node: &Generation, now: Time, host: &mut impl Host) {
        self.end_others(node, now, host);
        self.unlink(node, host);
        let peer = self.peers.entry(node.clone());
        let peer = peer.or_insert_with(|| Peer::new(now));
        peer.link = LinkState::Up;
        peer.connects = false;
        peer.resume(node, host);
        self.reached(node, host);
        self.offer(now, false, host);
    }

    /// Records the end of a link, or of the attempt to open one.
    pub fn link_down(&mut self, node: &Generation, down: Down, now: Time, host: &mut impl Host) {
        self.unlink(node, host);
        let mut may_return = false;
        if let Some(peer) = self.peers.get_mut(node) {
            peer.connects = false;
            if peer.is_up() {
                peer.link = LinkState::Down {
                    since: now,
                    is_gone: false,
                };
            }
            if down != Down::Broken {
                peer.give_up(node, host);
            }
            may_return = !peer.is_up() && !peer.is_gone();
        }
        // A broken link may be replaced, so the next ticks decide.
        if down != Down::Bye && !may_return {
            self.not_reached(node, host);
        }
    }

    /// Handles a frame of a peer. Frames of other parts of the node are ignored.
    pub fn frame(&mut self, node: &Generation, frame: Content, now: Time, host: &mut impl Host) {
        let Some(peer) = self.peers.get_mut(node).filter(|peer| peer.is_up()) else {
            return;
        };
        match frame {
            Content::Load(load) => peer.load = Some(load),
            Content::Claim(claim) => peer.on_claim(node, &claim, now, host),
            Content::Progress(progress) => peer.on_progress(node, &progress, now, host),
            Content::Running(running) => peer.on_running(node, &running, now, host),
            Content::Done(done) => peer.on_done(node, done, now, host),
            Content::Queued(queued) => {
                let counts: Vec<_> = queued.counts.iter().map(wire::count).collect();
                let left = queued.counts.iter().filter(|count| count.left);
                let left: Vec<_> = left.map(|count| wire::count(count).0).collect();
                let offered = counts.iter().filter(|(_, actions)| *actions > 0);
                peer.offered = offered.map(|(need, _)| *need).max();
                host.set_foreign(node, &counts, &left);
                self.end_fetches(node, host);
                self.ask_ahead(node, host);
            }
            Content::Grant(grant) => {
                let (function, hash) = (grant.function.clone(), grant.hash.clone());
                peer.on_grant(node, grant, host);
                self.granted(node, &function, &hash, host);
            }
            Content::Ahead(ahead) => ahead::answer(node, &ahead, host),
            Content::Prefetch(prefetch) => self.on_prefetch(node, prefetch, host),
            Content::Nothing(nothing) => {
                peer.on_nothing(node, nothing, host);
                self.end_fetches(node, host);
            }
            Content::Received(received) => peer.on_received(&received, host),
            Content::Cancel(cancel) => peer.on_cancel(&cancel, host),
            Content::Hello(_) | Content::Gossip(_) | Content::Ping(_) | Content::Bye(_) => {}
        }
    }

    /// Ends leases at this node, renews leases at peers, and corrects the numbers that peers know. To be called at
    /// [`Self::deadline`].
    pub fn tick(&mut self, now: Time, host: &mut impl Host) {
        // After a stop of this process, news of the peers may be left to read.
        let was_stopped = now.saturating_sub(self.ticked) >= RENEWAL;
        self.ticked = now;
        let renews = now.saturating_sub(self.renewed) >= RENEWAL;
        let mut gone = Vec::new();
        for (node, peer) in &mut self.peers {
            if was_stopped {
                peer.extend_leases(now);
            }
            peer.end_leases(now, host);
            peer.end_claims(node, now, host);
            if let LinkState::Down { since, is_gone } = peer.link {
                if !is_gone && now.saturating_sub(since) >= RECONNECT {
                    peer.give_up(node, host);
                    gone.push(node.clone());
                }
                if now.saturating_sub(since) >= ORPHAN {
                    peer.end_orphans(host);
                }
                if peer.has_attempts() && (renews || !is_gone && !peer.connects) {
                    peer.connects = true;
                    host.connect(node);
                }
            } else if renews {
                peer.renew(node, host);
            }
        }
        for node in gone {
            self.not_reached(&node, host);
        }
        if renews {
            self.renewed = now;
            if self.peers.values().any(|peer| !peer.taken.is_empty()) {
                host.measure();
            }
            self.choose(false, host);
        }
        self.offer(now, true, host);
        self.peers.retain(|_, peer| {
            let is_used = peer.connects || peer.has_attempts();
            !peer.is_gone() || is_used || !peer.may_dial(now)
        });
    }

    /// Returns the time of the next [`Self::tick`]; `None` if nothing is handed over.
    pub fn deadline(&self) -> Option<Time> {
        let is_active = |peer: &Peer| !peer.is_up() || peer.is_busy();
        let is_active = self.has_queue || self.peers.values().any(is_active);
        is_active.then(|| self.ticked.saturating_add(TICK))
    }

    /// Returns whether the link with a peer is in use, so that it must not be closed as idle.
    pub fn is_busy(&self, node: &Generation) -> bool {
        self.peers.get(node).is_some_and(Peer::is_busy)
    }

    /// Removes the older runs of a node.
    fn end_others(&mut self, node: &Generation, now: Time, host: &mut impl Host) {
        let others = self.peers.keys();
        let others = others.filter(|other| other.node() == node.node() && *other < node);
        for other in others.cloned().collect::<Vec<_>>() {
            self.link_down(&other, Down::Refused, now, host);
        }
    }

    /// Returns the number of unfinished actions of peers: those that run at this node, and those whose end the peer has
    /// not received. Peers that are gone do not count.
    pub fn unfinished_foreign(&self) -> usize {
        let peers = self.peers.values().filter(|peer| !peer.is_gone());
        peers.map(|peer| peer.taken.len()).sum()
    }

    /// Drops the state that depends on one link: offers and claims.
    fn unlink(&mut self, node: &Generation, host: &mut impl Host) {
        let peer = self.peers.get_mut(node);
        if let Some(peer) = peer.filter(|peer| peer.is_up()) {
            peer.told.clear();
            (peer.load, peer.offered) = (None, None);
            (peer.awaited, peer.is_ahead) = (0, false);
            self.fetches.drop_waiting(node);
            host.forget_ahead(node);
            host.set_foreign(node, &[], &[]);
            for claim in std::mem::take(&mut peer.claims).into_values() {
                host.free(claim.slot);
            }
        }
    }
}

impl Peer {
    /// Records that the peer does not come back, so that the attempts at it are lost.
    fn give_up(&mut self, node: &Generation, host: &mut impl Host) {
        let LinkState::Down { is_gone, .. } = &mut self.link else {
            return;
        };
        if std::mem::replace(is_gone, true) {
            return;
        }
        self.given.clear();
        host.remove(node);
        for taken in self.taken.values() {
            if let Some(done) = &taken.done {
                host.orphaned(node, done);
            }
        }
    }
}
