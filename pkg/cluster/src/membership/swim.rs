//! The traffic between the membership and foca.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use std::{iter, mem};

use bytes::Bytes;
use foca::{AccumulatingRuntime, Member, Message as Kind, OwnedNotification, State, Timer};

use super::identity::Identity;
use super::partners::{Routed, probes};
use super::wire::{Envelope, PacketError, Swim as Packet};
use super::{Departure, Effect, Loss, Membership, Node, Swim, WANT_AFTER};

/// The most nodes in one list of nodes that are down.
const MAX_DEPARTURES: usize = 64;

/// The most names that are remembered as refused, so that each is reported once.
const MAX_REFUSED: usize = 256;

/// The share of the time of a suspect that a node has whose host refuses connections.
const REFUSED_SHARE: f64 = 0.5;

impl Membership {
    /// Handles a packet of `sender`, whose rank may be stale.
    pub(super) fn read(
        &mut self,
        sender: &Identity,
        envelope: &Envelope,
    ) -> Result<(), PacketError> {
        if let Some(holder) = &envelope.holder {
            self.step_back(holder);
        }
        if envelope.full {
            self.find_full(sender);
        }
        if self.left || self.retreats() {
            return Ok(());
        }
        self.records.insert_items(envelope.records.iter());
        self.send_records(sender, &envelope.wanted);
        if !envelope.swim.is_empty() {
            self.read_swim(sender, &envelope.swim)?;
        }
        let newest = self.records.0.lock().counter(&sender.node);
        if envelope.counter > newest
            && let Some(node) = self.nodes.get_mut(&sender.key())
            && node.active
            && node.id.node == sender.node
        {
            node.want.get_or_insert((self.now + WANT_AFTER, 1));
            self.next_want = self.next_want.min(self.now + WANT_AFTER);
        }
        Ok(())
    }

    fn read_swim(&mut self, sender: &Identity, swim: &Bytes) -> Result<(), PacketError> {
        let mut packet = Packet::parse(swim)?;
        let from = packet.header.src.clone();
        if !from.same_run(sender) {
            return Err(PacketError::Sender(from.node.to_string()));
        }
        let me = self.foca.identity();
        let to = &packet.header.dst;
        if to.key() != me.key() || (to.node != me.node && packet.header.message != Kind::Announce) {
            return Err(PacketError::Receiver(to.node.to_string()));
        }
        let feed = packet.header.message == Kind::Feed && to == me;
        self.sender = Some(from.clone());
        if from.key() == self.key() {
            self.meet_namesake(&from);
            return Ok(());
        }
        if !self.admits_sender(&from) {
            return Ok(());
        }
        let kind = packet.header.message.clone();
        let mut accepted = self.accepted(&packet.updates).into_iter();
        let sent = packet.updates.len();
        packet.updates.retain(|_| accepted.next().unwrap_or(false));
        if feed {
            // The answer to an announcement is no news for others.
            let updates = self.without_known(mem::take(&mut packet.updates));
            self.drive(|foca, runtime| foca.apply_many(updates.into_iter(), false, runtime));
        }
        let rewritten = (packet.updates.len() < sent)
            .then(|| packet.encode())
            .transpose()?;
        let swim = rewritten.as_ref().unwrap_or(swim);
        let result = self.foca.handle_data(swim, &mut self.runtime);
        self.absorb();
        if feed {
            self.next_want = self.now;
            for want in self
                .nodes
                .values_mut()
                .filter_map(|node| node.want.as_mut())
            {
                want.0 = if want.1 == 0 { self.now } else { want.0 };
            }
            self.ask_for_records();
        }
        self.reassure(&from);
        if kind == Kind::Announce {
            self.send_departures(&from);
        }
        result.map_err(|error| PacketError::Protocol(error.to_string()))
    }

    /// Drops the updates that repeat what foca knows of a live node. foca searches all its members for each update, and
    /// the answer to an announcement names all nodes.
    fn without_known(&self, mut updates: Vec<Member<Identity>>) -> Vec<Member<Identity>> {
        let members = self.foca.iter_membership_state();
        let known: HashMap<_, _> = members.map(|it| (it.id().key(), it)).collect();
        updates.retain(|update| {
            let known = known.get(&update.id().key());
            update.state() != State::Alive
                || known.is_none_or(|it| {
                    it.id() != update.id() || it.incarnation() < update.incarnation()
                })
        });
        updates
    }

    /// Notifies the sender of a packet that it is suspected, so that it objects. Gossip may have missed it, and its
    /// answers to probes end no suspicion.
    fn reassure(&mut self, from: &Identity) {
        if let Some(member) = self.suspected(from).cloned() {
            self.send_news(from, vec![member]);
        }
    }

