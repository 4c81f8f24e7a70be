//! Tests of nodes with different roles.
#![cfg(test)]

use gorego_integration::{
    client::in_build,
    cluster::{self, Node},
    executor::{Gate, Messages, TestAction, request, succeeded},
    metrics::Metrics,
};
use reapi::v2::execution_stage::Value;
use tonic::{Code, IntoRequest as _};

/// One action at a time on each node.
const ONE: &str = "execution.concurrency=1";
/// A node that runs no actions itself.
const ENTRY: &str = "execution.enabled=false";
/// A node that takes actions of other nodes only.
const WORKER: &str = "cluster.role=worker";

/// Starts a node `b` with these settings that joins `a`, and waits until both know each other.
async fn join(a: &Node, more: &[&str]) -> Node {
    let b = Node::start("b", &a.mesh.to_string(), more).await;
    for node in [a, &b] {
        node.wait_for_members(&["a", "b"]).await;
    }
    b
}

#[tokio::test(flavor = "multi_thread")]
async fn the_actions_of_an_entry_point_run_on_other_nodes() {
    let a = Node::start("a", "", &[ENTRY]).await;
    let log = a
        .server
        .wait_for_log("executing actions on other nodes only");
    assert!(log.contains("execution.enabled is false"), "{log}");
    let b = join(&a, &[ONE]).await;
    let peers = a.peers().await;
    assert_eq!(peers[0]["slots"], 0);

    let mut gate = Gate::new();
    let script = format!("{}; echo out | tee file", gate.pass());
    let mut action = a
        .executor
        .start(&TestAction::script(&script).output("file"))
        .await;
    gate.wait_for_starts(1);
    assert_eq!(a.places().await, ["b"]);
    gate.open();
    let result = succeeded(action.response().await);
    assert_eq!(a.executor.file(&result, "file").await, "out\n");
    drop(b);
}

