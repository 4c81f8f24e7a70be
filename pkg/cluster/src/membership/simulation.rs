//! A cluster in virtual time, for tests and measurements.

mod incidents;
mod network;

use std::time::Duration;

pub use incidents::{Incident, agree, network, recover, recover_from_each};
pub use network::Network;

use super::MembershipOptions;

/// The figures of a cluster in virtual time.
#[derive(Clone, Debug)]
pub struct Report {
    /// The time from the start of all nodes until each knows all records; `None` if it exceeded a minute.
    pub known: Option<Duration>,
    /// The bytes of packets that a node sends a second while nothing happens.
    pub idle_bytes: u64,
    /// The time until all nodes know that a process was killed, whose host refuses connections.
    pub killed: Option<Duration>,
    /// The time until all nodes know that a host vanished.
    pub vanished: Option<Duration>,
    /// The nodes declared down that were not.
    pub false_downs: usize,
}

/// Runs a cluster of `nodes` that loses the share `loss` of its packets.
pub fn simulate(nodes: usize, loss: f64, seed: u64, options: &MembershipOptions) -> Report {
    let minute = Duration::from_mins(1);
    let mut network = Network::new(nodes, loss, seed, options.clone());
    let known = network.run_until(minute, Network::agrees);
    network.run(Duration::from_secs(30));
    let idle = Duration::from_secs(20);
    let sent = network.sent;
    network.run(idle);
    let idle_bytes = (network.sent - sent) / idle.as_secs() / nodes.max(1) as u64;
    let mut end = |refuses| {
        let victim = nodes.checked_sub(if refuses { 1 } else { 2 })?;
        network.kill(victim, refuses);
        let noticed = network.run_until(minute, Network::agrees);
        network.run(Duration::from_secs(5));
        noticed
    };
    let killed = end(true);
    let vanished = end(false);
    Report {
        known,
        idle_bytes,
        killed,
        vanished,
        false_downs: network.false_downs,
    }
}
