//! Tests of nodes that differ in their platforms.
#![cfg(test)]

use std::pin::pin;

use gorego_integration::{
    cluster::{Crowd, Node},
    executor::{Details, Gate, TestAction, request, succeeded},
};
use reapi::v2::execution_stage::Value;
use tonic::Code;

/// One action at a time on each node.
const ONE: &str = "execution.concurrency=1";
const GPU: [&str; 2] = [ONE, "execution.platform=gpu=2"];

/// Starts a node without a platform, one with a platform, and another without.
async fn start() -> [Node; 3] {
    let a = Node::start("a", "", &[ONE]).await;
    let join = a.mesh.to_string();
    let b = Node::start("b", &join, &GPU).await;
    let c = Node::start("c", &join, &[ONE]).await;
    for node in [&a, &b, &c] {
        node.wait_for_members(&["a", "b", "c"]).await;
    }
    [a, b, c]
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_run_on_the_node_that_has_their_platform() {
    let [a, b, c] = start().await;
    let mut gate = Gate::new();
    let mut crowd = Vec::new();
    for node in [&a, &b, &c] {
        let script = format!("{}; echo {}", gate.pass(), node.name);
        let action = TestAction::script(&script).property("gpu", "2");
        crowd.push((node, node.executor.start(&action).await));
    }
    gate.wait_for_starts(1);
    let mut places = Vec::new();
    for node in [&a, &b, &c] {
        places.extend(node.places().await);
    }
    assert_eq!(places, ["b"]);
    gate.open_for(3);
    for (node, mut messages) in crowd {
        let result = succeeded(messages.response().await);
        assert_eq!(
            node.executor.stdout(&result).await,
            format!("{}\n", node.name)
        );
    }
    assert_eq!(gate.starts(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_calls_than_the_queue_holds_that_wait_for_a_platform_are_told_to_retry() {
    let a = Node::start("a", "", &[ONE, "execution.queue_size=1"]).await;
    let action = |name: &str| TestAction::script(&format!("echo {name}")).property("gpu", "2");
    let first = a.executor.upload(&action("first")).await;
    let second = a.executor.upload(&action("second")).await;
    let mut first = pin!(a.executor.begin(request(&first)));
    let mut second = pin!(a.executor.begin(request(&second)));
    let (refused, waiting) = tokio::select! {
        refused = &mut first => (refused, second),
        refused = &mut second => (refused, first),
    };
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(Details::of(&refused).retry, "{refused:?}");
    let join = a.mesh.to_string();
    let (b, waited) = tokio::join!(Node::start("b", &join, &GPU), waiting);
    succeeded(waited.unwrap().response().await);
    drop(b);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_fits_no_node_is_refused() {
    let [a, b, _c] = start().await;
    let action = TestAction::script("true").property("gpu", "3");
    // Each waits for half a minute.
    let (first, second) = tokio::join!(a.executor.refusal(&action), b.executor.refusal(&action));
    for refused in [first, second] {
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("gpu=3"), "{refused}");
        assert!(
            refused.message().contains("execution.platform"),
            "{refused}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn others_run_while_the_node_with_a_platform_is_gone() {
    let [a, mut b, c] = start().await;
    let mut gate = Gate::new();
    let mut special = Vec::new();
    for number in 0..2 {
        let script = format!("{}; echo {number}", gate.pass());
        let action = TestAction::script(&script).property("gpu", "2");
        special.push(a.executor.start(&action).await);
    }
    special[0].reach(Value::Executing).await;
    gate.wait_for_starts(1);
    b.server.kill();
    let mut other = Gate::new();
    let crowd = Crowd::start(&a, &other, 4).await;
    other.wait_for_starts(2);
    assert_eq!(a.places().await, ["a", "c"]);
    other.open_for(4);
    crowd.finish(&c).await;

    let b = b.restart().await;
    gate.open_for(4);
    for (number, mut messages) in special.into_iter().enumerate() {
        let result = succeeded(messages.response().await);
        assert_eq!(b.executor.stdout(&result).await, format!("{number}\n"));
    }
}
