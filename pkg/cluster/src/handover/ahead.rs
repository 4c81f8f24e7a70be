//! Claims ahead: a node whose slots are all busy fetches the inputs of an action that it may get next. Nothing is
//! reserved: the action stays in the queue of its entry node, and goes to the first free slot of any node.

use gorego_scheduler::Generation;
use reapi::gorego::cluster::{Ahead, Prefetch, frame::Content};

use super::{Handover, Host, wire};

/// The most actions whose inputs a node fetches ahead at once. They share its network with the actions that run.
const MAX_FETCHES: usize = 2;

/// Names an action of this node to a peer that asks for one.
pub(super) fn answer(node: &Generation, ahead: &Ahead, host: &mut impl Host) {
    let need = wire::need(ahead.need.as_ref());
    if let Some(prefetch) = host.look_ahead(node, need) {
        host.send(node, Content::Prefetch(prefetch));
    }
}

impl Handover {
    /// Asks an entry node that offers actions for one whose inputs this node can fetch while its slots are busy. After
    /// an answer, it is asked again once an action of it has started here.
    pub(super) fn ask_ahead(&self, node: &Generation, host: &mut impl Host) {
        let peer = self.peers.get(node);
        let offered = peer.and_then(|peer| peer.offered);
        if let Some(need) = offered.filter(|_| self.may_fetch(node) && host.is_full()) {
            let need = Some(wire::need_frame(need));
            host.send(node, Content::Ahead(Ahead { need }));
        }
    }

    pub(super) fn on_prefetch(
        &mut self,
        node: &Generation,
        prefetch: Prefetch,
        host: &mut impl Host,
    ) {
        if self.may_fetch(node)
            && let Some(peer) = self.peers.get_mut(node)
        {
            peer.is_ahead = true;
            self.fetches.insert(node.clone());
            host.fetch_ahead(node, prefetch);
        }
    }

    /// Records that the fetch of inputs for an entry node has ended, successfully or not.
    pub fn fetched(&mut self, node: &Generation, host: &mut impl Host) {
        self.fetches.remove(node);
        self.ask_ahead(node, host);
    }

    fn may_fetch(&self, node: &Generation) -> bool {
        let peer = self.peers.get(node);
        peer.is_some_and(|peer| peer.is_up() && !peer.is_ahead)
            && !self.fetches.contains(node)
            && self.fetches.len() < MAX_FETCHES
    }
}
