//! A cluster of a thousand nodes in virtual time recovers from each incident of one node. Partitions of
//! that size take minutes; smaller clusters have them among the tests of the membership.

use gorego_cluster::membership::simulation::{Incident, recover};

#[test]
fn thousand_nodes_recover_from_the_end_of_a_process() {
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
fn thousand_nodes_recover_from_a_stop() {
    recover(1000, 0.01, 11, Incident::Stop).unwrap();
}

#[test]
fn thousand_nodes_recover_from_a_step_of_a_clock() {
    recover(1000, 0.0, 11, Incident::Clock).unwrap();
}
