//! The role of the entry node: offers, grants and leases.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use gorego_scheduler::{AttemptId, Generation, Need, Time};
use reapi::gorego::cluster::{
    Cancel, Claim, Done, Nothing, Progress, Queued, Received, Running, done::End, frame::Content,
};

use super::{FREE_ANOTHER, Handover, Host, LEASE, Member, Peer, RENEWAL, wire};
use crate::choice::{Candidate, MOST, choose};

/// The number of classes of queued actions above which peers are offered the queue at ticks only.
const MANY_CLASSES: usize = 500;
/// The most attempts at a peer. Its frames that list all of them have room for more.
const MOST_GIVEN: usize = 2048;
/// The most classes for which more members are chosen at a time.
const MOST_LISTS: usize = 8;

/// An attempt at a peer.
#[derive(Debug)]
pub(super) struct Given {
    /// The end of the lease.
    until: Time,
    /// Set while the response is read.
    has_ended: bool,
}

/// The queued actions with some need, as a peer is told of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) actions: usize,
    /// Set if other peers become free for the actions.
    pub(super) is_left: bool,
}

/// The numbers of queued actions that a peer may run, by need.
type Counts = Vec<(Need, usize)>;

impl Handover {
    /// Offers the queue to peers. To be called when the numbers of queued actions changed, at most as often as the
    /// caller has time.
    pub fn queue_changed(&mut self, now: Time, host: &mut impl Host) {
        // A long queue follows its first action in an instant.
        let takers = self.members.values().filter(|member| member.takes());
        let most = host.backlog().0.min(MOST).min(takers.count());
        if !self.has_queue || self.chosen.len() < most {
            self.choose(!self.has_queue, host);
        }
        self.offer(now, false, host);
    }

    /// Stops an attempt at a peer that no client waits for. Its end is reported like any other.
    pub fn stop(&mut self, attempt: AttemptId, host: &mut impl Host) {
        let mut peers = self.peers.iter();
        let of_peer = peers.find(|(_, peer)| peer.given.contains_key(&attempt));
        if let Some((node, peer)) = of_peer
            && peer.is_up()
        {
            host.send(node, cancel(attempt));
        }
    }

    /// Records that the end of an attempt was reported, after its response was read.
    pub fn received(&mut self, node: &Generation, attempt: AttemptId, host: &mut impl Host) {
        if let Some(peer) = self.peers.get_mut(node) {
            peer.receive(node, attempt, host);
        }
    }

    /// Chooses the members that are offered the queue. While the queue lasts, more members are added.
    pub(super) fn choose(&mut self, is_new: bool, host: &mut impl Host) {
        let (actions, kind) = host.backlog();
        if is_new || actions == 0 {
            self.chosen.clear();
        }
        if actions == 0 {
            return;
        }
        let members = self.members.values();
        let members: Vec<_> = members.filter(|member| member.takes()).collect();
        let (peers, random) = (&self.peers, &mut self.random);
        let chosen = chosen_of(peers, &members, kind, actions, random);
        self.chosen.extend(chosen);
        // Few nodes may have a platform, and be chosen late at random.
        if self.chosen.len() < members.len() && host.classes() <= MANY_CLASSES {
            for able in host.peers_to_ask(&members, &self.chosen, MOST_LISTS) {
                let chosen = chosen_of(peers, &able, kind, actions, random);
                self.chosen.extend(chosen);
            }
        }
    }

    /// Sends peers the numbers of queued actions: at once if they do not know of actions with some need, and otherwise
    /// only if `corrects` is set.
    pub(super) fn offer(&mut self, now: Time, corrects: bool, host: &mut impl Host) {
        self.has_queue = host.backlog().0 > 0;
        // Counting many classes takes long, and each grant changes the counts. The next tick counts them.
        if !corrects && host.classes() > MANY_CLASSES {
            return;
        }
        let told = self.peers.iter().filter(|(_, peer)| !peer.told.is_empty());
        let told = told.map(|(node, _)| node.clone());
        let nodes: BTreeSet<_> = told.chain(self.chosen.iter().cloned()).collect();
        let counts = nodes.into_iter().map(|node| {
            let is_offered = self.has_queue && self.chosen.contains(&node);
            let counts = is_offered.then(|| host.queued(&node));
            (node, counts.unwrap_or_default())
        });
        let counts: Vec<_> = counts.collect();
        let free = self.choose_free(&counts, now, host);
        for (node, counts) in &counts {
            let offer = |(need, actions): &(Need, usize)| {
                let (actions, is_left) = (*actions, !free.contains(&(*need, node)));
                (*need, Offer { actions, is_left })
            };
            let offers: BTreeMap<_, _> = counts.iter().map(offer).collect();
            let peer = self.peers.get_mut(node);
            if let Some(peer) = peer.filter(|peer| peer.is_up()) {
                peer.tell(node, offers, now, corrects, host);
            } else if !offers.is_empty() {
                let peer = self.peers.entry(node.clone());
                let peer = peer.or_insert_with(|| Peer::new(now));
                if !peer.connects && peer.may_dial(now) {
                    (peer.connects, peer.dialed) = (true, Some(now));
                    host.connect(node);
                }
            }
        }
    }

