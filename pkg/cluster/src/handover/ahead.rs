//! Claims ahead: a node whose slots are all busy fetches the inputs of actions that it may get next. Nothing is
//! reserved: the actions stay in the queue of their entry node, and go to the first free slots of any node.

use std::collections::VecDeque;

use gorego_scheduler::Generation;
use reapi::gorego::cluster::{Ahead, Prefetch, frame::Content};

use super::{Handover, Host, taker::Taken, wire};

/// The most fetches of inputs ahead at once. They share the node's network with the actions that run.
const MAX_RUNNING: usize = 2;
/// The most actions that are named to this node at once by one peer.
const MAX_NAMED: usize = 16;

/// The actions of peers whose inputs this node fetches ahead.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    /// The peers of the fetches that run, which the host ends with the link.
    pub(super) running: Vec<Generation>,
    /// The fetches that have not begun, in order.
    pub(super) waiting: VecDeque<(Generation, Prefetch)>,
}

impl Fetches {
    /// Adds a fetch. Of more than `most` for a peer that have not begun, the oldest is dropped: its action probably
    /// started elsewhere.
    fn add(&mut self, node: &Generation, prefetch: Prefetch, most: usize) {
        let is_of_node = |(of, _): &&(Generation, Prefetch)| of == node;
        if self.waiting.iter().filter(is_of_node).count() >= most
            && let Some(oldest) = self.waiting.iter().position(|(of, _)| of == node)
        {
            self.waiting.remove(oldest);
        }
        self.waiting.push_back((node.clone(), prefetch));
    }

    /// Drops the fetches for a peer that have not begun.
    pub(super) fn drop_waiting(&mut self, node: &Generation) {
        self.waiting.retain(|(of, _)| of != node);
    }
}

/// Names actions of this node to a peer that asks for some.
pub(super) fn answer(node: &Generation, ahead: &Ahead, host: &mut impl Host) {
    let need = wire::need(ahead.need.as_ref());
    // Older nodes ask for one.
    let most = usize::try_from(ahead.most).unwrap_or(usize::MAX).max(1);
    for prefetch in host.look_ahead(node, need, most) {
        host.send(node, Content::Prefetch(prefetch));
    }
}

impl Handover {
    /// Asks an entry node that offers actions for those whose inputs this node can fetch while its slots are busy. After
    /// an answer, it is asked again once an action of it has started here.
    pub(super) fn ask_ahead(&mut self, node: &Generation, host: &mut impl Host) {
        let most = self.share();
        let Some(peer) = self.peers.get_mut(node) else {
            return;
        };
        if let Some(need) = peer.offered
            && peer.is_up()
            && !peer.is_ahead
            && host.is_full()
        {
            peer.awaited = most;
            let need = Some(wire::need_frame(need));
            let most = u32::try_from(most).unwrap_or(u32::MAX);
            host.send(node, Content::Ahead(Ahead { need, most }));
        }
    }

    /// Returns the number of actions that each entry node may name: as many as the slots that it may get.
    fn share(&self) -> usize {
        let offering = self.peers.values().filter(|peer| peer.offered.is_some());
        (self.slots / offering.count().max(1)).clamp(1, MAX_NAMED)
    }

    /// Fetches the inputs of an action, if the peer was asked for it.
    pub(super) fn on_prefetch(
        &mut self,
        node: &Generation,
        prefetch: Prefetch,
        host: &mut impl Host,
    ) {
        if let Some(peer) = self.peers.get_mut(node)
            && let Some(awaited) = peer.awaited.checked_sub(1)
        {
            (peer.awaited, peer.is_ahead) = (awaited, true);
            let most = self.share();
            self.fetches.add(node, prefetch, most);
            self.begin_fetches(host);
        }
    }

    /// Begins fetches, unless an action that was taken still reads its inputs: it comes first.
    pub(super) fn begin_fetches(&mut self, host: &mut impl Host) {
        let mut taken = self.peers.values().flat_map(|peer| peer.taken.values());
        if taken.any(Taken::reads_inputs) {
            return;
        }
        while self.fetches.running.len() < MAX_RUNNING
            && let Some((node, prefetch)) = self.fetches.waiting.pop_front()
        {
            self.fetches.running.push(node.clone());
            host.fetch_ahead(&node, prefetch);
        }
    }

    /// Drops the fetch for an action that starts here, if it has not begun, and asks for further actions.
    pub(super) fn granted(
        &mut self,
        node: &Generation,
        function: &str,
        hash: &[u8],
        host: &mut impl Host,
    ) {
        let is_granted = |(of, ahead): &(Generation, Prefetch)| {
            of == node && ahead.function == function && ahead.hash == hash
        };
        self.fetches.waiting.retain(|ahead| !is_granted(ahead));
        self.ask_ahead(node, host);
    }

    /// Ends the fetches for an entry node that has no more actions for this node.
    pub(super) fn end_fetches(&mut self, node: &Generation, host: &mut impl Host) {
        if let Some(peer) = self
            .peers
            .get_mut(node)
            .filter(|peer| peer.offered.is_none())
        {
            (peer.awaited, peer.is_ahead) = (0, false);
            self.fetches.drop_waiting(node);
            host.end_fetches(node);
        }
    }

    /// Records that a fetch of inputs for an entry node has ended, successfully or not.
    pub fn fetched(&mut self, node: &Generation, host: &mut impl Host) {
        let mut running = self.fetches.running.iter();
        if let Some(at) = running.position(|of| of == node) {
            self.fetches.running.swap_remove(at);
        }
        self.begin_fetches(host);
    }
}
