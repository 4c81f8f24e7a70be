//! Tests of nodes at which every attempt fails.
#![cfg(test)]

use std::{fs, io::Write as _, ops::Range};

use gorego_integration::{
    cluster::{self, Node},
    executor::{Gate, TestAction, succeeded},
    metrics::Metrics,
    server::Disk,
};

/// One action at a time on each node, and one retry.
const SETTINGS: &[&str] = &["execution.concurrency=1", "execution.max_retries=1"];

/// The words of the warning that attempts at a node keep failing.
const FAILING: &str = "three attempts in a row failed at a node";

/// Runs actions at a node until it logs that attempts keep failing, and checks their outputs at another one. Returns
/// their number.
async fn run_until_failing(entry: &Node, gate: &Gate, other: &Node) -> usize {
    for round in 1..=10 {
        run(entry, gate, other, 60 * (round - 1)..60 * round).await;
        if entry.server.log().contains(FAILING) {
            return 60 * round;
        }
    }
    panic!("no warning in the log of {}", entry.name);
}

async fn run(entry: &Node, gate: &Gate, other: &Node, numbers: Range<usize>) {
    let mut actions = Vec::new();
    for number in numbers.clone() {
        let script = format!("{}; cat input | tee file", gate.report());
        let action = TestAction::script(&script);
        let action = action.input("input", format!("{number}\n")).output("file");
        actions.push(entry.executor.start(&action).await);
    }
    for (number, mut messages) in numbers.zip(actions) {
        let result = succeeded(messages.response().await);
        let line = format!("{number}\n");
        assert_eq!(other.executor.stdout(&result).await, line);
        assert_eq!(other.executor.file(&result, "file").await, line);
    }
}

/// Waits until a node logs that attempts at the node of this name keep failing.
fn wait_for_warning(entry: &Node, name: &str) {
    let server = &entry.server;
    let log = server.wait_for_log(FAILING);
    assert!(log.contains(&format!(r#""node":"{name}""#)), "{log}");
}

/// Makes every attempt at a node fail at once, by a file in place of the directory for its actions.
fn break_build_root(node: &Node) {
    let build_root = node.server.data().join("exec");
    fs::remove_dir_all(&build_root).unwrap();
    fs::write(&build_root, "").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_that_fail_for_a_reason_of_one_node_succeed_at_others() {
    // The entry node itself, or another one.
    for bad in ["a", "b"] {
        let [a, b, c] = cluster::start::<3>(SETTINGS).await;
        let bad = if bad == "a" { &a } else { &b };
        break_build_root(bad);
        let gate = Gate::new();
        let actions = run_until_failing(&a, &gate, &c).await;
        let expected = actions..=actions + a.lost_actions().await;
        assert!(expected.contains(&gate.starts()), "{expected:?}");
        wait_for_warning(&a, &bad.name);
        if bad.name == "b" {
            a.wait_for_state("b", "failing").await;
            let failed = r#"gorego_cluster_requeued_actions_total{cause="failed"}"#;
            let is_counted = |metrics: &Metrics| metrics.get(failed) >= Some(3);
            Metrics::wait_for(a.server.metrics(), is_counted).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_succeeds_while_the_disk_of_a_node_is_full() {
    let more = [SETTINGS, &["local_cache.min_free=0"]].concat();
    let disk = Disk {
        mib: 24,
        prepare: "true",
    };
    let a = Node::start("a", "", &more).await;
    let join = a.mesh.to_string();
    let b = Node::start_on(disk, "b", &join, &more).await;
    let c = Node::start("c", &join, &more).await;
    for node in [&a, &b, &c] {
        node.wait_for_members(&["a", "b", "c"]).await;
    }
    let mut filler = fs::File::create(b.server.data().join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    let gate = Gate::new();
    run_until_failing(&a, &gate, &c).await;
    wait_for_warning(&a, "b");
    a.wait_for_state("b", "failing").await;
}
