//! Tests of nodes with bad links.
#![cfg(test)]

use std::time::Duration;

use gorego_integration::{
    cluster::Node,
    executor::{Gate, TestAction, succeeded},
    link::Link,
};

/// One action at a time on each node.
const ONE: &str = "execution.concurrency=1";

#[tokio::test(flavor = "multi_thread")]
async fn actions_end_right_over_a_slow_link_that_is_reset() {
    let a = Node::start("a", "", &[ONE]).await;
    // Leads to the second node once its port is known.
    let link = Link::to(a.mesh);
    link.refuse();
    let advertised = format!("cluster.advertise_addr={}", link.address());
    let b = Node::start(
        "b",
        &a.mesh.to_string(),
        &["execution.concurrency=4", &advertised],
    )
    .await;
    link.lead_to(b.mesh);
    link.restore();
    link.set_latency(Duration::from_millis(200));
    for node in [&a, &b] {
        node.wait_for_members(&["a", "b"]).await;
    }
    let mut actions = Vec::new();
    let gate = Gate::new();
    for number in 0..20 {
        let line = format!("{number}\n");
        let script = format!("{}; cat input | tee file", gate.report());
        let action = TestAction::script(&script);
        let action = action.input("input", line.clone()).output("file");
        actions.push((line, a.executor.start(&action).await));
    }
    for (number, (line, mut messages)) in actions.into_iter().enumerate() {
        if [3, 9].contains(&number) {
            link.cut();
        }
        let result = succeeded(messages.response().await);
        assert_eq!(a.executor.stdout(&result).await, line);
        assert_eq!(a.executor.file(&result, "file").await, line);
    }
}
