//! Tests of persistent workers in a server: their settings, their metrics and their end.
#![cfg(test)]

use gorego_integration::{
    executor::{Executor, Gate, Level, TestAction, start, succeeded},
    metrics::Metrics,
};
use reapi::v2::execution_stage::Value;

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

#[tokio::test(flavor = "multi_thread")]
async fn idle_persistent_workers_end_when_they_have_too_much_memory() {
    // A quarter of it is for idle workers.
    let (_server, executor) = start(&[ENABLED, "execution.memory=256MiB"]).await;
    let gate = Gate::new();
    let first = answer(&executor, &action(&gate, "true")).await;
    assert_eq!(answer(&executor, &action(&gate, ":")).await, first);
    let growing = "x=$(yes | head -c 73400320)";
    assert_eq!(answer(&executor, &action(&gate, growing)).await, first);
    gate.wait_for_end_of_processes();
    assert_ne!(answer(&executor, &action(&gate, ": again")).await, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_that_needs_all_memory_waits_for_a_busy_persistent_worker_and_ends_it() {
    let settings = [ENABLED, "execution.memory=96MiB", "execution.concurrency=2"];
    let (server, executor) = start(&settings).await;
    let mut gate = Gate::new();
    let mut busy = executor.start(&action(&gate, &gate.pass())).await;
    gate.wait_for_starts(1);
    let other = Gate::new();
    let large = format!(
        "{}; (head -c 314572800 /dev/zero; cat {}) | tail",
        other.report(),
        other.path("never")
    );
    let mut large = executor.start(&TestAction::script(&large)).await;
    other.wait_for_starts(1);
    server.wait_for_log("runs once more, alone");
    gate.open();
    succeeded(busy.response().await);
    large.reach(Value::Executing).await;
    other.wait_for_starts(2);
    gate.wait_for_end_of_processes();
    assert!(large.response().await.message.contains("alone"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scratch_limit_of_a_persistent_worker_is_that_of_each_action() {
    for level in Level::all() {
        let settings = [ENABLED, "execution.max_scratch_bytes=16MiB"];
        let (_server, executor) = level.start(&settings).await;
        let gate = Gate::new();
        let first = answer(&executor, &action(&gate, "true")).await;
        // Its inputs do not count. It lasts for two measurements.
        let given = action(&gate, "timeout 2 cat /dev/zero >/dev/null");
        let given = given.input("given", vec![7; 24 << 20]);
        assert_eq!(answer(&executor, &given).await, first, "{level:?}");
        let wait = format!("cat {}", gate.path("never"));
        let writing = action(
            &gate,
            &format!("head -c 25165824 /dev/zero >$TMPDIR/a; {wait}"),
        );
        let alone = succeeded(executor.execute(&writing).await);
        assert_eq!(executor.stdout(&alone).await, "alone\n", "{level:?}");
        gate.wait_for_end_of_processes();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_in_a_persistent_worker_ends_before_its_server() {
    let (mut server, executor) = start(&[ENABLED, "limits.drain_timeout=1m"]).await;
    let mut gate = Gate::new();
    let mut busy = executor.start(&action(&gate, &gate.pass())).await;
    gate.wait_for_starts(1);
    server.ask_to_stop();
    server.wait_for_log("shutting down");
    gate.open();
    let result = succeeded(busy.response().await);
    assert_eq!(result.exit_code, 0);
    assert!(server.wait().success());
    gate.wait_for_end_of_processes();
}
