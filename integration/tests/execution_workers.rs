//! Tests of persistent workers in a server: their settings, their metrics and their end.
#![cfg(test)]

use gorego_integration::{
    executor::{Executor, Gate, TestAction, start, succeeded},
    metrics::Metrics,
};

/// A tool that runs the only line of its flag file, which has no quotes, and answers with its pid.
const TOOL: &str = r#"#!/bin/sh
case "$*" in
*--persistent_worker)
    while read -r request; do
        script=${request#*'"arguments":["'}
        eval "${script%%'"'*}"
        echo "{\"output\":\"worker $$\"}"
    done
    ;;
*) echo alone ;;
esac
"#;

const ENABLED: &str = "execution.persistent_workers.enabled=true";
const WORKERS: &str = "gorego_execution_persistent_workers";

/// An action that asks for a worker. The worker's arguments have a path of the gate.
fn action(gate: &Gate, script: &str) -> TestAction {
    TestAction::of(&["bin/tool", &gate.path("argument"), "@flags"])
        .tool("bin/tool", TOOL)
        .input("flags", format!("{script}\n"))
        .property("persistentWorkerKey", "key")
        .property("persistentWorkerProtocol", "json")
}

/// Runs a script in a worker, and returns what that answers.
async fn answer(executor: &Executor, action: &TestAction) -> String {
    let result = succeeded(executor.execute(action).await);
    executor.stderr(&result).await
}

#[tokio::test(flavor = "multi_thread")]
async fn persistent_workers_are_off_unless_they_are_turned_on() {
    let (_server, executor) = start(&[]).await;
    let result = succeeded(executor.execute(&action(&Gate::new(), ":")).await);
    assert_eq!(executor.stdout(&result).await, "alone\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn persistent_workers_and_their_actions_are_counted() {
    let (server, executor) = start(&[ENABLED, "telemetry.metrics_addr=127.0.0.1:0"]).await;
    let gate = Gate::new();
    let first = answer(&executor, &action(&gate, "true")).await;
    assert!(first.starts_with("worker "), "{first}");
    assert_eq!(answer(&executor, &action(&gate, ":")).await, first);
    let breaking = succeeded(executor.execute(&action(&gate, "exit 1")).await);
    assert_eq!(executor.stdout(&breaking).await, "alone\n");
    assert_ne!(answer(&executor, &action(&gate, "true again")).await, first);
    let metrics = Metrics::of(server.metrics()).await;
    assert_eq!(metrics.get(WORKERS), Some(1));
    let requests = |outcome| {
        let name = "gorego_execution_persistent_requests_total";
        metrics.get(&format!("{name}{{outcome=\"{outcome}\"}}"))
    };
    assert_eq!(
        (requests("answered"), requests("failed")),
        (Some(3), Some(1))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_process_of_every_persistent_worker_dies_with_a_killed_server() {
    let (mut server, executor) = start(&[ENABLED, "execution.concurrency=2"]).await;
    let gate = Gate::new();
    answer(&executor, &action(&gate, &gate.background())).await;
    // An idle worker of another kind is there, too.
    let busy = action(
        &gate,
        &format!("{}; cat {}", gate.report(), gate.path("never")),
    );
    let mut busy = executor.start(&busy.variable("NAME", "value")).await;
    gate.wait_for_starts(1);
    gate.wait_for_background();
    server.kill();
    gate.wait_for_end_of_processes();
    busy.ended().await.expect_err("the server is dead");
    let server = server.restart();
    let executor = Executor::connect(server.address()).await;
    answer(&executor, &action(&gate, "true")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_persistent_worker_ends_after_its_time_and_at_shutdown() {
    let settings = [ENABLED, "execution.persistent_workers.idle_timeout=100ms"];
    let (server, executor) = start(&settings).await;
    let gate = Gate::new();
    answer(&executor, &action(&gate, "true")).await;
    gate.wait_for_end_of_processes();
    drop(server);

    let (mut server, executor) = start(&[ENABLED]).await;
    answer(&executor, &action(&gate, "true")).await;
    server.ask_to_stop();
    assert!(server.wait().success());
    gate.wait_for_end_of_processes();
}
