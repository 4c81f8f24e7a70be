//! Tests of what clients and operators see of actions that run on other nodes.
#![cfg(test)]

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::Stdio,
};

use gorego_integration::{
    binary,
    cluster::{self, Node},
    executor::{Gate, Messages, TestAction, succeeded},
    process::{self, Process},
};
use prost::Message as _;
use reapi::{
    bytestream::{ReadRequest, ReadResponse, byte_stream_client::ByteStreamClient},
    v2::{ExecuteOperationMetadata, execution_stage::Value},
};
use serde_json::Value as Json;
use tonic::{Code, Status, Streaming};

/// One action at a time on each node.
const ONE: &str = "execution.concurrency=1";

/// Begins to read the log of this name at a node.
async fn read(node: &Node, name: &str, offset: i64) -> Result<Streaming<ReadResponse>, Status> {
    let request = ReadRequest {
        resource_name: name.to_owned(),
        read_offset: offset,
        ..ReadRequest::default()
    };
    let mut bytes = ByteStreamClient::new(node.executor.client.channel());
    Ok(bytes.read(request).await?.into_inner())
}

/// The next piece of a log, as text; `None` at its end.
async fn next(log: &mut Streaming<ReadResponse>) -> Option<String> {
    let piece = log.message().await.expect("the log goes on")?;
    Some(String::from_utf8(piece.data.to_vec()).expect("the test writes UTF-8"))
}

/// Waits until an action runs. Returns the names of its logs.
async fn logs(messages: &mut Messages) -> [String; 2] {
    loop {
        let operation = messages.next().await.unwrap().expect("the action runs");
        let metadata = operation.metadata.expect("metadata");
        let metadata = ExecuteOperationMetadata::decode(metadata.value.as_slice()).unwrap();
        if metadata.stage() == Value::Executing {
            return [metadata.stdout_stream_name, metadata.stderr_stream_name];
        }
    }
}

/// Occupies the slot of a node with an action that waits at a gate of its own.
async fn occupy(node: &Node) -> (Gate, Messages) {
    let gate = Gate::new();
    let mut running = node.executor.start(&TestAction::script(&gate.pass())).await;
    running.reach(Value::Executing).await;
    gate.wait_for_starts(1);
    (gate, running)
}

/// Starts an action at a node whose slot is occupied, so that it runs on another one. It prints `one`, and `two` after the
/// gate; `three` on standard error.
async fn start_elsewhere(node: &Node, gate: &Gate) -> Messages {
    let script = format!("echo one; echo three >&2; {}; echo two", gate.pass());
    let messages = node.executor.start(&TestAction::script(&script)).await;
    gate.wait_for_starts(1);
    messages
}

/// Runs a command of gorego on a node to its end. Returns its output.
fn gorego(node: &Node, arguments: &[&str]) -> String {
    let mut command = process::command(binary::gorego());
    command
        .args(arguments)
        .args(["--server", &node.server.grpc_url()]);
    let output = command.output().expect("gorego runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("the output is UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_an_action_on_another_node_is_followed_at_any_node() {
    let nodes = cluster::start::<3>(&[ONE]).await;
    let [a, b, c] = &nodes;
    let (mut first, mut running) = occupy(a).await;
    let mut gate = Gate::new();
    let mut messages = start_elsewhere(a, &gate).await;
    let [stdout, stderr] = logs(&mut messages).await;
    let mut readers = Vec::new();
    for node in [a, b, c] {
        let mut out = read(node, &stdout, 2).await.unwrap();
        assert_eq!(next(&mut out).await.as_deref(), Some("e\n"));
        readers.push(out);
        let mut err = read(node, &stderr, 0).await.unwrap();
        assert_eq!(next(&mut err).await.as_deref(), Some("three\n"));
    }
    gate.open();
    for out in &mut readers {
        assert_eq!(next(out).await.as_deref(), Some("two\n"));
        assert_eq!(next(out).await, None);
    }
    let result = succeeded(messages.response().await);
    assert_eq!(a.executor.stdout(&result).await, "one\ntwo\n");
    for node in [a, b, c] {
        let ended = read(node, &stdout, 0).await.unwrap_err();
        assert_eq!(ended.code(), Code::NotFound, "{ended}");
    }
    first.open();
    succeeded(running.response().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_ends_with_the_node_that_runs_the_action() {
    let [a, mut b] = cluster::start::<2>(&[ONE]).await;
    let (mut first, mut running) = occupy(&a).await;
    let mut gate = Gate::new();
    let mut messages = start_elsewhere(&a, &gate).await;
    let [stdout, _] = logs(&mut messages).await;
    let mut out = read(&a, &stdout, 0).await.unwrap();
    assert_eq!(next(&mut out).await.as_deref(), Some("one\n"));
    b.server.kill();
    assert_eq!(next(&mut out).await, None);
    // It runs again here.
    first.open();
    succeeded(running.response().await);
    gate.wait_for_starts(2);
    gate.open();
    gate.open();
    succeeded(messages.response().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn ps_names_the_node_of_an_action_and_tail_prints_its_output() {
    let [a, b] = cluster::start::<2>(&[ONE]).await;
    let (mut first, mut running) = occupy(&a).await;
    let mut gate = Gate::new();
    let mut messages = start_elsewhere(&a, &gate).await;
    messages.reach(Value::Executing).await;
    let listed: Json = serde_json::from_str(&gorego(&b, &["ps", "--json"])).unwrap();
    let listed = listed.as_array().unwrap();
    let elsewhere = listed.iter().find(|row| row["node"] == "b").expect("a row");
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().any(|row| row["node"] == "a"));

    let operation = elsewhere["operation"].as_str().unwrap();
    let mut command = process::command(binary::gorego());
    command
        .args(["tail", operation, "--server", &a.server.grpc_url()])
        .stdout(Stdio::piped());
    let mut tail = Process::spawn(&mut command);
    let mut printed = BufReader::new(tail.child_mut().stdout.take().unwrap());
    let mut line = String::new();
    printed.read_line(&mut line).unwrap();
    assert_eq!(line, "one\n");
    gate.open();
    let mut rest = String::new();
    printed.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "two\n");
    succeeded(messages.response().await);
    first.open();
    succeeded(running.response().await);
}