    /// Returns the entry of `id` if it is suspect.
    pub(super) fn suspected(&self, id: &Identity) -> Option<&Member<Identity>> {
        let suspected = |it: &&Member<_>| it.id() == id && it.state() == State::Suspect;
        self.foca.iter_members().find(suspected)
    }

    /// Notifies a node of the nodes that are down, which foca's answer to an announcement omits. A node that is no
    /// partner of theirs, and missed the news, would not learn of it otherwise.
    fn send_departures(&mut self, to: &Identity) {
        let down = self.nodes.values().filter(|node| !node.active);
        let down = down.map(|node| Member::down(node.id.clone()));
        let news = self.random.choose_multiple(down, MAX_DEPARTURES);
        if !news.is_empty() {
            self.send_news(to, news);
        }
    }

    /// Returns whether a packet of `from` counts. A node whose name another node has must wait, and so must a node
    /// beyond `max_nodes`.
    fn admits_sender(&mut self, from: &Identity) -> bool {
        let node = self.nodes.get(&from.key());
        if node.is_some_and(|node| node.active) {
            return !self.contests(from, true);
        }
        if self.foca.num_members() + 1 >= self.options.max_nodes {
            self.refuse(from);
            let full = true;
            self.send(
                from,
                Envelope {
                    full,
                    ..Envelope::default()
                },
            );
            return false;
        }
        if let Some(node) = node
            && node.id.address != from.address
        {
            // The former holder of the name is gone. This node is alive, whatever its rank.
            let gone = node.id.clone();
            self.fire(Timer::RemoveDown(gone));
        }
        true
    }

    /// Returns for each update whether it is passed to foca.
    fn accepted(&mut self, updates: &[Member<Identity>]) -> Vec<bool> {
        let me = self.foca.identity().clone();
        let mut room = BTreeSet::new();
        let mut accepted = Vec::with_capacity(updates.len());
        for update in updates {
            let id = update.id();
            let down = update.state() == State::Down;
            accepted.push(if id.key() == me.key() {
                // A former run at this address is gone. A node elsewhere with this name announces itself directly.
                id.same_run(&me) || id.address == me.address || down
            } else if let Some(node) = self.nodes.get(&id.key())
                && (node.active || down)
            {
                // Another node admitted this run. Then a suspect former run is gone: in gossip, the news of this run
                // replaces that of the other's end.
                node.id == *id
                    || down
                    || self.suspected(&node.id).is_some()
                    || !self.contests(id, false)
            } else if down {
                self.foca.iter_membership_state().len() < 4 * self.options.max_nodes
            } else {
                let others = room.len();
                let fits = self.foca.num_members() + others + 1 < self.options.max_nodes;
                if fits {
                    room.insert(id.key());
                } else if !room.contains(&id.key()) {
                    self.refuse(id);
                }
                fits || room.contains(&id.key())
            });
        }
        accepted
    }

    fn refuse(&mut self, id: &Identity) {
        self.candidates.remove(&id.key());
        if self.refused.contains(&id.key()) {
            return;
        }
        if self.refused.len() >= MAX_REFUSED {
            self.refused.pop_front();
        }
        self.refused.push_back(id.key());
        self.effects.push(Effect::Refused(id.node.clone()));
    }

    /// Lets foca act, and carries out its demands.
    pub(super) fn drive(
        &mut self,
        act: impl FnOnce(&mut Swim, &mut AccumulatingRuntime<Identity>) -> Result<(), foca::Error>,
    ) {
        if let Err(error) = act(&mut self.foca, &mut self.runtime) {
            tracing::debug!(%error, "membership protocol failed to act");
        }
        self.absorb();
    }

    pub(super) fn apply(&mut self, member: Member<Identity>) {
        self.drive(|foca, runtime| foca.apply_many([member].into_iter(), true, runtime));
    }

    pub(super) fn fire(&mut self, timer: Timer<Identity>) {
        if let Timer::RemoveDown(id) = &timer
            && let Some(node) = self.nodes.get(&id.key())
            && !node.active
            && node.id == *id
        {
            self.nodes.remove(&id.key());
        }
        if let Timer::ChangeSuspectToDown {
            member_id,
            incarnation,
            ..
        } = &timer
        {
            // foca would notify even a node that objected in time that it is down.
            let suspect = self.suspected(member_id);
            if suspect.is_none_or(|it| it.incarnation() != *incarnation) {
                return;
            }
            self.cause = Departure::Silent;
        }
        self.drive(|foca, runtime| foca.handle_timer(timer, runtime));
        self.cause = Departure::Reported;
    }

