//! The nodes that a node sends gossip and probes to.
//!
//! All nodes form a ring in the order of their keys. The partners of a node are those at distances of 1, 2, 4 and so on
//! in both directions. Partnership is mutual, so few links serve a large cluster, and news needs few hops.

use std::collections::BTreeMap;

use foca::{Message as Kind, Timer};

use super::identity::Identity;
use super::wire::Swim as Packet;
use super::{Membership, Node};

/// Returns the partners of the node `me`: all active nodes if there are at most `max`, otherwise up to `max` of them.
pub(super) fn partners(me: u64, nodes: &BTreeMap<u64, Node>, max: usize) -> Vec<u64> {
    let active = |(key, node): (&u64, &Node)| node.active.then_some(*key);
    let mut ring: Vec<u64> = nodes.range(me..).filter_map(active).collect();
    ring.extend(nodes.range(..me).filter_map(active));
    if ring.len() <= max {
        return ring;
    }
    // The ring begins behind this node: distance 1 is its first element, and distance -1 its last.
    let distances = (0..max / 2).map_while(|power| 1_usize.checked_shl(u32::try_from(power).ok()?));
    let pairs = distances.flat_map(|d| {
        [
            ring.get(d - 1),
            ring.len().checked_sub(d).and_then(|at| ring.get(at)),
        ]
    });
    let mut partners: Vec<u64> = pairs.flatten().copied().collect();
    partners.sort_unstable();
    partners.dedup();
    partners
}

/// The decision about a packet of foca.
pub(super) enum Routed {
    /// The packet goes to this node.
    To(Identity, bytes::Bytes),
    /// The packet is a probe that is left to the partners of its target.
    Skipped,
}

impl Membership {
    /// Redirects gossip to a partner. A probe of a node that is no partner is answered in its place: its own partners
    /// probe it.
    pub(super) fn route(&mut self, to: Identity, swim: bytes::Bytes) -> Routed {
        if self.partners.len() == self.active || self.partners.binary_search(&to.key()).is_ok() {
            return Routed::To(to, swim);
        }
        let Ok(mut packet) = Packet::parse(&swim) else {
            return Routed::To(to, swim);
        };
        match packet.header.message {
            Kind::Gossip => {
                let partner = self.random.choice(&self.partners);
                let partner = partner.and_then(|key| self.nodes.get(key));
                let Some(partner) = partner.map(|node| node.id.clone()) else {
                    return Routed::To(to, swim);
                };
                packet.header.dst = partner.clone();
                match packet.encode() {
                    Ok(swim) => Routed::To(partner, swim),
                    Err(_) => Routed::To(to, swim),
                }
            }
            Kind::Ping(number) if self.skips > 0 => {
                let answer = Packet::answer(to, self.foca.identity().clone(), Kind::Ack(number));
                if let Ok(answer) = answer.encode() {
                    let _ = self.foca.handle_data(&answer, &mut self.runtime);
                    self.skips -= 1;
                    return Routed::Skipped;
                }
                Routed::To(packet.header.dst, swim)
            }
            _ => Routed::To(to, swim),
        }
    }
}

/// Returns whether `timer` belongs to a probe.
pub(super) fn probes(timer: &Timer<Identity>) -> bool {
    matches!(
        timer,
        Timer::SendIndirectProbe { .. } | Timer::ProbeRandomMember(_)
    )
}
