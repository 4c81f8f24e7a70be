//! Tests of nodes whose answers come late, which other load would make too late: each has the machine for itself.
#![cfg(test)]

use std::time::{Duration, Instant};

use gorego_integration::{
    cluster::{self, Crowd, Node},
    executor::{Gate, Messages, TestAction, succeeded},
    lock::Lock,
    metrics::Metrics,
    web,
};
use reapi::v2::execution_stage::Value;

/// One action at a time on each node.
const ONE: &str = "execution.concurrency=1";
/// A node that runs no actions itself.
const ENTRY: &str = "execution.enabled=false";
/// The most tries of what must happen in time.
const TRIES: u32 = 5;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_pauses_shortly_keeps_its_action() {
    let _lock = Lock::take("alone");
    for _ in 0..TRIES {
        if pauses_shortly().await {
            return;
        }
    }
    panic!("each pause was longer than the lease of an action");
}

/// Pauses a node until another one suspects it. Returns false if that took so long that its action may run again.
async fn pauses_shortly() -> bool {
    let a = Node::start("a", "", &[ENTRY]).await;
    let b = Node::start("b", &a.mesh.to_string(), &[ONE]).await;
    a.wait_for_members(&["a", "b"]).await;
    let mut gate = Gate::new();
    let crowd = Crowd::start(&a, &gate, 1).await;
    gate.wait_for_starts(1);
    // Has a slot for the action if that is queued again.
    let c = Node::start("c", &a.mesh.to_string(), &[ONE]).await;
    a.wait_for_members(&["a", "b", "c"]).await;
    b.server.freeze();
    let frozen = Instant::now();
    let is_noticed = |response: &web::Response| {
        let nodes = response.json()["nodes"].as_array().cloned().unwrap();
        nodes
            .iter()
            .any(|node| node["name"] == "b" && node["state"] != "alive")
    };
    web::wait_for(a.server.metrics(), "/api/v1/peers", is_noticed).await;
    b.server.thaw();
    if frozen.elapsed() > Duration::from_millis(2500) {
        return false;
    }
    a.wait_for_state("b", "alive").await;
    gate.open();
    crowd.finish(&c).await;
    assert_eq!(gate.starts(), 1);
    let metrics = Metrics::of(a.server.metrics()).await;
    assert_eq!(metrics.sum("gorego_cluster_requeued_actions_total"), 0);
    true
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
    let mut suspicions = 0;
    for number in 0..40 {
        let action = TestAction::script(&format!("echo {number}"));
        succeeded(a.executor.execute(&action).await);
        for node in [&a, &b] {
            let peers = node.peers().await.into_iter();
            let states: Vec<_> = peers.map(|peer| peer["state"].clone()).collect();
            assert_eq!(states.len(), 2);
            assert!(!states.contains(&"down".into()), "{states:?}");
            suspicions += u32::from(states.contains(&"suspect".into()));
        }
    }
    // Of 80: other programs may keep a thread with a higher priority waiting, too.
    assert!(suspicions < 5, "{suspicions}");
    for messages in &busy {
        a.executor.cancel(&messages.name).await.unwrap();
    }
    for node in [&a, &b] {
        assert!(!node.server.log().contains("a node is down"));
    }
}

/// Starts an entry node, and a node with these settings that runs an action of it. Pauses the entry node and waits until
/// the action has ended. Returns the time of the pause, too.
async fn end_while_paused(more: &[&str]) -> ([Node; 2], Gate, Messages, Instant) {
    let a = Node::start("a", "", &[ENTRY]).await;
    let b = Node::start("b", &a.mesh.to_string(), more).await;
    for node in [&a, &b] {
        node.wait_for_members(&["a", "b"]).await;
    }
    let mut gate = Gate::new();
    // It has no outputs, of which the paused node would get copies.
    let action = a.executor.start(&TestAction::script(&gate.pass())).await;
    gate.wait_for_starts(1);
    a.server.freeze();
    let frozen = Instant::now();
    gate.open();
    Metrics::wait_for(b.server.metrics(), |metrics| {
        metrics.get("gorego_execution_running") == Some(0)
    })
    .await;
    ([a, b], gate, action, frozen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_not_drained_until_the_entry_node_received_the_end_of_its_action() {
    let _lock = Lock::take("alone");
    let ([a, b], gate, mut action, _) = end_while_paused(&[ONE]).await;
    assert_eq!(b.begin_drain(), "1 actions left\n");
    a.server.thaw();
    succeeded(action.response().await);
    assert!(b.drain(&[]).wait().success());
    assert_eq!(gate.starts(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_stop_until_the_entry_node_received_the_end_of_its_action() {
    let _lock = Lock::take("alone");
    for _ in 0..TRIES {
        if stops_late().await {
            return;
        }
    }
    panic!("each end of an action came too late");
}

/// Stops a node while the entry node is paused. Returns false if that was so late that the node may take the entry node
/// for a lost one.
async fn stops_late() -> bool {
    let settings = [ONE, "limits.drain_timeout=60s"];
    let ([a, mut b], gate, mut action, frozen) = end_while_paused(&settings).await;
    b.server.ask_to_stop();
    let is_early = frozen.elapsed() < Duration::from_millis(800);
    // Longer than a node takes for its farewell, and shorter than it waits for a silent one.
    let is_over = b.server.ends_within(Duration::from_millis(2500));
    a.server.thaw();
    succeeded(action.response().await);
    assert!(b.server.wait().success());
    if is_early {
        assert!(!is_over);
        assert_eq!(gate.starts(), 1);
    }
    is_early
}