    /// Returns the peers that become free for actions with some need. A node that does so starts nothing meanwhile, so no
    /// more of them do than there are actions, and one more each time that these took too long.
    fn choose_free<'a>(
        &mut self,
        counts: &'a [(Generation, Counts)],
        now: Time,
        host: &impl Host,
    ) -> BTreeSet<(Need, &'a Generation)> {
        let needs = host.peers_to_free();
        self.queued_since.retain(|need, _| needs.contains_key(need));
        let mut free = BTreeSet::new();
        for (need, most) in needs {
            let since = *self.queued_since.entry(need).or_insert(now);
            let more = now.saturating_sub(since).as_secs() / FREE_ANOTHER.as_secs();
            let most = most.saturating_add(usize::try_from(more).unwrap_or(usize::MAX));
            let able = counts
                .iter()
                .filter(|(_, counts)| counts.iter().any(|count| count.0 == need));
            let able = able.map(|(node, _)| (self.effort(node, need), node));
            let mut able: Vec<_> = able.collect();
            able.sort_unstable();
            free.extend(able.into_iter().take(most).map(|(_, node)| (need, node)));
        }
        free
    }

    /// Returns the rank of a peer among those that may become free for an action: first the ones that do so already, and
    /// then the least loaded ones.
    fn effort(&self, node: &Generation, need: Need) -> (bool, bool, u32) {
        let peer = self.peers.get(node).filter(|peer| peer.is_up());
        let offer = peer.and_then(|peer| peer.told.get(&need));
        let becomes_free = offer.is_some_and(|offer| offer.actions > 0 && !offer.is_left);
        let load = peer.and_then(|peer| peer.load);
        let running = load.map_or(u32::MAX, |load| load.running);
        (peer.is_none(), !becomes_free, running)
    }
}

/// Chooses some of these members.
fn chosen_of(
    peers: &BTreeMap<Generation, Peer>,
    members: &[&Member],
    kind: u64,
    actions: usize,
    random: &mut Rng,
) -> Vec<Generation> {
    let load = |node: &Generation, slots: u32| {
        let load = peers.get(node)?.load?;
        let actions = load.running.saturating_add(load.queued);
        Some(f64::from(actions) / f64::from(slots))
    };
    let candidates: Vec<_> = members
        .iter()
        .map(|member| Candidate {
            node: member.node.node(),
            load: load(&member.node, member.slots),
        })
        .collect();
    let chosen = choose(&candidates, kind, actions, random).into_iter();
    let chosen = chosen.filter_map(|at| members.get(at));
    chosen.map(|member| member.node.clone()).collect()
}

impl Peer {
    fn tell(
        &mut self,
        node: &Generation,
        offers: BTreeMap<Need, Offer>,
        now: Time,
        corrects: bool,
        host: &mut impl Host,
    ) {
        let is_new = |need: &Need| self.told.get(need).is_none_or(|told| told.actions == 0);
        let is_news = offers.keys().any(is_new);
        // The message is repeated, since a peer that missed it would wait forever.
        let is_old = !offers.is_empty() && now.saturating_sub(self.told_at) >= RENEWAL;
        if is_news || corrects && (is_old || self.told != offers) {
            let counts = offers.iter();
            let counts = counts.map(|(need, offer)| wire::count_frame(*need, *offer));
            let counts = counts.collect();
            host.send(node, Content::Queued(Queued { counts }));
            self.told = offers;
            self.told_at = now;
        }
    }

    pub(super) fn on_claim(
        &mut self,
        node: &Generation,
        claim: &Claim,
        now: Time,
        host: &mut impl Host,
    ) {
        let need = wire::need(claim.need.as_ref());
        if let Some(offer) = self.told.get_mut(&need) {
            offer.actions = offer.actions.saturating_sub(1);
        }
        let has_room = self.given.len() < MOST_GIVEN;
        let granted = has_room.then(|| host.grant(node, need)).flatten();
        if let Some((attempt, mut grant)) = granted {
            grant.claim = claim.claim;
            grant.attempt = Some(wire::attempt_frame(attempt));
            self.lease(attempt, now);
            host.send(node, Content::Grant(grant));
        } else {
            // The next tick corrects what the peer knows of other needs.
            let told = self.told.iter_mut();
            told.filter(|(told, _)| need.covers(**told))
                .for_each(|(_, offer)| offer.actions = 0);
            let claim = claim.claim;
            host.send(node, Content::Nothing(Nothing { claim }));
        }
    }

