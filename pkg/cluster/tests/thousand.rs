//! A cluster of a thousand nodes in virtual time recovers from each incident of one node. Partitions of a thousand nodes
//! take minutes; `membership/tests/matrix.rs` tests them in smaller clusters.

use gorego_cluster::membership::simulation::{Incident, recover};

#[test]
fn thousand_nodes_recover_from_a_killed_process() {
    recover(1000, 0.01, 11, Incident::Kill).unwrap();
}

#[test]
fn thousand_nodes_recover_from_the_loss_of_a_host() {
    recover(1000, 0.05, 11, Incident::Vanish).unwrap();
}

#[test]
fn thousand_nodes_recover_from_a_move() {
    recover(1000, 0.01, 11, Incident::Move).unwrap();
}

#[test]
fn thousand_nodes_recover_from_a_paused_process() {
    recover(1000, 0.01, 11, Incident::Pause).unwrap();
}

#[test]
fn thousand_nodes_recover_from_a_clock_jump() {
    recover(1000, 0.0, 11, Incident::Clock).unwrap();
}
