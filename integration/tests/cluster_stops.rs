//! Tests of nodes that stop, pause and join while actions run.
#![cfg(test)]

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use gorego_integration::{
    cluster::{self, Crowd, Node},
    executor::{Details, Executor, Gate, TestAction, succeeded},
    web::{self, PATIENCE},
};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use tonic::Code;

/// One action at a time on each node.
const ONE: &str = "execution.concurrency=1";
/// A node that runs no actions itself.
const ENTRY: &str = "execution.enabled=false";

/// Checks that each of two nodes with one slot can run an action.
async fn assert_both_slots_are_free(entry: &Node) {
    let mut gate = Gate::new();
    let crowd = Crowd::start(entry, &gate, 2).await;
    gate.wait_for_starts(2);
    gate.open_for(2);
    crowd.finish(entry).await;
    assert_eq!(gate.starts(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_runs_again_ends_once_though_the_paused_node_goes_on() {
    let [a, b] = cluster::start::<2>(&[ONE]).await;
    let mut gate = Gate::new();
    let crowd = Crowd::start(&a, &gate, 2).await;
    gate.wait_for_starts(2);
    b.server.freeze();
    gate.open_for(2);
    // The action of the paused node has ended there, and begins again.
    gate.wait_for_starts(3);
    b.server.thaw();
    a.wait_for_state("b", "alive").await;
    gate.open();
    crowd.finish(&a).await;
    assert_both_slots_are_free(&a).await;
    assert_eq!(gate.starts(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_late_result_of_a_paused_node_is_used_although_the_action_runs_again() {
    let [a, b] = cluster::start::<2>(&[ONE]).await;
    let mut gate = Gate::new();
    let crowd = Crowd::start(&a, &gate, 2).await;
    gate.wait_for_starts(2);
    b.server.freeze();
    gate.open_for(2);
    gate.wait_for_starts(3);
    b.server.thaw();
    // The action that runs again never passes the gate.
    crowd.finish(&a).await;
    assert_both_slots_are_free(&a).await;
    assert_eq!(gate.starts(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_node_goes_on_with_an_action_that_no_other_node_has_begun() {
    let a = Node::start("a", "", &[ENTRY]).await;
    let b = Node::start("b", &a.mesh.to_string(), &[ONE]).await;
    a.wait_for_members(&["a", "b"]).await;
    let mut gate = Gate::new();
    let crowd = Crowd::start(&a, &gate, 1).await;
    gate.wait_for_starts(1);
    b.server.freeze();
    let is_queued = |response: &web::Response| response.json()["current"][0]["node"] == "";
    web::wait_for(a.server.metrics(), "/api/v1/actions", is_queued).await;
    b.server.thaw();
    a.wait_for_members(&["a", "b"]).await;
    gate.open();
    crowd.finish(&a).await;
    assert_eq!(gate.starts(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_asked_to_stop_hands_its_queue_over() {
    let [a, mut b] = cluster::start::<2>(&[ONE, "limits.drain_timeout=60s"]).await;
    let mut gate = Gate::new();
    let crowd = Crowd::start(&b, &gate, 5).await;
    gate.wait_for_starts(2);
    b.server.ask_to_stop();
    a.wait_for_state("b", "draining").await;
    gate.open_for(5);
    crowd.finish(&a).await;
    assert!(b.server.wait().success());
    assert_eq!(gate.starts(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_asked_to_stop_fails_what_others_do_not_end_in_time() {
    let mut a = Node::start("a", "", &[ENTRY, "limits.drain_timeout=20s"]).await;
    let b = Node::start("b", &a.mesh.to_string(), &[ONE]).await;
    a.wait_for_members(&["a", "b"]).await;
    let gate = Gate::new();
    let mut action = a.executor.start(&TestAction::script(&gate.pass())).await;
    gate.wait_for_starts(1);
    a.server.ask_to_stop();
    let failed = action.ended().await.unwrap_err();
    assert_eq!(failed.code(), Code::Unavailable, "{failed}");
    assert!(Details::of(&failed).retry, "{failed:?}");
    assert!(a.server.wait().success());
    gate.wait_for_end_of_processes();
    let next = Gate::new();
    let own = TestAction::script(&next.report());
    succeeded(b.executor.execute(&own).await);
    assert_eq!((gate.starts(), next.starts()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_fails_with_the_names_of_the_nodes_after_it_lost_six() {
    let a = Node::start("a", "", &[ENTRY]).await;
    let mut b = Node::start("b", &a.mesh.to_string(), &[ONE]).await;
    a.wait_for_members(&["a", "b"]).await;
    let gate = Gate::new();
    let mut action = a.executor.start(&TestAction::script(&gate.pass())).await;
    for losses in 1..=6 {
        gate.wait_for_starts(losses);
        b.server.kill();
        b = b.restart().await;
    }
    let status = action.response().await.status.expect("an error");
    assert_eq!(status.code, Code::Internal as i32, "{status:?}");
    assert!(status.message.ends_with(": b, b, b, b, b, b"), "{status:?}");
    assert!(status.details.is_empty(), "no retry is advised: {status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_of_a_dead_entry_node_are_cached_if_they_end_soon_and_killed_otherwise() {
    let mut a = Node::start("a", "", &[ENTRY]).await;
    let b = Node::start("b", &a.mesh.to_string(), &["execution.concurrency=3"]).await;
    let c = Node::start("c", &b.mesh.to_string(), &[ENTRY]).await;
    for node in [&a, &b, &c] {
        node.wait_for_members(&["a", "b", "c"]).await;
    }
    let mut gates = [Gate::new(), Gate::new(), Gate::new()];
    let script = |gate: &Gate| format!("{}; echo made | tee file", gate.pass());
    let [uncached, cached, long] = gates.each_ref().map(|gate| {
        let action = TestAction::script(&script(gate));
        action.output("file")
    });
    let uncached = uncached.uncached();
    for (gate, action) in gates.iter().zip([&uncached, &cached, &long]) {
        a.executor.start(action).await;
        gate.wait_for_starts(1);
    }
    a.server.kill();
    for node in [&b, &c] {
        node.wait_for_members(&["b", "c"]).await;
    }
    gates[0].open();
    gates[0].wait_for_end_of_processes();
    gates[1].open();
    let client = &c.executor.client;
    let digest = cached.blobs().0;
    let found = timeout(PATIENCE, async {
        loop {
            match client.get_action(&digest).await {
                Ok(found) => break found,
                Err(error) => assert_eq!(error.code(), Code::NotFound, "{error}"),
            }
        }
    });
    let found = found.await.expect("the result is stored");
    assert_eq!(c.executor.file(&found, "file").await, "made\n");

    gates[2].wait_for_end_of_processes();
    for action in [&uncached, &long] {
        let missed = client.get_action(&action.blobs().0).await.unwrap_err();
        assert_eq!(missed.code(), Code::NotFound, "{missed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_takes_queued_actions() {
    let [a] = cluster::start::<1>(&[ONE]).await;
    let mut gate = Gate::new();
    let crowd = Crowd::start(&a, &gate, 4).await;
    gate.wait_for_starts(1);
    let b = Node::start("b", &a.mesh.to_string(), &[ONE]).await;
    gate.wait_for_starts(2);
    assert_eq!(a.places().await, ["a", "b"]);
    let c = Node::start("c", &b.mesh.to_string(), &[ONE]).await;
    gate.wait_for_starts(3);
    assert_eq!(a.places().await, ["a", "b", "c"]);
    gate.open_for(4);
    crowd.finish(&c).await;
    assert_eq!(gate.starts(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_action_of_two_clients_ends_once_though_a_node_is_killed() {
    let [a, b, mut c] = cluster::start::<3>(&["execution.concurrency=4"]).await;
    let gate = Gate::new();
    let mut actions = Vec::new();
    for number in 0..60 {
        for node in [&a, &b] {
            let line = format!("{} {number}\n", node.name);
            let script = format!("{}; cat input | tee file", gate.report());
            let action = TestAction::script(&script);
            let action = action.input("input", line.clone()).output("file");
            actions.push((node, line, node.executor.start(&action).await));
        }
        if number == 30 {
            gate.wait_for_starts(20);
            c.server.kill();
        }
    }
    for (node, line, mut messages) in actions {
        let result = succeeded(messages.response().await);
        assert_eq!(node.executor.stdout(&result).await, line);
        assert_eq!(node.executor.file(&result, "file").await, line);
    }
    assert!((120..150).contains(&gate.starts()), "{}", gate.starts());
}

/// Executes actions at a node, one after another, until `stop` is set. Returns their number.
async fn load(at: Executor, report: String, name: String, stop: Arc<AtomicBool>) -> usize {
    let mut number = 0;
    while !stop.load(Relaxed) {
        let line = format!("{name} {number}\n");
        let script = format!("{report}; cat input | tee file");
        let action = TestAction::script(&script).input("input", line.clone());
        let result = succeeded(at.execute(&action.output("file")).await);
        assert_eq!(at.stdout(&result).await, line);
        assert_eq!(at.file(&result, "file").await, line);
        number += 1;
    }
    number
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_drained_and_restarted_one_by_one_under_load_and_no_action_runs_twice() {
    const OWN: usize = 8;
    let nodes = cluster::start::<3>(&["execution.concurrency=2"]).await;
    let mut nodes = VecDeque::from(nodes);
    let (mut own_gate, gate) = (Gate::new(), Gate::new());
    let (mut ended, mut repeated) = (0, 0);
    for round in 1..=nodes.len() {
        let leaving = nodes.pop_front().expect("three nodes");
        let stop = Arc::new(AtomicBool::new(false));
        let mut loads = JoinSet::new();
        for lane in 0..6 {
            let at = nodes[lane % 2].executor.clone();
            let name = format!("{round} {lane}");
            loads.spawn(load(at, gate.report(), name, Arc::clone(&stop)));
        }
        // Its own clients have more actions than it has slots.
        let own = Crowd::start(&leaving, &own_gate, OWN).await;
        let mut drain = leaving.drain(&[]);
        leaving.wait_for_readiness(503).await;
        let drained = spawn_blocking(move || drain.wait_within(2 * PATIENCE));
        own_gate.open_for(OWN - 1);
        own_gate.wait_for_starts(OWN * round);
        assert!(!drained.is_finished(), "an action is left");
        own_gate.open();
        assert!(drained.await.unwrap().success());
        own.finish(&leaving).await;
        repeated += leaving.lost_actions().await;
        // Kills it, since it has nothing to lose.
        nodes.push_back(leaving.restart().await);
        for node in &nodes {
            node.wait_for_members(&["a", "b", "c"]).await;
        }
        nodes[2].wait_for_taken(1).await;
        stop.store(true, Relaxed);
        ended += loads.join_all().await.into_iter().sum::<usize>();
    }
    for node in &nodes {
        repeated += node.lost_actions().await;
    }
    let own = OWN * nodes.len();
    let starts = own_gate.starts() + gate.starts();
    let expected = own + ended..=own + ended + repeated;
    assert!(expected.contains(&starts), "{starts} of {expected:?}");
}