    /// Declares an active node suspect, and notifies it: the node is down unless it answers.
    pub(super) fn suspect(&mut self, id: &Identity, loss: Loss) {
        let found = self.foca.iter_members().find(|it| it.id() == id).cloned();
        let Some(member) = found else {
            return;
        };
        let incarnation = member.incarnation();
        let mut after = self
            .options
            .foca(self.nodes.len() + 1)
            .suspect_to_down_after;
        if loss == Loss::Refused {
            after = after.mul_f64(REFUSED_SHARE);
        }
        let timer = Timer::ChangeSuspectToDown {
            member_id: id.clone(),
            incarnation,
            token: self.token,
        };
        if member.state() == State::Alive {
            let suspect = Member::new(id.clone(), incarnation, State::Suspect);
            self.apply(suspect.clone());
            self.send_news(id, vec![suspect]);
            self.drive(|foca, runtime| foca.gossip(runtime));
        }
        self.schedule(timer, after);
    }

    /// Sends a node news in the name of this one.
    fn send_news(&mut self, to: &Identity, news: Vec<Member<Identity>>) {
        if let Ok(swim) = Packet::news(self.foca.identity(), to, news).encode() {
            self.send(
                to,
                Envelope {
                    swim,
                    ..Envelope::default()
                },
            );
        }
    }

    pub(super) fn schedule(&mut self, timer: Timer<Identity>, after: Duration) {
        let at = self.now.saturating_sub(self.stood_still) + after;
        self.timer_count += 1;
        self.timers.insert((at, self.timer_count), timer);
    }

    /// Carries out the demands of foca.
    fn absorb(&mut self) {
        while self.runtime.backlog() > 0 {
            let mut skipped = false;
            let timers: Vec<_> = iter::from_fn(|| self.runtime.to_schedule()).collect();
            while let Some((to, swim)) = self.runtime.to_send() {
                match self.route(to, swim) {
                    Routed::To(to, swim) => self.send(
                        &to,
                        Envelope {
                            swim,
                            ..Envelope::default()
                        },
                    ),
                    Routed::Skipped => skipped = true,
                }
            }
            for (after, timer) in timers {
                if let Timer::ProbeRandomMember(token) = &timer {
                    self.token = *token;
                }
                // A skipped probe is followed by the next one at once.
                let now = skipped && probes(&timer);
                self.schedule(timer, if now { Duration::ZERO } else { after });
            }
            while let Some(news) = self.runtime.to_notify() {
                self.note(news);
            }
        }
    }

    fn note(&mut self, news: OwnedNotification<Identity>) {
        match news {
            OwnedNotification::MemberUp(id) => self.member_up(id),
            OwnedNotification::MemberDown(id) => {
                if let Some(node) = self.nodes.get_mut(&id.key()) {
                    node.active = false;
                    node.want = None;
                    if node.contest.is_some() {
                        self.next_upkeep = self.now;
                    }
                    self.urgent = true;
                    if let Some(node) = node.up.take() {
                        self.effects.push(Effect::Down {
                            node,
                            why: self.cause,
                        });
                    }
                }
                self.resize();
            }
            OwnedNotification::Rename(_, new) => {
                let active = self.nodes.get(&new.key()).is_some_and(|node| node.active);
                if active && self.foca.iter_members().any(|member| *member.id() == new) {
                    self.member_up(new);
                } else if let Some(node) = self.nodes.get_mut(&new.key()) {
                    node.id = new;
                }
            }
            OwnedNotification::Defunct if !self.left => self.renew(),
            _ => {}
        }
    }

    /// Records that foca admitted a node.
    fn member_up(&mut self, id: Identity) {
        if id.key() == self.key() {
            return;
        }
        if self.retreat.take().is_some() {
            self.effects.push(Effect::Rejoined);
        }
        let records = self.records.0.lock();
        let record = records.get(&id.node).cloned();
        let numbered = records.counter(&id.node) > 0;
        drop(records);
        let node = self.nodes.entry(id.key()).or_insert_with(|| Node {
            id: id.clone(),
            active: true,
            up: None,
            want: None,
            unreachable: None,
            contest: None,
        });
        let again = !node.active;
        node.active = true;
        node.contest.take_if(|_| !node.id.same_run(&id));
        if let Some(up) = node.up.take_if(|up| *up != id.node) {
            let why = Departure::Replaced;
            self.effects.push(Effect::Down { node: up, why });
        }
        // Changes of the record while the node was away may have been missed.
        if again || !numbered {
            node.want = Some((self.now + WANT_AFTER, 0));
            self.next_want = self.next_want.min(self.now + WANT_AFTER);
        }
        if let Some(record) = record
            && node.up.is_none()
        {
            node.up = Some(id.node.clone());
            self.effects.push(Effect::Up(record));
        }
        node.id = id;
        self.resize();
    }
}
