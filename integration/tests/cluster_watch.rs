//! Tests of logs, tables and metrics of actions that run on other nodes.
#![cfg(test)]

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::Stdio,
};

use gorego_integration::{
    binary,
    client::{add_request_metadata, in_build},
    cluster::Node,
    collector::{Collector, CollectorProtocol, Span},
    executor::{Gate, Messages, TestAction, request, succeeded, wait_until},
    metrics::Metrics,
    process::{self, Process},
    web,
};
use prost::Message as _;
use reapi::{
    bytestream::{ReadRequest, ReadResponse, byte_stream_client::ByteStreamClient},
    v2::{ExecuteOperationMetadata, RequestMetadata, execution_stage::Value},
};
use serde_json::Value as Json;
use tonic::{Code, Request, Status, Streaming};

/// One action at a time on each node.
const ONE: &str = "execution.concurrency=1";
/// A node that runs no actions itself.
const ENTRY: &str = "execution.enabled=false";
const BUILD: &str = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f0";
/// The bytes of a blob that is not read in a batch.
const LARGE: usize = 3 << 20;

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

/// Starts nodes with one slot each. That of the first is occupied by an action that waits at a gate of its own.
async fn start<const N: usize>(more: &[&str]) -> ([Node; N], Gate, Messages) {
    let more = [&[ONE], more].concat();
    let names = &["a", "b", "c"][..N];
    let a = Node::start("a", "", &more).await;
    let gate = Gate::new();
    let mut running = a.executor.start(&TestAction::script(&gate.pass())).await;
    running.reach(Value::Executing).await;
    gate.wait_for_starts(1);
    let join = a.mesh.to_string();
    let mut nodes = vec![a];
    // Later, since one of them could run the action instead.
    for name in &names[1..] {
        nodes.push(Node::start(name, &join, &more).await);
    }
    for node in &nodes {
        node.wait_for_members(names).await;
    }
    let nodes = nodes.try_into().expect("as many as asked for");
    (nodes, gate, running)
}

