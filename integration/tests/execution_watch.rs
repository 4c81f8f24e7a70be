//! Tests of what clients and operators see of running actions: their logs, and `gorego ps` and `tail`.
#![cfg(test)]

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Output, Stdio},
};

use gorego_integration::{
    binary,
    client::add_request_metadata,
    executor::{
        Executor, Gate, Level, Messages, TestAction, request, start, succeeded, wait_until,
    },
    process::{self, Process},
    server::Server,
    web::get,
};
use prost::Message as _;
use reapi::{
    bytestream::{ReadRequest, ReadResponse, byte_stream_client::ByteStreamClient},
    longrunning::{ListOperationsRequest, operations_client::OperationsClient},
    v2::{
        ExecuteOperationMetadata, RequestMetadata, execution_client::ExecutionClient,
        execution_stage::Value,
    },
};
use tonic::{Code, Request, Status, Streaming};

const TARGET: &str = "//pkg:target";
const MNEMONIC: &str = "TestRunner";

/// Begins to read a log.
async fn read(
    executor: &Executor,
    name: &str,
    offset: i64,
) -> Result<Streaming<ReadResponse>, Status> {
    let request = ReadRequest {
        resource_name: name.to_owned(),
        read_offset: offset,
        ..ReadRequest::default()
    };
    let mut bytes = ByteStreamClient::new(executor.client.channel());
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
        assert_eq!(metadata.stdout_stream_name, "", "it does not run yet");
    }
}

/// The names of the listed operations.
async fn listed(executor: &Executor) -> Vec<String> {
    let mut operations = OperationsClient::new(executor.client.channel());
    let list = operations.list_operations(ListOperationsRequest::default());
    let listed = list.await.unwrap().into_inner().operations;
    listed.into_iter().map(|operation| operation.name).collect()
}

/// Calls `Execute` for an action of a target.
async fn start_for_target(
    executor: &Executor,
    action: &TestAction,
) -> Streaming<reapi::longrunning::Operation> {
    let mut request = Request::new(request(&executor.upload(action).await));
    let metadata = RequestMetadata {
        tool_invocation_id: "some-build".to_owned(),
        target_id: TARGET.to_owned(),
        action_mnemonic: MNEMONIC.to_owned(),
        ..RequestMetadata::default()
    };
    add_request_metadata(request.metadata_mut(), &metadata);
    let mut executions = ExecutionClient::new(executor.client.channel());
    executions.execute(request).await.unwrap().into_inner()
}

