//! Tests of traces and of the ids in logs: what a collector is sent, by one server and by a chain of two.
#![cfg(test)]

use std::{fs, sync::Arc};

use bytes::Bytes;
use gorego_integration::{
    client::{Client, add_request_metadata},
    collector::{Collector, CollectorProtocol, Span},
    content::{blob, digest_of},
    link::Link,
    metrics::Metrics,
    peer::FaultyPeer,
    server::Server,
    web::get_with,
};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use reapi::{
    bytestream::{ReadRequest, byte_stream_client::ByteStreamClient},
    v2::{Digest, RequestMetadata},
};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::Request;

const SERVED: &str = "telemetry.metrics_addr=127.0.0.1:0";
const ALWAYS: &str = "telemetry.tracing_sample_ratio=1";
const NEVER: &str = "telemetry.tracing_sample_ratio=0";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const BUILD: &str = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f0";
/// Larger than the blobs that are fetched in batches.
const LARGE: usize = 3 << 20;

/// The headers that tests send.
#[derive(Clone, Copy, Debug, Default)]
struct TraceHeaders {
    /// The flag of a `traceparent`.
    sampled: Option<bool>,
    /// The id of the build in `RequestMetadata`.
    build: Option<&'static str>,
}

/// Reads a blob by `ByteStream.Read`.
async fn read(server: &Server, digest: &Digest, sent: TraceHeaders) -> Bytes {
    let client = Client::connect(server.address()).await;
    let mut request = Request::new(ReadRequest {
        resource_name: format!("blobs/{}/{}", digest.hash, digest.size_bytes),
        ..ReadRequest::default()
    });
    let headers = request.metadata_mut();
    if let Some(sampled) = sent.sampled {
        let flag = u8::from(sampled);
        let parent = format!("00-{TRACE}-{PARENT}-{flag:02x}");
        headers.insert("traceparent", parent.parse().unwrap());
        headers.insert("tracestate", "vendor=value".parse().unwrap());
    }
    if let Some(build) = sent.build {
        let metadata = RequestMetadata {
            tool_invocation_id: build.to_owned(),
            action_id: "action-1".to_owned(),
            target_id: "//pkg:target".to_owned(),
            action_mnemonic: "CppCompile".to_owned(),
            ..RequestMetadata::default()
        };
        add_request_metadata(headers, &metadata);
    }
    let mut client = ByteStreamClient::new(client.channel());
    let mut stream = client.read(request).await.unwrap().into_inner();
    let mut content = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        content.extend_from_slice(&message.data);
    }
    content.into()
}

/// Uploads a blob to a server, before its calls are traced or without a trace.
async fn store(server: &Server, content: &Bytes) -> Digest {
    let client = Client::connect(server.address()).await;
    client.upload_whole(content).await.unwrap();
    digest_of(content)
}

/// Returns the only span of this name, and for a tier's also of this outcome, in the trace.
fn one<'a>(spans: &'a [Span], trace: &str, name: &str, outcome: &str) -> &'a Span {
    let found = spans
        .iter()
        .filter(|span| span.name == name && span.trace == trace && span.get("outcome") == outcome);
    let found: Vec<_> = found.collect();
    assert_eq!(found.len(), 1, "{name} {outcome} in {spans:#?}");
    found[0]
}

const READ: &str = "google.bytestream.ByteStream/Read";

fn has(spans: &[Span], trace: &str, name: &str) -> bool {
    let mut spans = spans.iter();
    spans.any(|span| span.name == name && span.trace == trace)
}

/// Two servers, each with a collector of its own.
struct Chain {
    behind: Server,
    of_behind: Collector,
    front: Server,
    of_front: Collector,
}

impl Chain {
    async fn start(front_ratio: &str) -> Self {
        let of_behind = Collector::start(CollectorProtocol::Grpc).await;
        let behind = Server::start(&[&of_behind.setting(), ALWAYS]);
        let of_front = Collector::start(CollectorProtocol::Grpc).await;
        let settings = [&*of_front.setting(), front_ratio, SERVED];
        let front = Server::in_front_of(&behind.grpc_url(), &settings);
        Self {
            behind,
            of_behind,
            front,
            of_front,
        }
    }
}