/// Starts an action of a target.
async fn start_for(node: &Node, target: &str, script: &str) -> Messages {
    let action = TestAction::script(script);
    let digest = node.executor.upload(&action).await;
    let request = in_build("build", target, request(&digest));
    node.executor.begin(request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_point_learns_the_memory_of_its_actions() {
    let a = Node::start("a", "", &[ENTRY]).await;
    let b = join(&a, &["execution.concurrency=2", "execution.memory=256MiB"]).await;
    let fills = "head -c 160M /dev/zero | tail -c 160M >/dev/null";
    succeeded(start_for(&a, "//large", fills).await.response().await);

    let mut gate = Gate::new();
    let script = |name: &str| format!("{}; echo {name}", gate.pass());
    let mut first = start_for(&a, "//large", &script("first")).await;
    first.reach(Value::Executing).await;
    let mut second = start_for(&a, "//large", &script("second")).await;
    second.reach(Value::Queued).await;
    // Gets the slot that the second one would have.
    let mut small = start_for(&a, "//small", &script("small")).await;
    small.reach(Value::Executing).await;
    gate.wait_for_starts(2);
    let metrics = Metrics::of(a.server.metrics()).await;
    assert_eq!(metrics.get("gorego_execution_queued"), Some(1));
    gate.open_for(3);
    for mut messages in [first, second, small] {
        succeeded(messages.response().await);
    }
    drop(b);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_takes_actions_from_other_nodes_only() {
    let a = Node::start("a", "", &[ENTRY]).await;
    let b = join(&a, &[ONE, WORKER]).await;
    let refused = b.executor.refusal(&TestAction::script("true")).await;
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused.message().contains("`cluster.role: node`"),
        "{refused:?}"
    );

    let mut gate = Gate::new();
    let script = format!("{}; echo done", gate.pass());
    let mut own = a.executor.start(&TestAction::script(&script)).await;
    own.reach(Value::Executing).await;
    let mut elsewhere = b.executor.wait(&own.name).await.unwrap();
    gate.open();
    for messages in [&mut own, &mut elsewhere] {
        let result = succeeded(messages.response().await);
        assert_eq!(b.executor.stdout(&result).await, "done\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_was_forwarded_is_not_handed_over() {
    let [a, b] = cluster::start::<2>(&[ONE]).await;
    let mut gate = Gate::new();
    let script = |name: &str| TestAction::script(&format!("{}; echo {name}", gate.pass()));
    let (first, action) = (script("first"), script("forwarded"));
    let mut first = a.executor.start(&first).await;
    first.reach(Value::Executing).await;
    let own = a.places().await;

    let digest = a.executor.upload(&action).await;
    let to = if own == ["a"] { &a } else { &b };
    let mut call = request(&digest).into_request();
    call.metadata_mut()
        .insert("x-gorego-forwarded-from", "proxy".parse().unwrap());
    let mut forwarded = to.executor.begin(call).await.unwrap();
    forwarded.reach(Value::Queued).await;
    // The other node is free, and takes what came later, even if it is the same action.
    let mut last = to.executor.start(&action).await;
    last.reach(Value::Executing).await;
    gate.wait_for_starts(2);
    assert_eq!(gate.starts(), 2);
    for _ in 0..3 {
        gate.open();
    }
    for messages in [&mut first, &mut last, &mut forwarded] {
        succeeded(messages.response().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_has_no_work_and_takes_it_again_when_told() {
    let a = Node::start("a", "", &[ONE, "execution.platform=pool=a"]).await;
    let b = join(&a, &[ONE]).await;
    let mut gate = Gate::new();
    let mut actions = Vec::new();
    // The first two actions run on a node each. Only the first node has the pool.
    for (number, pool) in [Some("a"), None, Some("a"), None].into_iter().enumerate() {
        let action = TestAction::script(&format!("{}; echo {number}", gate.pass()));
        let action = match pool {
            Some(pool) => action.property("pool", pool),
            None => action,
        };
        actions.push(a.executor.start(&action).await);
        gate.wait_for_starts((number + 1).min(2));
    }

    let mut draining = a.drain(&[]);
    a.wait_for_readiness(503).await;
    let refused = a
        .executor
        .refusal(&TestAction::script("echo refused"))
        .await;
    assert_eq!(refused.code(), Code::Unavailable);
    for _ in 0..4 {
        gate.open();
    }
    for mut action in actions {
        succeeded(action.response().await);
    }
    assert!(draining.wait().success());

    let own = b.executor.start(&TestAction::script(&gate.pass())).await;
    gate.wait_for_starts(5);
    let waits = TestAction::script(&format!("{}; echo other", gate.pass()));
    let waits = b.executor.start(&waits).await;
    assert_eq!(b.places().await, ["b"]);
    assert!(a.drain(&["--undo"]).wait().success());
    a.wait_for_readiness(200).await;
    gate.wait_for_starts(6);
    assert_eq!(b.places().await, ["a", "b"]);
    gate.open();
    gate.open();
    for mut action in [own, waits] {
        succeeded(action.response().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_drains_leave_room_for_other_commands() {
    let a = Node::start("a", "", &[ONE]).await;
    let mut gate = Gate::new();
    let mut running = a.executor.start(&TestAction::script(&gate.pass())).await;
    gate.wait_for_starts(1);
    // More than the commands at once.
    for _ in 0..20 {
        assert_eq!(a.begin_drain(), "1 actions left\n");
    }
    assert!(a.drain(&["--undo"]).wait().success());
    a.wait_for_readiness(200).await;
    gate.open();
    succeeded(running.response().await);
    succeeded(a.executor.execute(&TestAction::script("true")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_waits_for_a_node_with_its_platform() {
    let a = Node::start("a", "", &[ONE]).await;
    let client = a.executor.clone();
    let action = |name: &str| TestAction::script(&format!("echo {name}")).property("pool", "b");
    let first = action("first");
    let (first, mut b) = tokio::join!(
        client.execute(&first),
        join(&a, &[ONE, "execution.platform=pool=b"])
    );
    succeeded(first);

    // A node that was up a moment ago may come back.
    b.server.kill();
    a.wait_for_members(&["a"]).await;
    let mut second = a.executor.start(&action("second")).await;
    second.reach(Value::Queued).await;
    let b = b.restart().await;
    succeeded(second.response().await);
    drop(b);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_waits_while_the_only_node_with_its_platform_drains() {
    let a = Node::start("a", "", &[ONE]).await;
    let b = join(&a, &[ONE, "execution.platform=pool=b"]).await;
    let action = |name: &str| TestAction::script(&format!("echo {name}")).property("pool", "b");
    succeeded(a.executor.execute(&action("first")).await);
    assert!(b.drain(&[]).wait().success());
    a.wait_for_state("b", "draining").await;
    let mut second = a.executor.start(&action("second")).await;
    second.reach(Value::Queued).await;
    // Others are not held up.
    succeeded(a.executor.execute(&TestAction::script("true")).await);
    assert!(a.places().await.is_empty());
    assert!(b.drain(&["--undo"]).wait().success());
    succeeded(second.response().await);
}