/// Runs a command of gorego to its end.
fn gorego(server: &Server, arguments: &[&str]) -> Output {
    let mut command = process::command(binary::gorego());
    command
        .args(arguments)
        .args(["--server", &server.grpc_url()]);
    command.output().expect("gorego runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the output is UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_followed_while_the_action_runs_and_ends_with_it() {
    for level in Level::all() {
        let (_server, executor) = level.start(&[]).await;
        let mut gate = Gate::new();
        let script = format!("echo one; echo three >&2; {}; echo two", gate.pass());
        let mut messages = executor.start(&TestAction::script(&script)).await;
        let [stdout, stderr] = logs(&mut messages).await;
        let mut out = read(&executor, &stdout, 0).await.unwrap();
        assert_eq!(next(&mut out).await.as_deref(), Some("one\n"));
        let mut from_two = read(&executor, &stdout, 2).await.unwrap();
        assert_eq!(next(&mut from_two).await.as_deref(), Some("e\n"));
        gate.wait_for_starts(1);
        let mut err = read(&executor, &stderr, 0).await.unwrap();
        assert_eq!(next(&mut err).await.as_deref(), Some("three\n"));
        gate.open();
        for log in [&mut out, &mut from_two] {
            assert_eq!(next(log).await.as_deref(), Some("two\n"));
            assert_eq!(next(log).await, None);
        }
        let result = succeeded(messages.response().await);
        assert_eq!(executor.stdout(&result).await, "one\ntwo\n");

        let ended = read(&executor, &stdout, 0).await.unwrap_err();
        assert_eq!(ended.code(), Code::NotFound);
        assert!(ended.message().contains("has ended"), "{ended}");
        assert!(ended.message().contains(&stdout), "{ended}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_read_by_its_exact_name_only() {
    let (_server, executor) = start(&[]).await;
    let mut gate = Gate::new();
    let script = format!("echo one; {}", gate.pass());
    let mut messages = executor.start(&TestAction::script(&script)).await;
    let [stdout, _] = logs(&mut messages).await;
    let (id, attempt) = stdout.rsplit_once("-1-").unwrap();
    for (name, code) in [
        (format!("{id}-{attempt}"), Code::InvalidArgument),
        (
            format!("{}-1-stdout", &id[..id.len() - 1]),
            Code::InvalidArgument,
        ),
        (format!("{}0-1-stdout", &id[..id.len() - 1]), Code::NotFound),
        (format!("{}1-1-stdout", &id[..id.len() - 1]), Code::NotFound),
        (format!("{id}-2-stdout"), Code::NotFound),
        (format!("other/{stdout}"), Code::NotFound),
    ] {
        // One of the two last digits may be right.
        if name != stdout {
            let refused = read(&executor, &name, 0).await.unwrap_err();
            assert_eq!(refused.code(), code, "{name}: {refused}");
        }
    }
    gate.open();
    succeeded(messages.response().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_readers_of_logs_is_bounded() {
    let (_server, executor) = start(&[]).await;
    let mut gate = Gate::new();
    let script = format!("echo one; {}", gate.pass());
    let mut messages = executor.start(&TestAction::script(&script)).await;
    let [stdout, _] = logs(&mut messages).await;
    let mut readers = Vec::new();
    let refused = loop {
        assert!(readers.len() <= 64, "{}", readers.len());
        match read(&executor, &stdout, 0).await {
            Ok(log) => readers.push(log),
            Err(refused) => break refused,
        }
    };
    assert_eq!(
        (refused.code(), readers.len()),
        (Code::ResourceExhausted, 64)
    );
    readers.pop();
    let mut log = loop {
        // The server notices the end of a call a moment later.
        if let Ok(log) = read(&executor, &stdout, 0).await {
            break log;
        }
    };
    assert_eq!(next(&mut log).await.as_deref(), Some("one\n"));
    gate.open();
    succeeded(messages.response().await);
    assert_eq!(next(&mut log).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_sees_an_action_but_cannot_cancel_it() {
    let (server, executor) = start(&[]).await;
    let mut gate = Gate::new();
    let action = TestAction::script(&gate.pass());
    let mut messages = executor.start(&action).await;
    messages.reach(Value::Executing).await;
    let viewer = Executor::connect(server.address()).await;
    let [name] = listed(&viewer).await.try_into().unwrap();
    assert!(messages.name.starts_with(&name) && messages.name != name);
    let refused = viewer.cancel(&name).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let refused = viewer.wait(&name).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    gate.open();
    succeeded(messages.response().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn ps_lists_queued_and_running_actions_with_target_and_mnemonic() {
    let (server, executor) = start(&["execution.concurrency=1"]).await;
    let mut gate = Gate::new();
    let none = gorego(&server, &["ps"]);
    assert_eq!(text(&none.stdout), "No action is queued or running.\n");
    let script = format!("(while :; do :; done) & {}", gate.pass());
    let mut running = start_for_target(&executor, &TestAction::script(&script)).await;
    gate.wait_for_starts(1);
    let queued = start_for_target(&executor, &TestAction::script("exit 0")).await;
    let mut rows = serde_json::Value::Null;
    wait_until("both actions, one with processor time", || {
        let listed = gorego(&server, &["ps", "--json"]);
        rows = serde_json::from_slice(&listed.stdout).unwrap();
        rows[0]["processor_ms"].as_u64() > Some(0) && rows[1]["phase"] == "queue"
    });
    assert_eq!(rows[0]["phase"], "run");
    assert!(rows[0]["resident_bytes"].as_u64() > Some(0), "{rows:#}");
    assert!(
        rows[0]["stdout"].as_str().unwrap().ends_with("-1-stdout"),
        "{rows:#}"
    );
    assert!(rows[1]["processor_ms"].is_null(), "{rows:#}");
    for row in [&rows[0], &rows[1]] {
        assert_eq!(row["target"], TARGET);
        assert_eq!(row["mnemonic"], MNEMONIC);
        assert_eq!(row["build"], "some-build");
    }
    let table = text(&gorego(&server, &["ps"]).stdout);
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    for (line, phase) in [(lines[1], " run "), (lines[2], " queue ")] {
        for part in [phase, TARGET, MNEMONIC] {
            assert!(line.contains(part), "no {part} in {table}");
        }
    }
    gate.open();
    drop(queued);
    while running.message().await.unwrap().is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_follows_both_outputs_and_ends_with_the_action() {
    for level in Level::all() {
        let (server, executor) = level.start(&[]).await;
        let mut gate = Gate::new();
        let script = format!(
            "echo one; {}; echo two; echo three >&2; exit 3",
            gate.pass()
        );
        let mut messages = executor.start(&TestAction::script(&script)).await;
        messages.reach(Value::Executing).await;
        let [name] = listed(&executor).await.try_into().unwrap();
        let (_, id) = name.rsplit_once('-').unwrap();
        let mut command = process::command(binary::gorego());
        command.args(["tail", &id[..12], "--server", &server.grpc_url()]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut tail = Process::spawn(&mut command);
        let child = tail.child_mut();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "one\n");
        gate.open();
        let (mut rest, mut errors) = (String::new(), String::new());
        stdout.read_to_string(&mut rest).unwrap();
        stderr.read_to_string(&mut errors).unwrap();
        assert_eq!(rest, "two\n");
        let lines: Vec<_> = errors.lines().collect();
        assert_eq!(lines[..2], ["three", "gorego: exit code 3"], "{errors}");
        assert!(tail.wait().success());
        messages.response().await;

        // The log of an action that has ended is that of its result.
        let ended = gorego(&server, &["tail", &name, "--stderr"]);
        assert_eq!(text(&ended.stdout), "");
        assert!(text(&ended.stderr).starts_with("three\ngorego: exit code 3\n"));
        let ended = gorego(&server, &["tail", &name, "--stdout"]);
        assert_eq!(text(&ended.stdout), "one\ntwo\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ps_and_tail_say_why_they_show_nothing() {
    let cache = Server::start(&[]);
    let failure = |server: &Server, arguments: &[&str]| {
        let failed = gorego(server, arguments);
        assert_eq!(failed.status.code(), Some(1), "{failed:?}");
        text(&failed.stderr)
    };
    for arguments in [&["ps"][..], &["tail", "abc"]] {
        let why = failure(&cache, arguments);
        assert!(why.contains("executes no actions"), "{why}");
    }
    let (server, _) = start(&[]).await;
    let why = failure(&server, &["tail", "abc"]);
    assert!(
        why.contains("no queued or running operation begins with"),
        "{why}"
    );
    let unknown = format!("operations/{}-1-{:032x}", "node", 1);
    let why = failure(&server, &["tail", &unknown]);
    assert!(why.contains("no operation"), "{why}");
    let mut command = process::command(binary::gorego());
    let address = server.grpc_url().replace("grpc://", "grpcs://");
    let failed = command.args(["ps", "--server", &address]).output().unwrap();
    let why = text(&failed.stderr);
    assert!(why.contains("cannot reach grpcs://"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_queued_running_and_recent_actions() {
    let served = "telemetry.metrics_addr=127.0.0.1:0";
    let (server, executor) = start(&[served, "execution.concurrency=1"]).await;
    let mut gate = Gate::new();
    let mut running = start_for_target(&executor, &TestAction::script(&gate.pass())).await;
    gate.wait_for_starts(1);
    let mut queued = executor.start(&TestAction::script("exit 3")).await;
    queued.reach(Value::Queued).await;
    let actions = get(server.metrics(), "/api/v1/actions").await.json();
    let current = &actions["current"];
    assert_eq!(
        (&current[0]["state"], &current[0]["target"]),
        (&"run".into(), &TARGET.into())
    );
    assert_eq!(current[1]["state"], "queue", "{actions:#}");
    let totals = serde_json::json!({"queued": 1, "running": 1, "elsewhere": 0});
    assert_eq!(actions["totals"], totals);
    let page = get(server.metrics(), "/actions").await.content;
    for part in [
        TARGET,
        MNEMONIC,
        "1 action running, 1 queued.",
        "No action has ended",
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
    let overview = get(server.metrics(), "/").await.content;
    assert!(overview.contains("href=\"/actions\""), "{overview}");

    gate.open();
    while running.message().await.unwrap().is_some() {}
    queued.response().await;
    let actions = get(server.metrics(), "/api/v1/actions").await.json();
    let recent = &actions["recent"];
    assert_eq!(
        (&recent[0]["state"], &recent[0]["exit_code"]),
        (&"failed".into(), &3.into())
    );
    assert_eq!(
        (&recent[1]["state"], &recent[1]["target"]),
        (&"succeeded".into(), &TARGET.into())
    );
    let phases = recent[1]["phases"].as_array().unwrap();
    let phases: Vec<_> = phases
        .iter()
        .map(|phase| phase["phase"].as_str().unwrap())
        .collect();
    assert_eq!(
        phases,
        ["queue", "fetch", "stage", "run", "collect", "publish"]
    );
    let page = get(server.metrics(), "/actions").await.content;
    assert!(page.contains("failed (exit code 3)"), "{page}");

    let cache = Server::start(&[served]);
    for path in ["/actions", "/api/v1/actions"] {
        assert_eq!(get(cache.metrics(), path).await.status, 404, "{path}");
    }
    let overview = get(cache.metrics(), "/").await.content;
    assert!(!overview.contains("href=\"/actions\""), "{overview}");
}
