//! The streams of `Execute` and `WaitExecution`: several watchers, slow ones, and the end of the server.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::*;
use crate::common::raw::{RawClient, framed};

const EXECUTE: &str = "/build.bazel.remote.execution.v2.Execution/Execute";

#[tokio::test]
async fn a_merged_action_survives_its_first_client() {
    let abandon_at_once = |options: &mut gorego_execution::Options| {
        options.scheduler.abandon_after = Duration::ZERO;
    };
    let mut server = ExecutingServer::with(abandon_at_once, |_| {}).await;
    let mut first = server.run("a").await;
    let (gone, _) = first.stage().await;
    let attempt = server.attempt().await;
    let mut second = server.run("a").await;
    let (name, stage) = second.stage().await;
    assert_eq!(stage, Value::Executing);
    assert_ne!(name, gone);
    drop(first);
    while !server.get(&gone).await.unwrap().done {
        tokio::task::yield_now().await;
    }
    assert!(!attempt.attempt.stop.is_cancelled());
    attempt.end(exited(4));
    assert_eq!(second.response().await.result.unwrap().exit_code, 4);
    assert!(server.attempts.is_empty());
}

#[tokio::test]
async fn an_action_that_no_client_waits_for_is_stopped() {
    let abandon_at_once = |options: &mut gorego_execution::Options| {
        options.scheduler.abandon_after = Duration::ZERO;
    };
    let mut server = ExecutingServer::with(abandon_at_once, |_| {}).await;
    let messages = server.run("a").await;
    let attempt = server.attempt().await;
    drop(messages);
    attempt.attempt.stop.cancelled().await;
}

#[tokio::test(start_paused = true)]
async fn the_current_state_is_repeated_every_20_seconds() {
    let mut server = ExecutingServer::start().await;
    let mut messages = server.run("a").await;
    let (name, _) = messages.stage().await;
    let attempt = server.attempt().await;
    assert_eq!(messages.stage().await, (name.clone(), Value::Executing));
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(messages.stage().await, (name.clone(), Value::Executing));
    }
    // Longer than the idle time-out of the transport. The paused clock may be ahead of the socket by one repetition.
    let seconds = start.elapsed().as_secs();
    assert!((180..=220).contains(&seconds), "{seconds} s");
    attempt.end(exited(0));
    messages.response().await;
}

#[tokio::test]
async fn a_slow_client_gets_the_newest_state_and_the_completion() {
    let mut server = ExecutingServer::start().await;
    let mut messages = server.run("a").await;
    let attempt = server.attempt().await;
    attempt.attempt.begin(gorego_scheduler::Phase::Fetch);
    attempt.attempt.begin(gorego_scheduler::Phase::Run);
    attempt.end(exited(5));
    let (name, _) = messages.stage().await;
    while !server.get(&name).await.unwrap().done {
        tokio::task::yield_now().await;
    }
    assert_eq!(messages.response().await.result.unwrap().exit_code, 5);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_dropped_and_its_action_abandoned() {
    let mut server = ExecutingServer::start().await;
    let action = server.action("a").await;
    let mut client = RawClient::connect(&server.server, 0).await;
    let (response, mut call) = client.open_as(EXECUTE, "application/grpc", HeaderMap::new());
    let message = framed(&request(&action).encode_to_vec());
    call.send_data(message, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let attempt = server.attempt().await;
    let ended = body.data().await.expect("a reset");
    assert!(ended.unwrap_err().is_reset());
    attempt.attempt.stop.cancelled().await;
    // The connection goes on.
    let (response, mut call) = client.open(EXECUTE);
    call.send_data(framed(b""), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 200);
}

#[tokio::test]
async fn at_the_shutdown_actions_end_within_the_drain_and_new_ones_are_unavailable() {
    let mut server = ExecutingServer::start().await;
    let mut messages = server.run("a").await;
    messages.stage().await;
    let attempt = server.attempt().await;
    let other = server.action("b").await;
    let executor = std::sync::Arc::clone(&server.executor);
    let shut_down = executor.shut_down(LONG * 100);
    let drained = async {
        let refused = loop {
            match server.execute(request(&other)).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused.code(), Code::Unavailable);
        attempt.end(exited(0));
        assert_eq!(outcome(&messages.response().await).0, Code::Ok);
    };
    tokio::join!(shut_down, drained);
}

#[tokio::test]
async fn what_runs_after_the_drain_is_stopped_and_its_stream_unavailable() {
    let mut server = ExecutingServer::start().await;
    let mut running = server.run("a").await;
    let (name, _) = running.stage().await;
    let attempt = server.attempt().await;
    let mut queued = server.run("b").await;
    let executor = std::sync::Arc::clone(&server.executor);
    let stopped = async {
        attempt.attempt.stop.cancelled().await;
        attempt.end(gorego_scheduler::Report::Stopped);
    };
    tokio::join!(executor.shut_down(Duration::ZERO), stopped);
    for messages in [&mut running, &mut queued] {
        let ended = loop {
            match messages.next().await {
                Ok(operation) => assert!(!operation.expect("no end without a status").done),
                Err(status) => break status,
            }
        };
        assert_eq!(ended.code(), Code::Unavailable);
    }
    assert_eq!(
        server.get(&name).await.unwrap_err().code(),
        Code::Unavailable
    );
    let ExecutingServer { server, .. } = server;
    server.shutdown.cancel();
    server.ended().await.unwrap();
}