/// Starts an action at a node whose slot is occupied, so that it runs on another node. It prints `one`, then `two`
/// after the gate, and `three` on standard error.
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
    let (nodes, mut first, mut running) = start::<3>(&[]).await;
    let [a, b, c] = &nodes;
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
    let ([a, mut b], mut first, mut running) = start(&[]).await;
    let mut gate = Gate::new();
    let mut messages = start_elsewhere(&a, &gate).await;
    let [stdout, _] = logs(&mut messages).await;
    let mut out = read(&a, &stdout, 0).await.unwrap();
    assert_eq!(next(&mut out).await.as_deref(), Some("one\n"));
    b.server.kill();
    assert_eq!(next(&mut out).await, None);
    // The action runs again at its entry node.
    first.open();
    succeeded(running.response().await);
    gate.wait_for_starts(2);
    gate.open();
    gate.open();
    succeeded(messages.response().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_a_log_end_when_the_node_that_owns_the_action_stops() {
    let a = Node::start("a", "", &[ENTRY]).await;
    let b = Node::start("b", &a.mesh.to_string(), &[ONE]).await;
    let c = Node::start("c", &a.mesh.to_string(), &[ENTRY]).await;
    for node in [&a, &b, &c] {
        node.wait_for_members(&["a", "b", "c"]).await;
    }
    let gate = Gate::new();
    let mut messages = start_elsewhere(&a, &gate).await;
    let [stdout, _] = logs(&mut messages).await;
    let mut readers = Vec::new();
    for node in [&b, &c] {
        let mut out = read(node, &stdout, 0).await.unwrap();
        assert_eq!(next(&mut out).await.as_deref(), Some("one\n"));
        readers.push(out);
    }
    a.server.freeze();
    for mut out in readers {
        let broken = out.message().await.unwrap_err();
        assert_eq!(broken.code(), Code::Unavailable, "{broken}");
    }
    for node in [&b, &c] {
        let lost = read(node, &stdout, 0).await.unwrap_err();
        assert_eq!(lost.code(), Code::NotFound, "{lost}");
    }
}

/// Checks the numbers in the row of a peer: the actions of the node that the peer runs, and those of the peer that the
/// node runs, as `gorego peers` and the page `/peers` show them.
async fn assert_shared(at: &Node, peer: &str, numbers: [u64; 2]) {
    let is_met = |response: &web::Response| {
        let json = response.json();
        let mut nodes = json["nodes"].as_array().expect("a list").iter();
        let node = nodes.find(|node| node["name"] == peer).expect("the peer");
        [&node["taken"], &node["given"]] == numbers
    };
    web::wait_for(at.server.metrics(), "/api/v1/peers", is_met).await;
    let numbers = numbers.map(|number| number.to_string());

    let url = format!("http://{}", at.server.metrics());
    let mut command = process::command(binary::gorego());
    let output = command.args(["peers", "--url", &url]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let header = words(table.lines().next().unwrap());
    let row = words(table.lines().find(|line| line.starts_with(peer)).unwrap());
    assert_eq!(
        (&header[7..9], &row[7..9]),
        (&["Takes", "Gives"].map(str::to_owned)[..], &numbers[..])
    );

    let page = web::get(at.server.metrics(), "/peers").await.content;
    let headers = page
        .split("</th>")
        .filter_map(|cell| cell.rsplit('>').next());
    let headers: Vec<_> = headers.collect();
    let (_, row) = page.split_once(&format!(">{peer}</th>")).unwrap();
    let (row, _) = row.split_once("</tr>").unwrap();
    let cells: Vec<_> = row
        .split("</td>")
        .filter_map(|cell| cell.rsplit('>').next())
        .collect();
    for (name, number) in ["Runs for this node", "Runs from it here"]
        .iter()
        .zip(&numbers)
    {
        // The first column is that of the names.
        let column = headers.iter().position(|header| header == name).unwrap() - 1;
        assert_eq!(cells[column], number, "{row}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ps_and_peers_show_the_node_of_an_action_and_tail_prints_its_output() {
    let ([a, b], mut first, mut running) = start(&[]).await;
    let mut gate = Gate::new();
    let mut messages = start_elsewhere(&a, &gate).await;
    messages.reach(Value::Executing).await;
    let listed: Json = serde_json::from_str(&gorego(&b, &["ps", "--json"])).unwrap();
    let listed = listed.as_array().unwrap();
    let elsewhere = listed.iter().find(|row| row["node"] == "b").expect("a row");
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().any(|row| row["node"] == "a"));
    assert_shared(&a, "b", [1, 0]).await;
    assert_shared(&b, "a", [0, 1]).await;
    for (node, elsewhere) in [(&a, 1), (&b, 0)] {
        let is_counted = |metrics: &Metrics| {
            metrics.get("gorego_execution_running") == Some(1)
                && metrics.get("gorego_cluster_actions_elsewhere") == Some(elsewhere)
        };
        Metrics::wait_for(node.server.metrics(), is_counted).await;
    }

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

#[tokio::test(flavor = "multi_thread")]
async fn ps_and_the_page_have_the_resources_of_an_action_on_another_node() {
    let ([a, b], mut first, mut running) = start(&[]).await;
    let mut gate = Gate::new();
    let count = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
    let script = format!("{count}; {}", gate.pass());
    let mut messages = a.executor.start(&TestAction::script(&script)).await;
    gate.wait_for_starts(1);
    let is_measured = |rows: &Json| {
        let mut rows = rows.as_array().expect("a list").iter();
        let row = rows.find(|row| row["node"] == "b").expect("a row");
        row["processor_ms"].as_u64() > Some(0) && row["resident_bytes"].as_u64() > Some(0)
    };
    for node in [&a, &b] {
        wait_until("the resources in ps", || {
            is_measured(&serde_json::from_str(&gorego(node, &["ps", "--json"])).unwrap())
        });
    }
    let actions = "/api/v1/actions";
    let is_listed = |response: &web::Response| is_measured(&response.json()["current"]);
    web::wait_for(a.server.metrics(), actions, is_listed).await;
    gate.open();
    succeeded(messages.response().await);
    first.open();
    succeeded(running.response().await);
    drop(b);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_on_another_node_is_in_the_trace_of_its_client() {
    let collector = Collector::start(CollectorProtocol::Grpc).await;
    let (endpoint, always) = (collector.setting(), "telemetry.tracing_sample_ratio=1");
    let ([a, b], mut first, mut running) = start(&[&endpoint, always]).await;
    let mut gate = Gate::new();
    let action = TestAction::script(&format!("{}; exit 3", gate.pass()));
    let digest = a.executor.upload(&action).await;
    let mut request = Request::new(request(&digest));
    let metadata = RequestMetadata {
        tool_invocation_id: BUILD.to_owned(),
        target_id: "//pkg:target".to_owned(),
        action_mnemonic: "Javac".to_owned(),
        ..RequestMetadata::default()
    };
    add_request_metadata(request.metadata_mut(), &metadata);
    let mut messages = a.executor.begin(request).await.unwrap();
    gate.wait_for_starts(1);
    assert_eq!(a.places().await, ["a", "b"]);
    gate.open();
    let response = messages.response().await;
    assert_eq!(response.result.unwrap().exit_code, 3);

    let trace = BUILD.replace('-', "");
    let of_build = |spans: &[Span], name: &str| {
        let mut spans = spans.iter();
        let found = spans.find(|span| span.trace == trace && span.name.ends_with(name));
        found.cloned()
    };
    let names = ["/Execute", "prepare", "execution"];
    let spans = collector.wait_for(|spans| names.iter().all(|it| of_build(spans, it).is_some()));
    let spans = spans.await;
    let [execute, prepare, execution] = names.map(|name| of_build(&spans, name).unwrap());
    assert_eq!(prepare.parent, execute.id);
    assert_eq!(execution.parent, prepare.id);
    for (name, value) in [
        ("invocation_id", BUILD),
        ("target", "//pkg:target"),
        ("mnemonic", "Javac"),
    ] {
        assert_eq!(prepare.get(name), value);
    }
    first.open();
    succeeded(running.response().await);
    drop(b);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_peers_have_the_round_trip_the_starts_and_the_bytes() {
    let ([a, b], mut first, mut running) = start(&[]).await;
    let mut gate = Gate::new();
    let large = vec![7; LARGE];
    let script = format!("cat input > output; {}", gate.pass());
    let action = TestAction::script(&script).input("input", large);
    let mut messages = a.executor.start(&action.output("output")).await;
    gate.wait_for_starts(1);
    gate.open();
    succeeded(messages.response().await);
    first.open();
    succeeded(running.response().await);
    let is_counted =
        |metrics: &Metrics| metrics.get("gorego_cluster_taken_actions_total") == Some(1);
    let of_b = Metrics::wait_for(b.server.metrics(), is_counted).await;
    assert_eq!(of_b.get("gorego_cluster_start_seconds_count"), Some(1));
    // The input and the output of the action moved between the nodes at least once.
    let moved = |metrics: &Metrics| {
        let names =
            ["read", "written"].map(|name| format!("gorego_cluster_blobs_{name}_bytes_total"));
        names
            .map(|name| metrics.get(&name).unwrap())
            .iter()
            .sum::<u64>()
    };
    let of_a = Metrics::of(a.server.metrics()).await;
    assert!(moved(&of_a) + moved(&of_b) >= LARGE as u64);
    for (node, peer) in [(&a, "b"), (&b, "a")] {
        let trip = format!("gorego_cluster_link_round_trip_seconds{{node=\"{peer}\"}}");
        Metrics::wait_for(node.server.metrics(), |metrics| metrics.has(&trip)).await;
        let is_met = |response: &web::Response| {
            let json = response.json();
            let mut nodes = json["nodes"].as_array().expect("a list").iter();
            nodes.any(|node| node["name"] == peer && node["round_trip_ms"].is_number())
        };
        web::wait_for(node.server.metrics(), "/api/v1/peers", is_met).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_message_of_an_action_that_failed_elsewhere_says_why_it_ran() {
    let a = Node::start("a", "", &["execution.enabled=false"]).await;
    let b = Node::start("b", &a.mesh.to_string(), &[ONE]).await;
    b.wait_for_members(&["a", "b"]).await;
    let execute = async |content: &str| {
        let action = TestAction::script("grep good input").input("input", content.to_owned());
        let digest = a.executor.upload(&action).await;
        let request = in_build(BUILD, "//t", request(&digest));
        a.executor.begin(request).await.unwrap().response().await
    };
    succeeded(execute("good").await);
    // The records of the last action are written by another task.
    for _ in 0..1000 {
        let response = execute("bad").await;
        assert_eq!(response.result.unwrap().exit_code, 1);
        if response.message.contains("differs from") {
            assert!(
                response.message.contains("in input input"),
                "{}",
                response.message
            );
            return;
        }
    }
    panic!("no message says why the action ran");
}
