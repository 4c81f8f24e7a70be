//! Each incident in clusters of several sizes, at several rates of lost packets. `tests/large.rs` has larger clusters.

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
fn node_that_moved_is_known_to_those_that_have_no_link_to_it() {
    for (nodes, loss) in [(20, 0.0), (20, 0.05), (30, 0.01)] {
        for seed in 0..15 {
            recover(nodes, loss, seed, Incident::Move).unwrap();
        }
    }
}
