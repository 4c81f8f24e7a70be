mod matrix;

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::simulation::{self, Network, simulate};
use super::*;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn network(nodes: usize, loss: f64, seed: u64) -> Network {
    simulation::network(nodes, loss, seed).unwrap()
}

fn limited_to(max_nodes: usize) -> MembershipOptions {
    MembershipOptions {
        max_nodes,
        ..MembershipOptions::default()
    }
}

/// Waits until all nodes know all others.
fn agree(network: &mut Network, limit: u64) -> Duration {
    simulation::agree(network, limit).unwrap()
}

#[test]
fn ten_nodes_reach_the_aims() {
    let report = simulate(10, 0.01, 1, &MembershipOptions::default());
    assert!(report.known.unwrap() < seconds(1), "{report:?}");
    assert!(report.killed.unwrap() < seconds(4), "{report:?}");
    assert!(
        report.vanished.is_some() && report.idle_bytes < 10_000,
        "{report:?}"
    );
    assert_eq!(report.false_downs, 0);
}

#[test]
fn nodes_find_each_other_and_none_is_declared_down_by_mistake() {
    for (nodes, runs) in [(3, 4), (10, 3), (100, 1)] {
        for loss in [0.01, 0.05] {
            for seed in 0..runs {
                let mut network = network(nodes, loss, seed);
                network.run(seconds(if nodes < 100 { 60 } else { 10 }));
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
    for seed in 0..15 {
        let mut network = network(10, 0.01, seed);
        network.stop(4, true);
        network.run(seconds(3));
        network.stop(4, false);
        network.run(seconds(2));
        agree(&mut network, 5);
        network.run(seconds(20));
        assert!(network.agrees(), "seed {seed}: {}", network.describe());
        assert_eq!(network.false_downs, 0, "seed {seed}");
        let rejoined = network.news.iter().any(|it| it.1 == Effect::Rejoined);
        assert!(!rejoined, "seed {seed}: told that it is down");
    }
}

#[test]
fn node_that_was_declared_down_joins_again() {
    for seed in 0..10 {
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
        agree(&mut network, if refuses { 5 } else { 8 });
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
    for (nodes, seeds) in [(3, 5), (10, 5), (40, 1)] {
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
fn nodes_that_were_all_cut_off_find_each_other_without_those_that_they_look_for() {
    for time in [30, 1000] {
        let mut network = network(6, 0.0, time);
        for seed in 0..3 {
            network.kill(seed, true);
        }
        agree(&mut network, 10);
        network.cut = Box::new(|_, _| true);
        network.run(seconds(time));
        assert!((3..6).all(|node| network.members_of(node).is_empty()));
        network.cut = Box::new(|_, _| false);
        agree(&mut network, 60);
    }
}

#[test]
fn node_that_sees_both_sides_keeps_them_together() {
    for seed in 0..4 {
        let mut network = network(10, 0.0, seed);
        network.cut = Box::new(move |a, b| a != 0 && b != 0 && (a < 5) != (b < 5));
        network.run(seconds(60));
        assert!(network.agrees(), "seed {seed}: {}", network.describe());
        assert_eq!(network.false_downs, 0, "seed {seed}");
        network.cut = Box::new(|_, _| false);
        network.run(seconds(30));
        assert!(network.agrees(), "seed {seed}: {}", network.describe());
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

#[test]
fn older_node_regains_a_name_that_it_lost_in_a_partition() {
    for seed in 0..5 {
        let mut network = network(6, 0.0, seed);
        network.cut = Box::new(|a, b| (a < 3) != (b < 3));
        network.run(seconds(15));
        // The second node with the name of number 2 finds only the other side.
        let second = network.start("node-2", 2, "10.0.1.2:7946");
        network.introduce(second, 4);
        network.run(seconds(15));
        assert!(network.members_of(4).contains(&"node-2-2".to_owned()));
        network.cut = Box::new(|_, _| false);
        network.run(seconds(120));
        assert!(network.members_of(second).is_empty(), "seed {seed}");
        for node in 0..6 {
            let members = network.members_of(node);
            assert_eq!(
                members.len(),
                5,
                "node {node}, seed {seed}: {}",
                network.describe()
            );
            assert!(!members.contains(&"node-2-2".to_owned()), "seed {seed}");
        }
    }
}

#[test]
fn nodes_beyond_the_limit_are_turned_away_until_there_is_room() {
    let options = limited_to(8);
    for seed in 0..5 {
        let mut network = Network::new(8, 0.01, seed, options.clone());
        agree(&mut network, 10);
        let ninth = network.start("node-8", 1, "10.0.0.8:7946");
        network.run(seconds(40));
        assert!(network.members_of(ninth).is_empty());
        assert!((0..8).all(|node| network.members_of(node).len() == 7));
        assert_eq!(network.false_downs, 0);
        let told = |at: usize| move |it: &(usize, Effect)| it.0 == at;
        assert!(
            network
                .news
                .iter()
                .filter(|it| told(ninth)(it))
                .any(|it| it.1 == Effect::Full)
        );
        let refused = Effect::Refused(Generation::new("node-8", 1).unwrap());
        assert!(network.news.iter().any(|it| it.1 == refused));
        network.kill(0, true);
        agree(&mut network, 60);
    }
}

#[test]
fn node_beyond_the_limit_turns_no_member_away() {
    let options = limited_to(2);
    for seed in 0..100 {
        let mut network = Network::new(2, 0.0, seed, options.clone());
        agree(&mut network, 10);
        // One of the members may admit it before it knows the other one again.
        let third = network.start("node-2", 2, "10.0.0.2:7946");
        network.introduce(third, 0);
        network.introduce(third, 1);
        network.run(seconds(12));
        let members = [0, 1, third].map(|node| network.members_of(node).len());
        assert_eq!(members, [1, 1, 0], "seed {seed}");
        assert_eq!(network.false_downs, 0, "seed {seed}");
        // The link to the node that it did not join stayed open.
        network.kill(1, true);
        agree(&mut network, 60);
    }
}

#[test]
fn cluster_that_starts_with_too_many_nodes_settles() {
    let options = limited_to(8);
    for seed in 0..5 {
        let mut network = Network::new(12, 0.0, seed, options.clone());
        network.run(seconds(300));
        let sizes: Vec<_> = (0..12).map(|node| network.members_of(node).len()).collect();
        let members = sizes.iter().filter(|size| **size > 0).count();
        assert!((7..=8).contains(&members), "seed {seed}: {sizes:?}");
    }
}

#[test]
fn packets_of_another_cluster_and_for_another_node_are_refused() {
    let mut network = network(3, 0.0, 1);
    // A node of another cluster starts at an address that is still known.
    network.kill(2, false);
    let foreign = network.start_in("other", "node-2", 2, "10.0.0.2:7946");
    network.introduce(foreign, 0);
    network.run(seconds(20));
    assert!(network.members_of(foreign).is_empty());
    assert!((0..2).all(|node| network.members_of(node).len() == 1));
    // A node with another name starts there.
    network.kill(foreign, false);
    network.start("node-3", 1, "10.0.0.2:7946");
    agree(&mut network, 15);
    let record = network.membership(0).unwrap().me().clone();
    let refused = network.refused();
    assert!(refused.contains(&PacketError::Cluster), "{refused:?}");
    assert_eq!(record.node.node(), "node-0");
}

#[test]
fn change_of_a_record_reaches_all() {
    for (nodes, loss) in [(10, 0.05), (40, 0.01)] {
        let mut network = network(nodes, loss, 3);
        network.run(seconds(10));
        let mut record = network.membership(5).unwrap().me().clone();
        record.draining = true;
        let from = network.news.len();
        network
            .act(5, |membership, now| membership.update(record.clone(), now))
            .unwrap()
            .unwrap();
        network.run(seconds(10));
        let changed = Effect::Changed(Arc::new(record));
        let told = network.news[from..]
            .iter()
            .filter(|it| it.1 == changed)
            .count();
        assert_eq!(told, nodes - 1);
    }
}

#[test]
fn leaving_node_is_gone_at_once() {
    let mut network = network(10, 0.0, 3);
    network.act(5, Membership::leave);
    network.kill(5, false);
    assert!(agree(&mut network, 5) < seconds(1));
}

#[test]
fn node_that_refuses_one_other_only_stays_a_member() {
    for nodes in [3, 10, 100] {
        let mut network = network(nodes, 0.01, 3);
        network.cut = Box::new(|a, b| (a, b) == (2, 1) || (a, b) == (1, 2));
        let peer = Generation::new("node-1", 1).unwrap();
        let lost = |network: &mut Network, loss| {
            network.act(2, |membership, now| {
                membership.connection_lost(&peer, loss, now);
            });
        };
        lost(&mut network, Loss::Broken);
        for _ in 0..200 {
            lost(&mut network, Loss::Refused);
            network.run(Duration::from_millis(100));
        }
        assert_eq!(network.false_downs, 0, "{nodes} nodes");
        assert!(network.agrees());
    }
}

#[test]
fn thousand_members_fit() {
    let options = limited_to(2000);
    let mut network = Network::new(2, 0.0, 1, options);
    agree(&mut network, 5);
    let updates = (0..1000).map(|number| {
        let node = Generation::new(&format!("other-{number}"), 1).unwrap();
        foca::Member::alive(Identity::new(
            node,
            1,
            &format!("10.1.{}.{}:7946", number / 250, number % 250),
        ))
    });
    network.act(0, |membership, _| {
        membership.drive(|foca, runtime| foca.apply_many(updates, false, runtime));
    });
    let fed = |network: &Network| network.sent > 40_000;
    network.run_until(seconds(30), fed).unwrap();
    network.run(seconds(1));
    let known = network.membership(1).unwrap().nodes.len();
    assert_eq!(known, 1001);
    assert!(network.membership(1).unwrap().partners.len() <= 16);
}

fn pair() -> Network {
    let mut network = Network::new(2, 0.0, 1, MembershipOptions::default());
    agree(&mut network, 5);
    network
}

/// Packets that a node writes in its first seconds among others.
fn packets() -> Vec<Bytes> {
    let mut network = Network::new(5, 0.0, 1, MembershipOptions::default());
    network.log = Some(Vec::new());
    network.run(seconds(3));
    network.log.take().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn random_bytes_do_not_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut network = pair();
        let from = network.membership(1).unwrap().me().clone();
        network.act(0, |membership, now| membership.receive(&from, &bytes, now).ok());
        network.run(seconds(2));
        prop_assert!(network.agrees());
    }

    #[test]
    fn damaged_packets_do_not_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 20),
    ) {
        static PACKETS: OnceLock<Vec<Bytes>> = OnceLock::new();
        let packets = PACKETS.get_or_init(packets);
        let mut network = pair();
        let from = network.membership(1).unwrap().me().clone();
        for (packet, at, byte) in damage {
            let mut packet = packet.get(packets).to_vec();
            *at.get_mut(&mut packet) = byte;
            network.act(0, |membership, now| membership.receive(&from, &packet, now).ok());
            let cut = at.index(packet.len());
            network.act(0, |membership, now| membership.receive(&from, &packet[..cut], now).ok());
        }
        network.run(seconds(2));
        prop_assert!(network.membership(0).unwrap().nodes.len() < 256);
    }
}

#[test]
fn host_that_vanished_is_missed_by_all() {
    for (nodes, seeds) in [(3, 4), (10, 4), (60, 1)] {
        for seed in 0..seeds {
            let mut network = network(nodes, 0.05, seed);
            network.kill(2, false);
            agree(&mut network, 15);
            assert_eq!(network.false_downs, 0);
        }
    }
}
