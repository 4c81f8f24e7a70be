//! Tests of what the page and the metrics show of executed actions.
#![cfg(test)]

use bytes::Bytes;
use gorego_integration::{
    client::{Client, add_request_metadata},
    collector::{Collector, CollectorProtocol, Span},
    content::digest_of,
    metrics::Metrics,
    server::Server,
    web::{Response, wait_for},
};
use prost::Message as _;
use reapi::v2::{
    Action, Command, Digest, ExecuteRequest, RequestMetadata, execution_client::ExecutionClient,
};

const SETTINGS: [&str; 3] = [
    "telemetry.metrics_addr=127.0.0.1:0",
    "execution.enabled=true",
    "execution.run_as_root=true",
];
const TARGET: &str = "//pkg:target";

/// Uploads an action that runs a script.
async fn upload(client: &Client, script: &str) -> Digest {
    let command = Command {
        arguments: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        ..Command::default()
    };
    let command = Bytes::from(command.encode_to_vec());
    let action = Action {
        command_digest: Some(digest_of(&command)),
        input_root_digest: Some(digest_of(b"")),
        ..Action::default()
    };
    let action = Bytes::from(action.encode_to_vec());
    let blobs = [command, action.clone(), Bytes::new()];
    client.batch_upload(&blobs).await.unwrap();
    digest_of(&action)
}

/// Executes an action of the build `id` to its end.
async fn execute(client: &Client, id: &str, action: &Digest) {
    let mut request = tonic::Request::new(ExecuteRequest {
        action_digest: Some(action.clone()),
        ..ExecuteRequest::default()
    });
    let metadata = RequestMetadata {
        tool_invocation_id: id.to_owned(),
        target_id: TARGET.to_owned(),
        action_mnemonic: "Mnemonic".to_owned(),
        ..RequestMetadata::default()
    };
    add_request_metadata(request.metadata_mut(), &metadata);
    let mut executions = ExecutionClient::new(client.channel());
    let mut operations = executions.execute(request).await.unwrap().into_inner();
    while let Some(operation) = operations.message().await.unwrap() {
        if operation.done {
            return;
        }
    }
    panic!("the operation did not end");
}

#[tokio::test(flavor = "multi_thread")]
async fn executed_actions_count_by_outcome() {
    let server = Server::start(&SETTINGS);
    let client = Client::connect(server.address()).await;
    let success = upload(&client, "exit 0").await;
    for action in [&success, &success, &upload(&client, "exit 3").await] {
        execute(&client, "build", action).await;
    }
    let missing = ExecuteRequest {
        action_digest: Some(digest_of(b"no action")),
        ..ExecuteRequest::default()
    };
    let mut executions = ExecutionClient::new(client.channel());
    executions.execute(missing).await.unwrap_err();
    // An attempt ends after its last message.
    let metrics = Metrics::wait_for(server.metrics(), |metrics| {
        metrics.get("gorego_execution_running") == Some(0)
    })
    .await;
    let count = |outcome| {
        metrics.get(&format!(
            "gorego_execution_actions_total{{outcome=\"{outcome}\"}}"
        ))
    };
    let outcomes = [
        "succeeded",
        "cached",
        "failed",
        "refused",
        "error",
        "timed_out",
    ];
    let counts = outcomes.map(count);
    assert_eq!(counts, [1, 1, 1, 1, 0, 0].map(Some), "{metrics:#?}");
    for stage in ["queue", "fetch", "stage", "run", "collect", "publish"] {
        let name = format!("gorego_execution_stage_seconds_count{{stage=\"{stage}\"}}");
        assert_eq!(metrics.get(&name), Some(2), "{stage}");
    }
    assert_eq!(metrics.get("gorego_execution_queued"), Some(0));
    assert!(metrics.get("gorego_execution_staged_files_total") > Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_of_an_executed_action_is_recorded_for_its_target() {
    let server = Server::start(&SETTINGS);
    let client = Client::connect(server.address()).await;
    let first = upload(&client, "exit 0").await;
    execute(&client, "first", &first).await;
    let stored = |response: &Response| {
        response.status == 200 && response.json()["head"]["total"]["stored"] == 1
    };
    let build = wait_for(server.metrics(), "/api/v1/builds/first", stored).await;
    let build = build.json();
    assert_eq!(build["head"]["total"]["misses"], 0, "{build:#}");
    assert_eq!(build["targets"][TARGET]["stored"], 1, "{build:#}");

    let second = upload(&client, "exit 0 # again").await;
    Client::miss_in_build(server.address(), "second", TARGET, &second).await;
    execute(&client, "second", &second).await;
    let explained = |response: &Response| {
        response.status == 200 && !response.json()["misses"][0]["explanation"].is_null()
    };
    let build = wait_for(server.metrics(), "/api/v1/builds/second", explained).await;
    let build = build.json();
    let explanation = build["misses"][0]["explanation"].to_string();
    assert!(explanation.contains("exit 0 # again"), "{build:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_traced_action_has_a_span_with_its_steps() {
    let collector = Collector::start(CollectorProtocol::Grpc).await;
    let (endpoint, always) = (collector.setting(), "telemetry.tracing_sample_ratio=1");
    let server = Server::start(&[&SETTINGS[..], &[&endpoint, always]].concat());
    let client = Client::connect(server.address()).await;
    let action = upload(&client, "exit 3").await;
    execute(&client, "build", &action).await;
    let named = |name: &'static str| move |span: &&Span| span.name.ends_with(name);
    let spans = collector.wait_for(|spans| {
        ["execution", "/Execute"]
            .iter()
            .all(|name| spans.iter().any(|it| named(name)(&it)))
    });
    let spans = spans.await;
    let execution = spans.iter().find(named("execution")).unwrap();
    let request = spans.iter().find(named("/Execute")).unwrap();
    assert_eq!(execution.trace, request.trace);
    assert_eq!(execution.parent, request.id);
    assert_eq!(execution.get("exit_code"), "3");
    assert_eq!(execution.get("attempt"), "1");
    let events = execution.events.iter();
    let steps: Vec<_> = events.filter_map(|event| event.split(' ').next()).collect();
    assert_eq!(steps, ["fetch", "stage", "run", "collect", "publish"]);
}
