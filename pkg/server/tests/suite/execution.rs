//! `Execution`: what a client of an executor sees.

mod operations;
mod platforms;
mod streams;

use gorego_storage::{ActionCache as _, DigestFunction};
use prost::Message as _;
use reapi::{
    rpc,
    v2::{
        ActionResult, Command, ExecuteRequest, ExecuteResponse, ExecutionPolicy,
        GetCapabilitiesRequest, OutputFile, Platform, execution_stage::Value, platform::Property,
    },
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::common::{executing::*, *};

const EXECUTION: &str = "build.bazel.remote.execution.v2.Execution";

#[tokio::test]
async fn an_action_is_queued_at_once_then_executing_then_completed() {
    let mut server = ExecutingServer::start().await;
    let action = server.action("a").await;
    let mut messages = server.execute(request(&action)).await.unwrap();
    let first = messages.next().await.unwrap().unwrap();
    let about = metadata(&first);
    assert_eq!(about.stage(), Value::Queued);
    assert_eq!(about.action_digest, Some(action.to_proto()));
    assert_eq!(
        about.digest_function,
        DigestFunction::Sha256.to_proto() as i32
    );
    let partial = about.partial_execution_metadata.unwrap();
    assert!(partial.queued_timestamp.is_some());
    assert_eq!(partial.worker, "");
    assert!(
        first.name.starts_with("operations/node-7-"),
        "{}",
        first.name
    );
    let attempt = server.attempt().await;
    assert_eq!(attempt.attempt.grant.job.command.arguments, ["true", "a"]);
    assert_eq!(messages.stage().await, (first.name, Value::Executing));
    attempt.end(exited(3));
    let response = messages.response().await;
    assert_eq!(response.result.unwrap().exit_code, 3);
    assert!(!response.cached_result);
}

#[tokio::test]
async fn a_cached_result_is_the_only_message_and_takes_no_slot_of_the_queue() {
    let full = |options: &mut gorego_execution::Options| options.scheduler.queue_size = 0;
    let server = ExecutingServer::with(full, |_| {}).await;
    let action = server.action("a").await;
    let (stdout, file) = (
        server.server.has(b"log").await,
        server.server.has(b"out").await,
    );
    let result = ActionResult {
        stdout_digest: Some(stdout.to_proto()),
        output_files: vec![OutputFile {
            path: "o".to_owned(),
            digest: Some(file.to_proto()),
            ..OutputFile::default()
        }],
        ..ActionResult::default()
    };
    server
        .results
        .put("", &action, result.clone())
        .await
        .unwrap();
    let plain = request(&action);
    let mut messages = server.execute(plain.clone()).await.unwrap();
    let response = messages.response().await;
    assert!(response.cached_result);
    assert_eq!(outcome(&response).0, Code::Ok);
    assert_eq!(response.result.unwrap(), result);

    let inline = ExecuteRequest {
        inline_stdout: true,
        inline_output_files: vec!["o".to_owned(), "other".to_owned()],
        ..plain.clone()
    };
    let response = server.execute(inline).await.unwrap().response().await;
    let inlined = response.result.unwrap();
    assert_eq!(&*inlined.stdout_raw, b"log");
    assert_eq!(&*inlined.output_files[0].contents, b"out");

    let anew = ExecuteRequest {
        skip_cache_lookup: true,
        ..plain.clone()
    };
    let refused = server.execute(anew).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    server.server.store.remove(&file);
    let incomplete = server.execute(plain).await.err().unwrap();
    assert_eq!(incomplete.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_full_queue_asks_for_a_retry() {
    let full = |options: &mut gorego_execution::Options| options.scheduler.queue_size = 1;
    let mut server = ExecutingServer::with(full, |_| {}).await;
    let _running = server.run("a").await;
    let attempt = server.attempt().await;
    let _queued = server.run("b").await;
    let third = server.action("c").await;
    let refused = server.execute(request(&third)).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(
        refused.message().contains("execution.queue_size"),
        "{refused}"
    );
    let status = rpc::Status::decode(refused.details()).unwrap();
    assert_eq!(
        status.details[0].type_url,
        "type.googleapis.com/google.rpc.RetryInfo"
    );
    let retry = rpc::RetryInfo::decode(status.details[0].value.as_slice()).unwrap();
    assert_eq!(retry.retry_delay.unwrap().seconds, 1);
    attempt.end(exited(0));
}

#[tokio::test]
async fn every_missing_blob_is_a_violation() {
    let server = ExecutingServer::start().await;
    let (action, blobs) = action("a");
    let names = |blobs: &[Vec<u8>]| {
        let names = blobs.iter().map(|blob| format!("blobs/{}", sha256(blob)));
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let [action_blob, command, root, file] = blobs;
    for (present, missing) in [
        (None, vec![action_blob.clone()]),
        (Some(action_blob), vec![command.clone(), root.clone()]),
        (Some(root), vec![command.clone(), file.clone()]),
        (Some(command), vec![file]),
    ] {
        if let Some(present) = present {
            server.server.has(&present).await;
        }
        let refused = server.execute(request(&action)).await.err().unwrap();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert_eq!(violations(refused.details()), names(&missing));
    }
}

#[tokio::test]
async fn more_missing_blobs_than_fit_into_trailers_are_in_an_operation() {
    let server = ExecutingServer::start().await;
    let files = (0..1000_u32).map(|number| reapi::v2::FileNode {
        name: number.to_string(),
        digest: Some(sha256(&number.to_le_bytes()).to_proto()),
        ..reapi::v2::FileNode::default()
    });
    let root = reapi::v2::Directory {
        files: files.collect(),
        ..reapi::v2::Directory::default()
    };
    let root = server.server.has(&root.encode_to_vec()).await;
    let (_, [_, command, ..]) = action("a");
    let action = reapi::v2::Action {
        command_digest: Some(server.server.has(&command).await.to_proto()),
        input_root_digest: Some(root.to_proto()),
        ..reapi::v2::Action::default()
    };
    let action = server.server.has(&action.encode_to_vec()).await;
    let mut messages = server.execute(request(&action)).await.unwrap();
    let response = messages.response().await;
    let (code, status) = outcome(&response);
    assert_eq!(code, Code::FailedPrecondition);
    assert_eq!(violations(&status).len(), 1000);
}

#[tokio::test]
async fn an_invalid_action_is_refused_before_there_is_an_operation() {
    let server = ExecutingServer::start().await;
    let refuse = async |request: ExecuteRequest, code, text| {
        let refused = server.execute(request).await.err().unwrap();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(text), "{refused}");
        assert!(refused.details().is_empty(), "{refused}");
    };
    let invalid = Code::InvalidArgument;
    refuse(ExecuteRequest::default(), invalid, "action_digest").await;
    let action = server.action("a").await;
    let named = |instance: &str| ExecuteRequest {
        instance_name: instance.to_owned(),
        ..request(&action)
    };
    refuse(named("a//b"), invalid, "instance_name").await;
    let inline = ExecuteRequest {
        inline_output_files: vec!["/a".to_owned()],
        ..request(&action)
    };
    refuse(inline, invalid, "inline_output_files[0]").await;
    let function = ExecuteRequest {
        digest_function: 3,
        ..request(&action)
    };
    refuse(function, invalid, "digest_function").await;
    let text = server.server.has(b"no command").await;
    refuse(request(&text), invalid, "action_digest").await;
    let (digest, blobs) = action_of(&Command::default(), b"");
    for blob in blobs {
        server.server.has(&blob).await;
    }
    refuse(request(&digest), invalid, "arguments").await;
    let properties = vec![Property {
        name: "container-image".to_owned(),
        value: "docker://a".to_owned(),
    }];
    #[expect(deprecated, reason = "clients of REAPI 2.1 put it there")]
    let command = Command {
        arguments: vec!["true".to_owned()],
        platform: Some(Platform { properties }),
        ..Command::default()
    };
    let (digest, blobs) = action_of(&command, b"");
    for blob in blobs {
        server.server.has(&blob).await;
    }
    refuse(
        request(&digest),
        Code::FailedPrecondition,
        "execution.platform",
    )
    .await;
    assert_eq!(server.executor.list(None, 0, 1).await.operations, []);
}

#[tokio::test]
async fn a_failure_while_running_is_in_the_response_with_the_partial_result() {
    let mut server = ExecutingServer::start().await;
    let mut messages = server.run("a").await;
    let attempt = server.attempt().await;
    let failure = gorego_execution::Failure::TimedOut("after 1 s".to_owned());
    let value = ExecuteResponse {
        status: Some(failure.status()),
        result: Some(ActionResult {
            stdout_raw: b"partial".as_slice().into(),
            ..ActionResult::default()
        }),
        ..ExecuteResponse::default()
    };
    let outcome_of = gorego_scheduler::Outcome { value, bytes: 1 };
    attempt.end(gorego_scheduler::Report::Done(outcome_of));
    let response = messages.response().await;
    assert_eq!(outcome(&response).0, Code::DeadlineExceeded);
    assert_eq!(&*response.result.unwrap().stdout_raw, b"partial");
}

#[tokio::test]
async fn the_priority_inside_a_build_decides() {
    let mut server = ExecutingServer::start().await;
    let _first = server.run("a").await;
    let running = server.attempt().await;
    let mut waiting = vec![];
    for (argument, priority) in [("low", 5), ("high", -5)] {
        let request = ExecuteRequest {
            execution_policy: Some(ExecutionPolicy { priority }),
            ..request(&server.action(argument).await)
        };
        waiting.push(server.execute(request).await.unwrap());
    }
    running.end(exited(0));
    for argument in ["high", "low"] {
        let attempt = server.attempt().await;
        assert_eq!(attempt.attempt.grant.job.command.arguments[1], argument);
        attempt.end(exited(0));
    }
}

#[tokio::test]
async fn a_cache_without_an_executor_says_what_to_set() {
    let server = Server::start().await;
    let mut client = reapi::v2::execution_client::ExecutionClient::new(server.connect().await);
    let action = sha256(b"action");
    let refused = client.execute(request(&action)).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(
        refused.message().contains("`execution.enabled`"),
        "{refused}"
    );
    assert!(!offers_execution(&server).await);
    let executing = ExecutingServer::start().await;
    assert!(offers_execution(&executing.server).await);
}

/// Returns whether the server advertises that it executes, which capabilities and health have to agree on.
async fn offers_execution(server: &Server) -> bool {
    let capabilities = server.capabilities().await;
    let mut capabilities = capabilities;
    let answer = capabilities
        .get_capabilities(GetCapabilitiesRequest::default())
        .await;
    let execution = answer.unwrap().into_inner().execution_capabilities.unwrap();
    let mut health = HealthClient::new(server.connect().await);
    let service = EXECUTION.to_owned();
    let known = health.check(HealthCheckRequest { service }).await.is_ok();
    assert_eq!(execution.exec_enabled, known);
    assert_eq!(execution.execution_priority_capabilities.is_some(), known);
    let properties: &[&str] = if known { &["mtime", "unix_mode"] } else { &[] };
    assert_eq!(execution.supported_node_properties, properties);
    assert_eq!(execution.digest_functions.len(), DigestFunction::ALL.len());
    known
}
