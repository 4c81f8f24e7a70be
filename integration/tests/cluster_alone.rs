//! Tests of nodes whose answers come late, which other load would make too late: each has the machine for itself.
#![cfg(test)]

use gorego_integration::{
    cluster::{self, Crowd, Node},
    executor::{Gate, TestAction, succeeded},
    lock::Lock,
    metrics::Metrics,
};
use reapi::v2::execution_stage::Value;
use rustix::process::Signal;

/// One action at a time on each node.
const ONE: &str = "execution.concurrency=1";

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_pauses_shortly_keeps_its_action() {
    let _lock = Lock::take("alone");
    let a = Node::start("a", "", &["execution.enabled=false"]).await;
    let b = Node::start("b", &a.mesh.to_string(), &[ONE]).await;
    a.wait_for_members(&["a", "b"]).await;
    let mut gate = Gate::new();
    let crowd = Crowd::start(&a, &gate, 1).await;
    gate.wait_for_starts(1);
    // Has a slot for the action if that is queued again.
    let c = Node::start("c", &a.mesh.to_string(), &[ONE]).await;
    a.wait_for_members(&["a", "b", "c"]).await;
    b.server.signal(Signal::STOP);
    a.wait_for_state("b", "suspect").await;
    b.server.signal(Signal::CONT);
    a.wait_for_state("b", "alive").await;
    gate.open();
    crowd.finish(&c).await;
    assert_eq!(gate.starts(), 1);
    let metrics = Metrics::of(a.server.metrics()).await;
    assert_eq!(metrics.sum("gorego_cluster_requeued_actions_total"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_whose_processors_are_all_busy_are_not_suspected() {
    let _lock = Lock::take("alone");
    let [a, b] = cluster::start::<2>(&["execution.concurrency=8"]).await;
    let gate = Gate::new();
    let mut busy = Vec::new();
    for number in 0..15 {
        let script = format!("{}; : {number}; while :; do :; done", gate.report());
        let mut messages = a.executor.start(&TestAction::script(&script)).await;
        messages.reach(Value::Executing).await;
        busy.push(messages);
    }
    gate.wait_for_starts(15);
    for number in 0..40 {
        let action = TestAction::script(&format!("echo {number}"));
        succeeded(a.executor.execute(&action).await);
        for node in [&a, &b] {
            let peers = node.peers().await.into_iter();
            let states = peers.map(|peer| peer["state"].as_str().unwrap().to_owned());
            let mut states: Vec<_> = states.collect();
            states.sort();
            assert_eq!(states, ["alive", "self"]);
        }
    }
    for messages in &busy {
        a.executor.cancel(&messages.name).await.unwrap();
    }
    for node in [&a, &b] {
        assert!(!node.server.log().contains("a node is down"));
    }
}
