//! Tests of nodes whose names, or those of their clusters, keep them from working together.
#![cfg(test)]

use gorego_integration::{
    cluster::{Crowd, Node},
    executor::Gate,
};

/// One action at a time on each node.
const ONE: &str = "execution.concurrency=1";

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_restarts_at_its_port_in_another_cluster_is_refused() {
    let a = Node::start("a", "", &[ONE]).await;
    let b = Node::start("b", &a.mesh.to_string(), &[ONE]).await;
    let c = Node::start("c", &a.mesh.to_string(), &[ONE]).await;
    for node in [&a, &b, &c] {
        node.wait_for_members(&["a", "b", "c"]).await;
    }
    let b = b.restart_with(&["cluster.name=other"]).await;
    a.server.wait_for_log(" refused: ");
    for node in [&a, &c] {
        node.wait_for_members(&["a", "c"]).await;
    }
    b.wait_for_members(&["b"]).await;
    let mut gate = Gate::new();
    let crowd = Crowd::start(&a, &gate, 3).await;
    gate.wait_for_starts(2);
    let mut own = Gate::new();
    let of_b = Crowd::start(&b, &own, 2).await;
    own.wait_for_starts(1);
    assert_eq!((gate.starts(), own.starts()), (2, 1));
    assert_eq!(a.places().await, ["a", "c"]);
    gate.open_for(3);
    crowd.finish(&c).await;
    own.open_for(2);
    of_b.finish(&b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newer_of_two_nodes_with_one_name_works_alone() {
    let a = Node::start("a", "", &[ONE]).await;
    let b = Node::start("b", &a.mesh.to_string(), &[ONE]).await;
    for node in [&a, &b] {
        node.wait_for_members(&["a", "b"]).await;
    }
    let newer = Node::start("a", &b.mesh.to_string(), &[ONE]).await;
    newer
        .server
        .wait_for_log("another node already has the name of this one");
    let mut gate = Gate::new();
    let own = Crowd::start(&newer, &gate, 2).await;
    let mut other = Gate::new();
    let crowd = Crowd::start(&b, &other, 3).await;
    other.wait_for_starts(2);
    assert_eq!(b.places().await, ["a", "b"]);
    gate.wait_for_starts(1);
    assert_eq!((gate.starts(), other.starts()), (1, 2));
    gate.open_for(2);
    own.finish(&newer).await;
    other.open_for(3);
    crowd.finish(&a).await;
    for node in [&a, &b] {
        node.wait_for_members(&["a", "b"]).await;
    }
}
