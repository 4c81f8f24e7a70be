use std::time::Duration;

use super::simulation::Network;
use super::*;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn network(nodes: usize, loss: f64, seed: u64) -> Network {
    let mut network = Network::new(nodes, loss, seed, MembershipOptions::default());
    agree(&mut network, 30);
    network
}

/// Waits until all nodes know all others.
fn agree(network: &mut Network, limit: u64) -> Duration {
    let known = network.run_until(seconds(limit), Network::agrees);
    assert!(
        known.is_some(),
        "not known to all after {limit} s: {}",
        network.describe()
    );
    known.unwrap()
}

#[test]
fn nodes_find_each_other_and_none_is_declared_down_by_mistake() {
    for (nodes, runs) in [(3, 6), (10, 4), (100, 1)] {
        for loss in [0.0, 0.049] {
            for seed in 0..runs {
                let mut network = network(nodes, loss, seed);
                network.run(seconds(if nodes < 100 { 60 } else { 20 }));
                assert!(network.agrees());
                assert_eq!(
                    network.false_downs, 0,
                    "{nodes} nodes, loss {loss}, seed {seed}"
                );
            }
        }
    }
}

#[test]
fn stopped_node_is_known_by_all_again() {
    for seed in 0..30 {
        let mut network = network(10, 0.01, seed);
        network.stop(4, true);
        network.run(seconds(3));
        network.stop(4, false);
        network.run(seconds(2));
        agree(&mut network, 5);
        network.run(seconds(20));
        assert!(network.agrees(), "seed {seed}: {}", network.describe());
    }
}

#[test]
fn node_that_was_declared_down_joins_again() {
    for seed in 0..20 {
        let mut network = network(10, 0.01, seed);
        network.stop(4, true);
        network.run(seconds(15));
        network.stop(4, false);
        agree(&mut network, 10);
    }
}

#[test]
fn killed_node_is_noticed_and_its_next_run_is_admitted() {
    for (nodes, refuses) in [(3, true), (3, false), (10, true), (10, false), (100, true)] {
        let mut network = network(nodes, 0.01, 7);
        network.kill(1, refuses);
        agree(&mut network, if refuses { 1 } else { 8 });
        network.start("node-1", 2, "10.0.0.1:7946");
        agree(&mut network, 15);
        assert_eq!(network.false_downs, 0);
    }
}

#[test]
fn next_run_at_the_same_address_replaces_the_former_at_once() {
    let mut network = network(10, 0.0, 1);
    network.kill(9, false);
    network.start("node-9", 2, "10.0.0.9:7946");
    agree(&mut network, 3);
}

#[test]
fn next_run_elsewhere_is_admitted_when_the_former_does_not_answer() {
    for refuses in [true, false] {
        for seed in 0..10 {
            let mut network = network(10, 0.01, seed);
            network.kill(9, refuses);
            network.start("node-9", 2, "10.0.1.9:7946");
            agree(&mut network, 20);
        }
    }
}

#[test]
fn older_of_two_nodes_keeps_the_name() {
    for seed in 0..10 {
        let mut network = network(10, 0.01, seed);
        let second = network.start("node-9", 2, "10.0.1.9:7946");
        network.run(seconds(60));
        let conflicts = |network: &Network| {
            let conflict = |(at, effect): &(usize, Effect)| {
                *at == second && matches!(effect, Effect::Conflict { .. })
            };
            network.news.iter().filter(|it| conflict(it)).count()
        };
        assert!(conflicts(&network) > 1);
        assert!(
            network.members_of(second).is_empty(),
            "the younger has peers"
        );
        assert_eq!(network.false_downs, 0);
        for node in 0..10 {
            assert_eq!(
                network.members_of(node).len(),
                9,
                "node {node}, seed {seed}"
            );
        }
        // The name is free once the older ends.
        network.kill(9, true);
        agree(&mut network, 60);
    }
}

#[test]
fn nodes_of_a_partition_find_each_other_again() {
    for (nodes, seeds) in [(3, 10), (10, 10), (100, 1)] {
        for seed in 0..seeds {
            let mut network = network(nodes, 0.0, seed);
            network.cut = Box::new(move |a, b| (a < nodes / 2) != (b < nodes / 2));
            network.run(seconds(30));
            network.cut = Box::new(|_, _| false);
            agree(&mut network, 60);
        }
    }
}

#[test]
fn node_that_sees_both_sides_keeps_them_together() {
    for seed in 0..10 {
        let mut network = network(10, 0.0, seed);
        network.cut = Box::new(move |a, b| a != 0 && b != 0 && (a < 5) != (b < 5));
        network.run(seconds(60));
        network.cut = Box::new(|_, _| false);
        agree(&mut network, 60);
    }
}

#[test]
fn step_of_a_clock_harms_nobody() {
    let mut network = network(10, 0.0, 1);
    network.step_clock(3, seconds(3600));
    network.run(seconds(20));
    assert!(network.agrees());
    assert_eq!(network.false_downs, 0);
}
