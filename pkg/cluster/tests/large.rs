//! Clusters of hundreds of nodes in virtual time recover from each incident. A partition of a thousand nodes takes
//! minutes.

use gorego_cluster::membership::simulation::{Incident, recover, recover_from_each};

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
fn thousand_nodes_recover_from_the_loss_of_nodes() {
    let incidents = [Incident::Kill, Incident::Vanish, Incident::Move];
    recover_from_each(1000, 0.01, 11, &incidents).unwrap();
}

#[test]
fn thousand_nodes_recover_from_a_pause_and_a_clock_jump() {
    let incidents = [Incident::Pause, Incident::Clock];
    recover_from_each(1000, 0.05, 11, &incidents).unwrap();
}
