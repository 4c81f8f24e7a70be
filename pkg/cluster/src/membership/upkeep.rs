//! The work of the membership that no packet starts: announcements, requests for the list of nodes, changes of its size,
//! and clean-up.

use std::mem;
use std::sync::Arc;

use gorego_scheduler::Time;

use super::identity::{Identity, key};
use super::partners::partners;
use super::records::item;
use super::{Effect, FIRST_SYNC, MAX_ANNOUNCEMENTS, Membership, RETURN_ATTEMPTS};
use crate::record::Record;

impl Membership {
    pub(super) fn announce_to(&mut self, id: Identity) {
        self.drive(|foca, runtime| foca.announce(id, runtime));
    }

    pub(super) fn announce_to_candidates(&mut self) {
        if self.retreats() {
            return;
        }
        if self.retreat.is_none() {
            let nodes = &self.nodes;
            self.candidates.retain(|key, candidate| {
                let known = nodes.get(key);
                let joined =
                    known.is_some_and(|node| node.active && node.id.same_run(&candidate.id));
                candidate.announcements += 1;
                !joined && candidate.announcements <= MAX_ANNOUNCEMENTS
            });
        }
        let ids = self.candidates.values().map(|it| it.id.clone());
        // While it stays out of the cluster, this node announces itself to a few nodes only.
        let most = if self.retreat.is_some() {
            RETURN_ATTEMPTS
        } else {
            usize::MAX
        };
        for id in self
            .random
            .choose_multiple(ids, most.min(self.candidates.len()))
        {
            self.announce_to(id);
        }
    }

    /// Asks a partner for all nodes that it knows.
    pub(super) fn sync(&mut self) {
        let partner = self.random.choice(&self.partners);
        let partner = partner.and_then(|key| self.nodes.get(key));
        if let Some(id) = partner.map(|node| node.id.clone()) {
            self.announce_to(id);
        }
        let wait = self.sync_wait;
        self.next_sync = self.now + wait.mul_f64(0.75 + self.random.f64() / 2.0);
        self.sync_wait = (wait * 2).min(self.options.sync_period);
    }

    /// Greets the `peers` to which links are open, and a few nodes that were members, if this node is alone. The caller
    /// calls it whenever it looks for nodes.
    ///
    /// A node that was refused, or refused others, may have links to nodes that it has not joined. After a cut, the
    /// nodes that are looked for may be gone, while other members are back.
    pub fn seek_if_alone(&mut self, peers: &[Arc<Record>], now: Time) {
        self.advance(now);
        if !self.is_alone() {
            return;
        }
        if !self.retreats() {
            let down = self.nodes.values().map(|node| node.id.clone());
            for id in self.random.choose_multiple(down, RETURN_ATTEMPTS) {
                self.announce_to(id);
            }
        }
        for peer in peers {
            self.greet(peer, now);
        }
    }

    /// Returns whether this node has no member to rely on. Then it forgets no node that was one.
    pub(super) fn is_alone(&self) -> bool {
        !self.left && self.foca.num_members() == 0
    }

    /// Spreads this node's record again.
    pub(super) fn broadcast_record(&mut self) {
        self.counter += 1;
        if let Ok(item) = item(&self.me, self.counter) {
            let _ = self.foca.add_broadcast(&item);
        }
    }

    /// Does the work of each second.
    pub(super) fn keep_up(&mut self) {
        self.upkeeps = self.upkeeps.wrapping_add(1);
        self.settle_contests();
        if self.upkeeps.is_multiple_of(30) {
            let nodes = &self.nodes;
            self.records.0.lock().sweep(|node| {
                let known = nodes.get(&key(node.node()));
                *node == self.me.node || known.is_some_and(|it| it.id.node == *node)
            });
            self.refused.clear();
        }
    }

    /// Records that the nodes changed.
    pub(super) fn resize(&mut self) {
        self.resized = true;
        self.sync_wait = FIRST_SYNC;
        self.next_sync = self.next_sync.min(self.now + FIRST_SYNC);
    }

    /// Adapts foca to the number of nodes, and the partners to the nodes.
    pub(super) fn adapt(&mut self) {
        if !mem::take(&mut self.resized) {
            return;
        }
        self.active = self.nodes.values().filter(|node| node.active).count();
        self.partners = partners(self.key(), &self.nodes, self.options.partners);
        self.partners.sort_unstable();
        let config = self.options.foca(self.foca.num_members() + 1);
        if let Err(error) = self.foca.set_config(config) {
            tracing::debug!(%error, "membership protocol refused its configuration");
        }
    }

    /// Joins again under a higher rank, since others declared this node down.
    pub(super) fn renew(&mut self) {
        let me = self.foca.identity();
        let id = Identity::new(me.node.clone(), me.rank + 1, &me.address);
        self.drive(|foca, runtime| foca.change_identity(id, runtime));
        self.effects.push(Effect::Rejoined);
        self.broadcast_record();
    }
}