    pub(super) fn on_progress(
        &mut self,
        node: &Generation,
        progress: &Progress,
        now: Time,
        host: &mut impl Host,
    ) {
        for running in &progress.running {
            let Some(attempt) = wire::attempt(running.attempt.as_ref()) else {
                continue;
            };
            self.renew_lease(node, attempt, now, host);
            if let Some(phase) = wire::phase(running.phase) {
                let run = u16::try_from(running.run).unwrap_or(u16::MAX);
                host.progress(attempt, phase, run);
            }
            // A lost attempt may still run beside the current one.
            if self.given.contains_key(&attempt) {
                host.record_usage(attempt, running.usage);
            }
        }
    }

    /// Loses the attempts that the peer does not report, and renews the leases of the others.
    pub(super) fn on_running(
        &mut self,
        node: &Generation,
        running: &Running,
        now: Time,
        host: &mut impl Host,
    ) {
        let running = running.attempts.iter();
        let running: BTreeSet<_> = running.filter_map(|a| wire::attempt(Some(a))).collect();
        let lost = self.given.extract_if(.., |attempt, given| {
            !given.has_ended && !running.contains(attempt)
        });
        for (attempt, _) in lost {
            host.lose(attempt);
        }
        for attempt in running {
            self.renew_lease(node, attempt, now, host);
        }
    }

    pub(super) fn on_done(
        &mut self,
        node: &Generation,
        done: Done,
        now: Time,
        host: &mut impl Host,
    ) {
        let Some(attempt) = wire::attempt(done.attempt.as_ref()) else {
            return;
        };
        let given = self.given.get(&attempt);
        if done.end() == End::Declined {
            if given.is_some_and(|given| !given.has_ended) {
                self.given.remove(&attempt);
                host.decline(attempt);
            }
            return;
        }
        if given.is_some_and(|given| given.has_ended) {
            return;
        }
        // An attempt that was cancelled still has its slot in the scheduler.
        if given.is_some() || host.is_awaited(attempt) {
            self.lease(attempt, now);
            if let Some(given) = self.given.get_mut(&attempt) {
                given.has_ended = true;
            }
            if !host.ended(node, done) {
                return;
            }
        }
        self.receive(node, attempt, host);
    }

    fn receive(&mut self, node: &Generation, attempt: AttemptId, host: &mut impl Host) {
        self.given.remove(&attempt);
        if self.is_up() {
            let attempt = Some(wire::attempt_frame(attempt));
            host.send(node, Content::Received(Received { attempt }));
        }
    }

    fn lease(&mut self, attempt: AttemptId, now: Time) {
        let given = Given {
            until: now.saturating_add(LEASE),
            has_ended: false,
        };
        self.given.insert(attempt, given);
    }

    /// Renews the lease of an attempt, or stops an attempt that no client waits for. A lost attempt is resumed if its
    /// action is queued again. If it runs elsewhere already, both continue: the first outcome is used.
    fn renew_lease(
        &mut self,
        node: &Generation,
        attempt: AttemptId,
        now: Time,
        host: &mut impl Host,
    ) {
        if let Some(given) = self.given.get_mut(&attempt) {
            given.until = now.saturating_add(LEASE);
        } else if host.adopt(node, attempt) {
            self.lease(attempt, now);
        }
        if !host.is_awaited(attempt) {
            host.send(node, cancel(attempt));
        }
    }

    /// Gives the peer time to renew its leases.
    pub(super) fn extend_leases(&mut self, now: Time) {
        for given in self.given.values_mut() {
            given.until = given.until.max(now.saturating_add(RENEWAL));
        }
    }

    /// Loses the attempts whose leases have ended, since the peer sent no news of them.
    pub(super) fn end_leases(&mut self, now: Time, host: &mut impl Host) {
        let ended = self
            .given
            .extract_if(.., |_, given| !given.has_ended && given.until <= now);
        for (attempt, _) in ended {
            host.lose(attempt);
        }
    }
}

fn cancel(attempt: AttemptId) -> Content {
    let attempt = Some(wire::attempt_frame(attempt));
    Content::Cancel(Cancel { attempt })
}