/// Checks that durations of fetches link to the trace.
async fn check_exemplars(server: &Server) {
    let accept = "host: localhost\r\naccept: application/openmetrics-text\r\n";
    let metrics = get_with(server.metrics(), "/metrics", accept).await;
    let exemplar = format!("# {{trace_id=\"{TRACE}\"}}");
    for operation in ["read", "read_batch"] {
        let labelled = format!("operation=\"{operation}\"");
        let is_linked = |line: &str| {
            line.starts_with("gorego_backing_request_seconds_bucket{")
                && line.contains(&labelled)
                && line.contains(&exemplar)
        };
        assert!(metrics.content.lines().any(is_linked), "{metrics:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_read_through_two_servers_is_one_trace() {
    let chain = Chain::start(NEVER).await;
    for (content, operation) in [(blob(1, LARGE), "get"), (blob(2, 100), "get_batch")] {
        let digest = store(&chain.behind, &content).await;
        let sent = TraceHeaders {
            sampled: Some(true),
            build: Some(BUILD),
        };
        assert_eq!(read(&chain.front, &digest, sent).await, content);
        let small = operation == "get_batch";
        let backing = format!("backing {operation}");
        let of_front = |spans: &[Span]| {
            let size = digest.size_bytes.to_string();
            let is_backing = |span: &Span| span.name == backing && span.get("size") == size;
            let backing = spans.iter().find(|span| is_backing(span)).cloned();
            let request = backing.as_ref().and_then(|backing| {
                let mut spans = spans.iter();
                spans.find(|span| span.id == backing.parent).cloned()
            });
            backing.zip(request)
        };
        let spans = chain
            .of_front
            .wait_for(|spans| of_front(spans).is_some())
            .await;
        let (backing, request) = of_front(&spans).unwrap();
        assert_eq!((&*request.name, request.kind), (READ, SpanKind::Server));
        assert_eq!((&*request.trace, &*request.parent), (TRACE, PARENT));
        assert_eq!(request.get("rpc.grpc.status_code"), "0");
        assert_eq!(request.get("service.name"), "gorego");
        assert_eq!((&*backing.trace, backing.kind), (TRACE, SpanKind::Client));
        assert_eq!(backing.get("outcome"), "hit");
        let missed = spans
            .iter()
            .filter(|span| span.parent == request.id && span.name.starts_with("local get"));
        assert!(missed.clone().count() > 0, "{spans:#?}");
        for missed in missed {
            assert_eq!(missed.get("outcome"), "miss", "{missed:#?}");
        }

        let method = if small {
            "build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs"
        } else {
            READ
        };
        let is_answer = |span: &Span| span.name == method && span.parent == backing.id;
        let of_behind = chain.of_behind.wait_for(|spans| {
            let answer = spans.iter().find(|span| is_answer(span));
            answer.is_some_and(|answer| {
                let mut spans = spans.iter();
                spans.any(|span| span.parent == answer.id && span.get("outcome") == "hit")
            })
        });
        let spans = of_behind.await;
        let answer = spans.iter().find(|span| is_answer(span)).unwrap();
        assert_eq!(answer.trace, TRACE);
        assert_eq!(answer.get("invocation_id"), BUILD, "the client's metadata");
        assert_eq!(answer.get("target"), "//pkg:target");
    }
    check_exemplars(&chain.front).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_their_client_or_the_first_server_does_not_trace_are_traced_nowhere() {
    let chain = Chain::start(NEVER).await;
    let (content, other) = (blob(1, LARGE), blob(2, LARGE));
    let (digest, other) = (
        store(&chain.behind, &content).await,
        store(&chain.behind, &other).await,
    );
    let unsampled = TraceHeaders {
        sampled: Some(false),
        ..TraceHeaders::default()
    };
    read(&chain.front, &digest, unsampled).await;
    read(&chain.front, &other, TraceHeaders::default()).await;
    read(&chain.behind, &digest, unsampled).await;
    // A marker behind all others.
    let marker = TraceHeaders {
        sampled: None,
        build: Some(BUILD),
    };
    read(&chain.behind, &digest, marker).await;
    let is_marker = |span: &Span| span.get("invocation_id") == BUILD;
    let spans = chain
        .of_behind
        .wait_for(|spans| spans.iter().any(is_marker));
    let spans = spans.await;
    let reads: Vec<_> = spans.iter().filter(|span| span.name == READ).collect();
    assert_eq!(reads.len(), 1, "{reads:#?}");
    assert_eq!(chain.of_front.arrived().spans.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_parent_a_build_whose_id_is_a_uuid_is_a_trace() {
    let collector = Collector::start(CollectorProtocol::Grpc).await;
    let server = Server::start(&[&collector.setting(), ALWAYS]);
    let content = blob(1, 100);
    let digest = store(&server, &content).await;
    let sent = TraceHeaders {
        build: Some(BUILD),
        ..TraceHeaders::default()
    };
    read(&server, &digest, sent).await;
    let trace = BUILD.replace('-', "");
    let spans = collector.wait_for(|spans| has(spans, &trace, READ)).await;
    let request = one(&spans, &trace, READ, "");
    assert_eq!(request.parent, "");
    for (name, value) in [
        ("rpc.system", "grpc"),
        ("rpc.service", "google.bytestream.ByteStream"),
        ("rpc.method", "Read"),
        ("action", "action-1"),
        ("target", "//pkg:target"),
        ("mnemonic", "CppCompile"),
        ("service.version", env!("CARGO_PKG_VERSION")),
    ] {
        assert_eq!(request.get(name), value, "{name} of {request:#?}");
    }
    assert!(!request.get("host.name").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_over_http_gets_headers_and_the_last_spans_before_the_end() {
    let collector = Collector::start(CollectorProtocol::Http).await;
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("headers");
    fs::write(&file, "x-tenant=build\n").unwrap();
    let endpoint = format!(
        "telemetry.tracing_endpoint=http://{}/otlp",
        collector.address()
    );
    let headers_file = format!("telemetry.tracing_headers_file={}", file.display());
    let has_arrived = || {
        let spans = collector.arrived().spans;
        spans.iter().any(|span| span.get("rpc.method") == "Write")
    };
    // A server has two seconds for its last spans, which may be too few on a busy machine.
    for _ in 0..3 {
        let mut server = Server::start(&[
            &endpoint,
            "telemetry.tracing_protocol=http",
            "telemetry.tracing_headers=x-token=s3cret",
            &headers_file,
            ALWAYS,
        ]);
        store(&server, &blob(1, 100)).await;
        server.ask_to_stop();
        server.wait();
        assert!(!server.log().contains("s3cret"), "{}", server.log());
        if has_arrived() {
            break;
        }
    }
    let arrived = collector.arrived();
    assert!(has_arrived(), "{arrived:#?}");
    assert_eq!(arrived.path, "/otlp/v1/traces");
    assert_eq!(arrived.headers["x-token"], "s3cret");
    assert_eq!(arrived.headers["x-tenant"], "build");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_down_or_a_web_server_is_logged_once_and_disturbs_no_client() {
    let pages = Collector::start(CollectorProtocol::Pages).await;
    let pages = format!("telemetry.tracing_endpoint=http://{}", pages.address());
    let down = "telemetry.tracing_endpoint=127.0.0.1:1";
    let http = "telemetry.tracing_protocol=http";
    let grpc = "telemetry.tracing_protocol=grpc";
    for settings in [[down, grpc], [down, http], [&pages, http], [&pages, grpc]] {
        let [endpoint, protocol] = settings;
        let mut server = Server::start(&[endpoint, protocol, ALWAYS]);
        let content = blob(1, LARGE);
        let digest = store(&server, &content).await;
        read(&server, &digest, TraceHeaders::default()).await;
        server.wait_for_log("traces cannot be delivered");
        assert_eq!(
            read(&server, &digest, TraceHeaders::default()).await,
            content
        );
        server.ask_to_stop();
        assert!(server.wait().success());
        let log = server.log();
        assert!(
            log.contains("grpc at port 4317 and http at port 4318"),
            "{log}"
        );
        assert_eq!(
            log.matches("traces cannot be delivered").count(),
            1,
            "{log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_memory_is_an_event_of_the_request() {
    let peer = FaultyPeer::start();
    let link = Link::to(peer.address());
    let collector = Collector::start(CollectorProtocol::Grpc).await;
    let settings = [
        &*collector.setting(),
        ALWAYS,
        "limits.memory=65MiB",
        "limits.max_batch_bytes=64KiB",
        SERVED,
    ];
    let server = Server::in_front_of(&link.grpc_url(), &settings);
    let server = Arc::new(server);
    link.stall();
    let mut reads = JoinSet::new();
    for seed in 0..16 {
        let (server, digest) = (Arc::clone(&server), peer.put(&blob(seed, LARGE)));
        reads.spawn(async move { read(&server, &digest, TraceHeaders::default()).await });
    }
    let waiting = "gorego_budget_waiting_connections{budget=\"large_fetches\"}";
    Metrics::wait_for(server.metrics(), |metrics| metrics.get(waiting) > Some(0)).await;
    link.restore();
    reads.join_all().await;
    let limit = "limit=memory to fetch large blobs requested=1572864 waited=";
    let is_event =
        |event: &String| event.starts_with("waited for a limit ") && event.contains(limit);
    let has_waited = |span: &Span| span.name == READ && span.events.iter().any(is_event);
    let spans = collector.wait_for(|spans| spans.iter().any(has_waited));
    // Some got memory at once.
    let reads = spans.await.into_iter().filter(|span| span.name == READ);
    assert!(reads.clone().any(|span| !has_waited(&span)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_names_the_call_its_build_and_its_trace() {
    let server = Server::start_logging("access=info", &[]);
    let content = blob(1, 100);
    let digest = store(&server, &content).await;
    let sent = TraceHeaders {
        sampled: Some(false),
        build: Some(BUILD),
    };
    read(&server, &digest, sent).await;
    let log = server.wait_for_log(BUILD);
    let line = log.lines().find(|line| line.contains(BUILD)).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    for (name, value) in [
        ("method", "Read"),
        ("code", "OK"),
        ("action", "action-1"),
        ("target", "//pkg:target"),
        ("mnemonic", "CppCompile"),
        ("invocation_id", BUILD),
        ("trace_id", TRACE),
        ("span_id", PARENT),
    ] {
        assert_eq!(line[name], value, "{name} in {line}");
    }
    assert!(line["seconds"].as_f64().unwrap() > 0.0, "{line}");
    assert!(
        line["peer"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{line}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_lacks_the_user_information_of_urls() {
    let server = Server::start_logging("access=info", &[]);
    let digest = store(&server, &blob(1, 100)).await;
    let sent = TraceHeaders {
        sampled: None,
        build: Some("https://me:hunter2@ci/job/7"),
    };
    read(&server, &digest, sent).await;
    let log = server.wait_for_log("https://[redacted]@ci/job/7");
    assert!(!log.contains("hunter2"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_names_the_trace_of_a_call_that_is_refused_by_its_headers() {
    let server = Server::start_logging("access=info", &[]);
    let client = Client::connect(server.address()).await;
    let mut request = Request::new(ReadRequest::default());
    let parent = format!("00-{TRACE}-{PARENT}-00");
    for (name, value) in [("grpc-encoding", "snappy"), ("traceparent", &parent)] {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    let mut client = ByteStreamClient::new(client.channel());
    client.read(request).await.unwrap_err();
    let log = server.wait_for_log("UNIMPLEMENTED");
    let line = log.lines().find(|line| line.contains("UNIMPLEMENTED"));
    assert!(line.unwrap().contains(TRACE), "{log}");
}
