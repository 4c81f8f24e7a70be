//! Tests of clients that wait for the same action, leave, come back, cancel, or are too many.
#![cfg(test)]

use gorego_integration::executor::{
    Details, Executor, Gate, Level, TestAction, outcome, request, start, succeeded,
};
use reapi::v2::{ExecuteRequest, execution_stage::Value};
use tokio::task::JoinSet;
use tonic::Code;

/// An action with a process in another session, which runs until the gate opens.
fn gated(gate: &Gate) -> TestAction {
    TestAction::script(&format!("{} {}; echo end", gate.background(), gate.pass()))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_of_two_clients_runs_once_and_outlives_the_first() {
    let (server, first) = start(&["execution.abandon_after=1s"]).await;
    let second = Executor::connect(server.address()).await;
    let mut gate = Gate::new();
    let action = gated(&gate);
    let first_messages = first.start(&action).await;
    gate.wait_for_starts(1);
    let mut second_messages = second.start(&action).await;
    second_messages.reach(Value::Executing).await;
    drop((first_messages, first));
    gate.open();
    let result = succeeded(second_messages.response().await);
    assert_eq!(second.stdout(&result).await, "end\n");
    assert_eq!(gate.starts(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn uncached_actions_never_share_an_execution() {
    let (_server, executor) = start(&["execution.concurrency=2"]).await;
    let mut gate = Gate::new();
    let action = gated(&gate).uncached();
    let mut first = executor.start(&action).await;
    let mut second = executor.start(&action).await;
    gate.wait_for_starts(2);
    gate.open();
    gate.open();
    succeeded(first.response().await);
    succeeded(second.response().await);
    assert_ne!(first.name, second.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_without_a_client_is_killed_after_abandon_after() {
    for level in Level::all() {
        let (server, client) = level.start(&["execution.abandon_after=1s"]).await;
        let gate = Gate::new();
        let messages = client.start(&gated(&gate)).await;
        gate.wait_for_starts(1);
        gate.wait_for_background();
        drop((messages, client));
        gate.wait_for_end_of_processes();
        let other = Executor::connect(server.address()).await;
        succeeded(other.execute(&TestAction::script("true")).await);
        assert_eq!(gate.starts(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_execution_by_another_connection_continues_an_action() {
    let (server, client) = start(&["execution.abandon_after=1s"]).await;
    let mut gate = Gate::new();
    let mut messages = client.start(&gated(&gate)).await;
    messages.reach(Value::Executing).await;
    gate.wait_for_starts(1);
    let other = Executor::connect(server.address()).await;
    let mut waiting = other.wait(&messages.name).await.unwrap();
    waiting.reach(Value::Executing).await;
    drop((messages, client));
    // A second after the first client has left, another action is abandoned, but not this one.
    let abandoned = Gate::new();
    let leaving = Executor::connect(server.address()).await;
    let left = leaving.start(&gated(&abandoned)).await;
    abandoned.wait_for_starts(1);
    drop((left, leaving));
    abandoned.wait_for_end_of_processes();
    gate.open();
    let result = succeeded(waiting.response().await);
    assert_eq!(other.stdout(&result).await, "end\n");
    assert_eq!(gate.starts(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_operation_kills_a_running_action_and_drops_a_queued_one() {
    for level in Level::all() {
        let (_server, executor) = level.start(&["execution.concurrency=1"]).await;
        let gate = Gate::new();
        let mut running = executor.start(&gated(&gate)).await;
        running.reach(Value::Executing).await;
        gate.wait_for_starts(1);
        let mut queued = executor.start(&gated(&gate).variable("A", "2")).await;
        queued.reach(Value::Queued).await;
        for messages in [&mut queued, &mut running] {
            executor.cancel(&messages.name).await.unwrap();
            let response = messages.response().await;
            let (code, message) = outcome(&response);
            assert_eq!(code, Code::Cancelled, "{message}");
        }
        gate.wait_for_end_of_processes();
        succeeded(executor.execute(&TestAction::script("true")).await);
        assert_eq!(gate.starts(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_actions_at_once_finish_on_four_slots() {
    let (_server, executor) = start(&["execution.concurrency=4"]).await;
    let mut running = JoinSet::new();
    for number in 0..200 {
        let executor = executor.clone();
        running.spawn(async move {
            // A file that was just written must not be busy.
            let program = format!("#!/bin/sh\necho {number} >out\n");
            let action = TestAction::of(&["./program"]);
            let action = action.input("program", program).output("out");
            let result = succeeded(executor.execute(&action).await);
            assert_eq!(executor.file(&result, "out").await, format!("{number}\n"));
        });
    }
    let mut finished = 0;
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
        finished += 1;
    }
    assert_eq!(finished, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_asks_clients_to_retry_but_serves_cached_results() {
    let (_server, executor) = start(&["execution.concurrency=1", "execution.queue_size=1"]).await;
    let cached = TestAction::script("true");
    succeeded(executor.execute(&cached).await);
    let mut gate = Gate::new();
    let mut running = executor.start(&gated(&gate)).await;
    gate.wait_for_starts(1);
    let mut queued = executor.start(&gated(&gate).variable("A", "2")).await;
    queued.reach(Value::Queued).await;
    let refused = executor.refusal(&gated(&gate).variable("A", "3")).await;
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(
        refused.message().contains("execution.queue_size"),
        "{refused}"
    );
    assert!(Details::of(&refused).retry);
    assert!(executor.execute(&cached).await.cached_result);
    gate.open();
    gate.open();
    for messages in [&mut running, &mut queued] {
        succeeded(messages.response().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_priority_of_a_request_decides_the_order_of_queued_actions() {
    let (_server, executor) = start(&["execution.concurrency=1"]).await;
    let mut gate = Gate::new();
    let mut all = vec![executor.start(&gated(&gate)).await];
    gate.wait_for_starts(1);
    for priority in [5, 0, -5] {
        let script = format!("echo {priority} >>{}", gate.path("order"));
        let digest = executor.upload(&TestAction::script(&script)).await;
        let policy = reapi::v2::ExecutionPolicy { priority };
        let request = ExecuteRequest {
            execution_policy: Some(policy),
            ..request(&digest)
        };
        let mut messages = executor.begin(request).await.unwrap();
        messages.reach(Value::Queued).await;
        all.push(messages);
    }
    gate.open();
    for messages in &mut all {
        succeeded(messages.response().await);
    }
    let order = std::fs::read_to_string(gate.path("order")).unwrap();
    assert_eq!(order, "-5\n0\n5\n");
}
