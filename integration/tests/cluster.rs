//! Tests of nodes that share actions.
#![cfg(test)]

use gorego_integration::{
    cluster::{self, Node},
    executor::{Gate, Messages, TestAction, outcome, succeeded},
    metrics::Metrics,
};
use reapi::v2::execution_stage::Value;
use tonic::Code;

/// One action at a time on each node.
const ONE: &str = "execution.concurrency=1";

/// The metric of the actions that were queued again.
const REQUEUED: &str = "gorego_cluster_requeued_actions_total";

/// Returns the metrics of the actions that were queued again, by cause; 0 of the causes that are not given.
fn requeued(counts: &[(&str, u64)]) -> Vec<(&'static str, u64)> {
    let causes = [
        ("declined", r#"requeued_actions_total{cause="declined"}"#),
        ("failed", r#"requeued_actions_total{cause="failed"}"#),
        ("lease", r#"requeued_actions_total{cause="lease"}"#),
        ("node_lost", r#"requeued_actions_total{cause="node_lost"}"#),
        ("stopped", r#"requeued_actions_total{cause="stopped"}"#),
    ];
    let count = |cause| {
        counts
            .iter()
            .find(|count| count.0 == cause)
            .map_or(0, |it| it.1)
    };
    causes.map(|(cause, metric)| (metric, count(cause))).into()
}

/// Waits until a node has queued one action again, for this cause or because it lost the node that ran the action.
async fn wait_for_requeued(node: &Node, cause: &str) {
    let is_counted = |metrics: &Metrics| {
        let count = |cause| metrics.get(&format!(r#"{REQUEUED}{{cause="{cause}"}}"#));
        metrics.sum(REQUEUED) == 1 && count(cause).max(count("node_lost")) == Some(1)
    };
    Metrics::wait_for(node.server.metrics(), is_counted).await;
}

/// Starts as many actions at a node as wait at the gate at once; each prints its number.
async fn crowd(node: &Node, gate: &Gate, count: usize) -> Vec<Messages> {
    let mut crowd = Vec::new();
    for number in 0..count {
        let script = format!("{}; echo {number} | tee file", gate.pass());
        let action = TestAction::script(&script).output("file");
        crowd.push(node.executor.start(&action).await);
    }
    crowd
}

/// Lets all actions of a crowd end, and checks their outputs at the node.
async fn finish(node: &Node, gate: &mut Gate, crowd: Vec<Messages>) {
    for _ in 0..2 * crowd.len() {
        gate.open();
    }
    for (number, mut messages) in crowd.into_iter().enumerate() {
        let result = succeeded(messages.response().await);
        let line = format!("{number}\n");
        assert_eq!(node.executor.stdout(&result).await, line);
        assert_eq!(node.executor.file(&result, "file").await, line);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_of_one_node_run_on_all_nodes() {
    let [a, b, c] = cluster::start::<3>(&[ONE]).await;
    let mut gate = Gate::new();
    let crowd = crowd(&a, &gate, 5).await;
    gate.wait_for_starts(3);
    assert_eq!(a.places().await, ["a", "b", "c"]);
    assert!(b.places().await.is_empty() && c.places().await.is_empty());
    let members = (r#"members{state="alive"}"#, 2);
    let elsewhere = ("actions_elsewhere", 2);
    a.wait_for_metrics(&[members, elsewhere, ("handed_over_actions_total", 2)])
        .await;
    for node in [&b, &c] {
        let taken = ("taken_actions_total", 1);
        node.wait_for_metrics(&[members, taken, ("offered_actions", 2)])
            .await;
    }
    finish(&a, &mut gate, crowd).await;
    assert_eq!(gate.starts(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_actions_of_a_killed_node_run_elsewhere() {
    let [a, mut b, c] = cluster::start::<3>(&[ONE]).await;
    let mut gate = Gate::new();
    let crowd = crowd(&a, &gate, 3).await;
    gate.wait_for_starts(3);
    b.server.kill();
    // The action of the killed node waits for a slot.
    a.wait_for_members(&["a", "c"]).await;
    finish(&a, &mut gate, crowd).await;
    assert_eq!(gate.starts(), 4);
    let states = [
        (r#"members{state="alive"}"#, 1),
        (r#"members{state="down"}"#, 1),
    ];
    a.wait_for_metrics(&[&states[..], &requeued(&[("node_lost", 1)])].concat())
        .await;
    drop(c);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_actions_of_a_silent_node_run_elsewhere() {
    let [a, b] = cluster::start::<2>(&[ONE]).await;
    let mut gate = Gate::new();
    let crowd = crowd(&a, &gate, 2).await;
    gate.wait_for_starts(2);
    b.server.freeze();
    gate.open();
    gate.open();
    gate.wait_for_starts(3);
    finish(&a, &mut gate, crowd).await;
    // The lease ends before the link breaks, except if this machine is busy.
    wait_for_requeued(&a, "lease").await;
    b.server.thaw();
    a.wait_for_members(&["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_asked_to_stop_ends_what_it_runs_for_others() {
    let [a, mut b] = cluster::start::<2>(&[ONE, "limits.drain_timeout=60s"]).await;
    let mut gate = Gate::new();
    let crowd = crowd(&a, &gate, 3).await;
    gate.wait_for_starts(2);
    b.server.ask_to_stop();
    a.wait_for_metrics(&[(r#"members{state="draining"}"#, 1)])
        .await;
    finish(&a, &mut gate, crowd).await;
    assert!(b.server.wait().success());
    assert_eq!(gate.starts(), 3);
    a.wait_for_metrics(&requeued(&[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_that_outlast_the_drain_timeout_of_their_node_run_elsewhere() {
    let [a, mut b] = cluster::start::<2>(&[ONE, "limits.drain_timeout=1s"]).await;
    let mut gate = Gate::new();
    let crowd = crowd(&a, &gate, 2).await;
    gate.wait_for_starts(2);
    b.server.ask_to_stop();
    assert!(b.server.wait().success());
    finish(&a, &mut gate, crowd).await;
    assert_eq!(gate.starts(), 3);
    // On a busy machine, the node may be gone before it can say that it stopped the action.
    wait_for_requeued(&a, "stopped").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_takes_work_again() {
    let [a, mut b] = cluster::start::<2>(&[ONE]).await;
    b.server.kill();
    let b = b.restart().await;
    for node in [&a, &b] {
        node.wait_for_members(&["a", "b"]).await;
    }
    let mut gate = Gate::new();
    let crowd = crowd(&b, &gate, 2).await;
    gate.wait_for_starts(2);
    assert_eq!(b.places().await, ["a", "b"]);
    finish(&b, &mut gate, crowd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_answers_for_the_operation_of_another_until_that_one_dies() {
    let [mut a, b] = cluster::start::<2>(&[ONE]).await;
    let mut gate = Gate::new();
    let mut own = a.executor.start(&TestAction::script(&gate.pass())).await;
    own.reach(Value::Executing).await;
    gate.wait_for_starts(1);
    let mut elsewhere = b.executor.wait(&own.name).await.unwrap();
    elsewhere.reach(Value::Executing).await;
    gate.open();
    succeeded(own.response().await);
    succeeded(elsewhere.response().await);

    let second = TestAction::script(&format!("{}; true", gate.pass()));
    let mut cancelled = a.executor.start(&second).await;
    cancelled.reach(Value::Executing).await;
    b.executor.cancel(&cancelled.name).await.unwrap();
    let (code, _) = outcome(&cancelled.response().await);
    assert_eq!(code, Code::Cancelled);

    a.server.kill();
    b.wait_for_members(&["b"]).await;
    let gone = b.executor.wait(&own.name).await.err().unwrap();
    assert_eq!(gone.code(), Code::NotFound);
}
