//! Incidents that a cluster recovers from.

use std::time::Duration;

use super::Network;
use crate::membership::MembershipOptions;

/// An incident that a cluster recovers from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incident {
    /// A process ends; its host refuses connections.
    Kill,
    /// A host vanishes.
    Vanish,
    /// A node moves: its next run has another address.
    Move,
    /// A process is paused for 3 s.
    Pause,
    /// The network splits into halves for 30 s.
    Partition,
    /// The network splits into halves for 30 s, and one node reaches both.
    Bridge,
    /// The clock of a node jumps by an hour.
    Clock,
}

impl Incident {
    /// All incidents.
    pub const ALL: [Self; 7] = [
        Self::Kill,
        Self::Vanish,
        Self::Move,
        Self::Pause,
        Self::Partition,
        Self::Bridge,
        Self::Clock,
    ];

    /// Lets the incident happen to the node with the number `victim`, or to all.
    fn happen(self, network: &mut Network, nodes: usize, victim: usize) -> Result<(), String> {
        let half = nodes / 2;
        match self {
            Self::Kill => network.kill(victim, true),
            Self::Vanish => network.kill(victim, false),
            Self::Move => {
                network.kill(victim, false);
                network.start(
                    &format!("node-{victim}"),
                    2,
                    &format!("10.0.1.{victim}:7946"),
                );
            }
            Self::Pause => {
                network.stop(victim, true);
                network.run(Duration::from_secs(3));
                network.stop(victim, false);
            }
            Self::Partition => {
                network.cut = Box::new(move |a, b| (a < half) != (b < half));
                network.run(Duration::from_secs(30));
                network.cut = Box::new(|_, _| false);
            }
            Self::Bridge => {
                network.cut = Box::new(move |a, b| a != 0 && b != 0 && (a <= half) != (b <= half));
                for _ in 0..30 {
                    network.run(Duration::from_secs(1));
                    // Others may suspect a node of the other half, which then joins again.
                    let known = network.members_of(0).len();
                    if (known + 1) * 4 < nodes * 3 {
                        return Err(format!("the bridge knows {known}"));
                    }
                }
                network.cut = Box::new(|_, _| false);
            }
            Self::Clock => network.step_clock(victim, Duration::from_hours(1)),
        }
        Ok(())
    }
}

/// Starts `nodes` nodes that lose the share `loss` of their packets, and waits until all know all others.
pub fn network(nodes: usize, loss: f64, seed: u64) -> Result<Network, String> {
    let options = MembershipOptions {
        max_nodes: nodes.max(MembershipOptions::default().max_nodes),
        ..MembershipOptions::default()
    };
    let mut network = Network::new(nodes, loss, seed, options);
    agree(&mut network, 30)?;
    Ok(network)
}

/// Waits until all nodes know all others, and returns the time that it took.
pub fn agree(network: &mut Network, seconds: u64) -> Result<Duration, String> {
    let known = network.run_until(Duration::from_secs(seconds), Network::agrees);
    known.ok_or_else(|| format!("not known to all after {seconds} s: {}", network.describe()))
}

/// Lets an incident happen to a cluster. Fails unless all nodes know all others again within a minute. Except after a
/// partition, or with a bridge that the membership may miss, it also fails if a live node was declared down.
pub fn recover(nodes: usize, loss: f64, seed: u64, incident: Incident) -> Result<(), String> {
    recover_from_each(nodes, loss, seed, &[incident])
}

/// Lets incidents happen to one cluster, each to another node. Fails as [`recover`] does.
pub fn recover_from_each(
    nodes: usize,
    loss: f64,
    seed: u64,
    incidents: &[Incident],
) -> Result<(), String> {
    let mut network = network(nodes, loss, seed)?;
    for (victim, incident) in (1..).zip(incidents) {
        let result = recover_in(&mut network, nodes, victim, *incident);
        let context = format!("{incident:?}, {nodes} nodes, loss {loss}, seed {seed}");
        result.map_err(|error| format!("{context}: {error}"))?;
    }
    Ok(())
}

fn recover_in(
    network: &mut Network,
    nodes: usize,
    victim: usize,
    incident: Incident,
) -> Result<(), String> {
    incident.happen(network, nodes, victim)?;
    let known = agree(network, 60)?;
    if incident == Incident::Move && known >= Duration::from_secs(10) {
        return Err(format!("known after {known:?}"));
    }
    let may_miss = match incident {
        // Nodes are down to those that they do not reach.
        Incident::Partition => true,
        // The bridge may not be among the nodes that are asked about a silent one, or packets through it are lost.
        Incident::Bridge => {
            nodes > MembershipOptions::default().partners + 1 || network.loss > 0.01
        }
        _ => false,
    };
    if !may_miss {
        network.run(Duration::from_secs(10));
        if network.false_downs > 0 {
            return Err(format!("{} false downs", network.false_downs));
        }
    }
    Ok(())
}
