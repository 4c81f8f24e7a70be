//! Each incident in clusters of several sizes, at several rates of lost packets.

use super::*;

/// An incident that a cluster recovers from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Incident {
    /// A process ends; its host refuses connections.
    Kill,
    /// A host vanishes.
    Vanish,
    /// A node moves: its next run has another address.
    Move,
    /// A process stops for 3 s.
    Stop,
    /// The network splits into halves for 30 s.
    Partition,
    /// It splits, and one node sees both halves.
    Bridge,
    /// The clock of a node jumps.
    Clock,
}

impl Incident {
    const ALL: [Self; 7] = [
        Self::Kill,
        Self::Vanish,
        Self::Move,
        Self::Stop,
        Self::Partition,
        Self::Bridge,
        Self::Clock,
    ];

    fn happen(self, network: &mut Network, nodes: usize) {
        let half = nodes / 2;
        match self {
            Self::Kill => network.kill(1, true),
            Self::Vanish => network.kill(1, false),
            Self::Move => {
                network.kill(1, false);
                network.start("node-1", 2, "10.0.1.1:7946");
            }
            Self::Stop => {
                network.stop(1, true);
                network.run(seconds(3));
                network.stop(1, false);
            }
            Self::Partition => {
                network.cut = Box::new(move |a, b| (a < half) != (b < half));
                network.run(seconds(30));
                network.cut = Box::new(|_, _| false);
            }
            Self::Bridge => {
                network.cut = Box::new(move |a, b| a != 0 && b != 0 && (a <= half) != (b <= half));
                for _ in 0..30 {
                    network.run(seconds(1));
                    // Others may suspect a node of the other half, which then joins again.
                    let known = network.members_of(0).len();
                    assert!((known + 1) * 4 >= nodes * 3, "the bridge knows {known}");
                }
                network.cut = Box::new(|_, _| false);
            }
            Self::Clock => network.step_clock(1, seconds(3600)),
        }
    }
}

fn recovers(nodes: usize, loss: f64, seed: u64, incident: Incident) {
    let mut network = network(nodes, loss, seed);
    incident.happen(&mut network, nodes);
    let known = network.run_until(seconds(60), Network::agrees);
    let what = format!("{incident:?}, {nodes} nodes, loss {loss}, seed {seed}");
    assert!(known.is_some(), "{what}: {}", network.describe());
    if incident == Incident::Move {
        assert!(known.unwrap() < seconds(10), "{what}: {known:?}");
    }
    let may_miss = match incident {
        // Nodes are down to those that they do not reach.
        Incident::Partition => true,
        // The bridge may not be among the nodes that are asked about a silent one, or packets through it are lost.
        Incident::Bridge => nodes > MembershipOptions::default().partners + 1 || loss > 0.01,
        _ => false,
    };
    if !may_miss {
        network.run(seconds(10));
        assert_eq!(network.false_downs, 0, "{what}");
    }
}

#[test]
fn clusters_of_each_size_recover_from_each_incident_at_each_rate_of_loss() {
    for (nodes, losses) in [
        (3, &[0.0, 0.01, 0.05][..]),
        (10, &[0.0, 0.01, 0.05]),
        (30, &[0.01, 0.05]),
    ] {
        let seeds = if nodes > 10 { 11..12 } else { 11..15 };
        for loss in losses {
            for incident in Incident::ALL {
                for seed in seeds.clone() {
                    recovers(nodes, *loss, seed, incident);
                }
            }
        }
    }
}

#[test]
fn hundred_nodes_recover_from_each_incident_of_one_node() {
    for loss in [0.0, 0.05] {
        for incident in Incident::ALL {
            if ![Incident::Partition, Incident::Bridge].contains(&incident) {
                recovers(100, loss, 11, incident);
            }
        }
    }
}

#[test]
fn hundred_nodes_recover_from_a_partition() {
    recovers(100, 0.05, 11, Incident::Partition);
}

#[test]
fn hundred_nodes_recover_from_a_partition_with_a_bridge() {
    recovers(100, 0.01, 11, Incident::Bridge);
}

#[test]
fn three_hundred_nodes_recover_from_a_partition() {
    recovers(300, 0.01, 11, Incident::Partition);
}

#[test]
fn node_that_moved_is_known_to_those_that_have_no_link_to_it() {
    for (nodes, loss) in [(20, 0.0), (20, 0.05), (30, 0.01)] {
        for seed in 0..15 {
            recovers(nodes, loss, seed, Incident::Move);
        }
    }
}
