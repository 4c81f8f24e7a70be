//! The work of the membership that no event starts: announcements, requests for the list of nodes, and clean-up.

use super::identity::{Identity, key};
use super::records::item;
use super::{MAX_ANNOUNCEMENTS, Membership, RETURN_ATTEMPTS};

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
}
