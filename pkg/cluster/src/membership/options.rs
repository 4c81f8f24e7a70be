//! The options of the membership.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{Config, PeriodicParams};

use super::wire::MAX_SWIM_LEN;

/// The nodes that are asked to probe a silent one, in a cluster of more nodes than a node has links.
const INDIRECT: usize = 3;

/// The limits and periods of a membership. All nodes of a cluster should have the same.
#[derive(Clone, Debug)]
pub struct MembershipOptions {
    /// The most nodes, this one included. Others are not admitted.
    pub max_nodes: usize,
    /// The most nodes to which this one sends gossip and probes. In a larger cluster, others may send to it, too.
    pub partners: usize,
    /// The period in which one node is probed.
    pub probe_period: Duration,
    /// The time that a node has to answer a probe. Afterwards other nodes are asked to probe it.
    pub round_trip: Duration,
    /// The time that a silent node has to answer, in a cluster of up to 10 nodes. It grows by half of itself with
    /// each digit of the number of nodes.
    pub suspicion: Duration,
    /// The period of gossip, while there is news.
    pub gossip_period: Duration,
    /// The period in which one node is asked for the list of all nodes; shorter after news.
    pub sync_period: Duration,
    /// The period in which this node writes to two nodes that are down, in case they are not.
    pub revive_period: Duration,
    /// The time after which a node that is down is forgotten.
    pub forget_after: Duration,
}

impl Default for MembershipOptions {
    fn default() -> Self {
        Self {
            max_nodes: 256,
            partners: 16,
            probe_period: Duration::from_millis(600),
            round_trip: Duration::from_millis(250),
            suspicion: Duration::from_secs(3),
            gossip_period: Duration::from_millis(200),
            sync_period: Duration::from_secs(5),
            revive_period: Duration::from_secs(5),
            forget_after: Duration::from_mins(10),
        }
    }
}

impl MembershipOptions {
    /// Returns the configuration of foca for a cluster of `nodes`.
    pub(super) fn foca(&self, nodes: usize) -> Config {
        let digits = f64::from(u32::try_from(nodes).unwrap_or(u32::MAX).max(1)).log10();
        let every = |frequency, nodes: usize| {
            let num_members = NonZeroUsize::MIN.saturating_add(nodes - 1);
            Some(PeriodicParams {
                frequency,
                num_members,
            })
        };
        // Where each node has links to all others, one that reaches a silent node is found in any case.
        let indirect = if nodes <= self.partners + 1 {
            self.partners
        } else {
            INDIRECT
        };
        Config {
            probe_period: self.probe_period,
            probe_rtt: self.round_trip,
            num_indirect_probes: NonZeroUsize::MIN.saturating_add(indirect.saturating_sub(1)),
            max_transmissions: NonZeroU8::MIN.saturating_add(transmissions(digits) - 1),
            suspect_to_down_after: self.suspicion.mul_f64(digits.max(1.0).midpoint(1.0)),
            remove_down_after: Some(self.forget_after),
            max_packet_size: NonZeroUsize::MIN.saturating_add(MAX_SWIM_LEN - 1),
            notify_down_members: true,
            // The membership does this itself, and more often after news.
            periodic_announce: None,
            periodic_announce_to_down_members: every(self.revive_period, 2),
            periodic_gossip: every(self.gossip_period, 3),
        }
    }
}

/// Returns the number of times that a node sends each piece of news. A node is missed with a probability of about e to
/// the power of minus this number.
fn transmissions(digits: f64) -> u8 {
    [(4.0, 16), (3.0, 16), (2.0, 12), (1.0, 8)]
        .into_iter()
        .find_map(|(from, times)| (digits >= from).then_some(times))
        .unwrap_or(6)
}
