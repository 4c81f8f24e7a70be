//! Each incident in clusters of several sizes, at several rates of lost packets. `tests/thousand.rs` has a larger cluster.

use super::super::simulation::{Incident, recover};

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
                    recover(nodes, *loss, seed, incident).unwrap();
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
                recover(100, loss, 11, incident).unwrap();
            }
        }
    }
}

#[test]
fn hundred_nodes_recover_from_a_partition() {
    recover(100, 0.05, 11, Incident::Partition).unwrap();
}

#[test]
fn hundred_nodes_recover_from_a_partition_with_a_bridge() {
    recover(100, 0.01, 11, Incident::Bridge).unwrap();
}

#[test]
fn three_hundred_nodes_recover_from_a_partition() {
    recover(300, 0.01, 11, Incident::Partition).unwrap();
}

#[test]
fn node_that_moved_is_known_to_those_that_have_no_link_to_it() {
    for (nodes, loss) in [(20, 0.0), (20, 0.05), (30, 0.01)] {
        for seed in 0..15 {
            recover(nodes, loss, seed, Incident::Move).unwrap();
        }
    }
}
