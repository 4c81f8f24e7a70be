//! Tests of nodes that some others cannot reach. Each node has an `/etc/hosts` of its own.
#![cfg(test)]

use std::time::Duration;

use gorego_integration::{
    cluster::{Crowd, Wires},
    executor::{Gate, TestAction, succeeded},
    link::Link,
    metrics::Metrics,
};

/// One action at a time on each node.
const ONE: &str = "execution.concurrency=1";

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_cannot_reach_each_other_share_work_with_a_third_only() {
    let wires = Wires::<3>::start(&[ONE]).await;
    wires.separate(&[0], &[1]);
    let [a, b, _] = &wires.nodes;
    for node in [a, b] {
        let has_one = |metrics: &Metrics| metrics.get("gorego_cluster_links") == Some(1);
        Metrics::wait_for(node.server.metrics(), has_one).await;
    }
    let mut gate = Gate::new();
    let of_a = Crowd::start(a, &gate, 3).await;
    gate.wait_for_starts(2);
    assert_eq!(a.places().await, ["a", "c"]);
    let mut own = Gate::new();
    let of_b = Crowd::start(b, &own, 2).await;
    own.wait_for_starts(1);
    assert_eq!(b.places().await, ["b"]);
    assert_eq!((gate.starts(), own.starts()), (2, 1));
    gate.open_for(3);
    own.open_for(2);
    of_a.finish(b).await;
    of_b.finish(a).await;
    for node in &wires.nodes {
        node.wait_for_members(&["a", "b", "c"]).await;
    }
    wires.heal().await;
    let mut gate = Gate::new();
    let of_a = Crowd::start(a, &gate, 3).await;
    gate.wait_for_starts(3);
    gate.open_for(3);
    of_a.finish(b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_part_of_a_cluster_works_alone_until_they_reach_each_other() {
    let wires = Wires::<4>::start(&[ONE]).await;
    wires.separate(&[0, 1], &[2, 3]);
    let [a, b, c, d] = &wires.nodes;
    for (part, names) in [([a, b], ["a", "b"]), ([c, d], ["c", "d"])] {
        for node in part {
            node.wait_for_members(&names).await;
        }
    }
    let mut gate = Gate::new();
    let script = format!("{}; echo made | tee file", gate.pass());
    let action = TestAction::script(&script).output("file");
    let (mut one, mut other) = (
        a.executor.start(&action).await,
        c.executor.start(&action).await,
    );
    gate.wait_for_starts(2);
    gate.open_for(2);
    for (messages, nodes) in [(&mut one, [a, b]), (&mut other, [c, d])] {
        let result = succeeded(messages.response().await);
        for node in nodes {
            assert_eq!(node.executor.file(&result, "file").await, "made\n");
        }
    }
    wires.heal().await;
    for node in &wires.nodes {
        let cached = node.executor.execute(&action).await;
        assert!(cached.cached_result, "at {}", node.name);
        let result = succeeded(cached);
        assert_eq!(node.executor.file(&result, "file").await, "made\n");
    }
    assert_eq!(gate.starts(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_end_right_over_slow_links_that_are_reset() {
    let wires = Wires::<2>::start(&["execution.concurrency=2"]).await;
    let connections = || -> u64 { wires.links().map(|link| link.counts().connections).sum() };
    let before = connections();
    for link in wires.links() {
        link.set_latency(Duration::from_millis(200));
    }
    let [a, _] = &wires.nodes;
    let mut gate = Gate::new();
    let mut actions = Vec::new();
    for number in 0..20 {
        let line = format!("{number}\n");
        let script = format!("{}; cat input | tee file", gate.pass());
        let action = TestAction::script(&script).input("input", line.clone());
        actions.push((line, a.executor.start(&action.output("file")).await));
    }
    // Two of them run at the other node.
    gate.wait_for_starts(4);
    gate.open_for(40);
    for (number, (line, mut messages)) in actions.into_iter().enumerate() {
        if [3, 9].contains(&number) {
            wires.links().for_each(Link::cut);
        }
        let result = succeeded(messages.response().await);
        assert_eq!(a.executor.stdout(&result).await, line);
        assert_eq!(a.executor.file(&result, "file").await, line);
    }
    wires.heal().await;
    assert!(connections() > before, "the nodes connect again");
}
