//! Tests of the page, health and status of a running server.
#![cfg(test)]

use gorego_integration::{
    client::Client,
    content::{blob, digest_of, result_of},
    link::Link,
    metrics::Metrics,
    peer::FaultyPeer,
    server::Server,
    web::{PATIENCE, Response, get, get_with, wait_for},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

const SERVED: &str = "telemetry.metrics_addr=127.0.0.1:0";

/// Makes three hits and a miss.
async fn look_up(server: &Server) {
    let client = Client::connect(server.address()).await;
    let (output, action) = (blob(1, 5000), digest_of(b"action"));
    client.upload_whole(&output).await.unwrap();
    client
        .put_action(&action, result_of([digest_of(&output)]))
        .await
        .unwrap();
    for _ in 0..2 {
        client.get_action(&action).await.unwrap();
    }
    client.compare(&digest_of(&output), &output).await;
    let missed = client.get_action(&digest_of(b"other")).await.unwrap_err();
    assert_eq!(missed.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_its_json_show_hits_and_bytes() {
    let server = Server::start(&[SERVED]);
    look_up(&server).await;
    // A call is counted after its response.
    let counted = |methods: &serde_json::Value| {
        let methods = methods.as_array().unwrap().iter();
        methods
            .map(|method| method["calls"].as_u64().unwrap())
            .sum::<u64>()
            >= 6
    };
    let status = wait_for(server.metrics(), "/api/v1/status", |response| {
        counted(&response.json()["traffic"]["methods"])
    });
    let status = status.await.json();
    let lookups = status["traffic"]["lookups"].as_array().unwrap();
    let of = |tier: &str, kind: &str| {
        let found = lookups
            .iter()
            .find(|it| it["tier"] == tier && it["kind"] == kind);
        let found = found.unwrap_or_else(|| panic!("no {tier} {kind} in {status:#}"));
        (
            found["hits"].as_u64().unwrap(),
            found["misses"].as_u64().unwrap(),
        )
    };
    assert_eq!(
        (of("client", "result"), of("client", "blob")),
        ((2, 1), (1, 0))
    );
    let files = status["status"]["local"]["files"].as_u64();
    assert!(files.is_some_and(|files| files >= 2), "{status}");
    let page = get(server.metrics(), "/").await;
    assert_eq!(page.status, 200);
    for shown in [
        "75\u{a0}%",
        "3 of 4 lookups",
        "4.88\u{a0}KiB",
        "Nothing has been evicted yet.",
        "GetActionResult",
    ] {
        assert!(page.content.contains(shown), "no {shown}: {}", page.content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_carry_the_numbers_while_the_page_is_open() {
    let server = Server::start(&[SERVED]);
    let mut stream = TcpStream::connect(server.metrics()).await.unwrap();
    let request = b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut next = async || loop {
        let line = lines.next_line().await.unwrap().expect("events continue");
        if let Some(event) = line.strip_prefix("data: ") {
            break serde_json::from_str::<serde_json::Value>(event).unwrap();
        }
    };
    let first = next().await;
    assert_eq!(
        first["snapshot"]["traffic"]["methods"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    look_up(&server).await;
    // At the latest the second event after the calls has all of them.
    while next().await["snapshot"]["traffic"]["transfers"][0]["read"] != 5000 {}
}

#[tokio::test(flavor = "multi_thread")]
async fn only_this_machine_sees_the_page_by_default() {
    let local = "host: localhost\r\n";
    let forwarded = "host: 127.0.0.1\r\nx-forwarded-for: 192.0.2.1\r\n";
    for (ui, headers, status) in [
        ("local", local, 200),
        ("local", "host: [::1]:9090\r\n", 200),
        ("local", "host: rebound.example\r\n", 403),
        ("local", "", 403),
        ("local", forwarded, 403),
        (
            "local",
            "host: localhost\r\nforwarded: for=192.0.2.1\r\n",
            403,
        ),
        ("on", "host: cache.example\r\n", 200),
        ("true", forwarded, 200),
        ("off", local, 403),
        ("false", local, 403),
    ] {
        let server = Server::start(&[SERVED, &format!("telemetry.ui={ui}")]);
        for path in ["/", "/statusz", "/api/v1/status"] {
            let response = get_with(server.metrics(), path, headers).await;
            assert_eq!(response.status, status, "{ui}, {headers}: {response:#?}");
            let names_the_key = response.content.contains("telemetry.ui");
            assert_eq!(names_the_key, status == 403, "{response:#?}");
        }
        for path in ["/metrics", "/healthz", "/readyz"] {
            let response = get_with(server.metrics(), path, headers).await;
            assert_eq!(response.status, 200, "{response:#?}");
        }
    }
}

async fn serves(server: &Server) -> bool {
    let client = Client::connect(server.address()).await;
    let mut health = HealthClient::new(client.channel());
    let service = "build.bazel.remote.execution.v2.ContentAddressableStorage";
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let response = health.check(request).await.unwrap().into_inner();
    response.status() == ServingStatus::Serving
}

/// Waits for a health on the clients' port. It follows the one on the page in a moment.
async fn until_serves(server: &Server, expected: bool) {
    let reached = async { while serves(server).await != expected {} };
    let in_time = timeout(PATIENCE, reached).await;
    in_time.unwrap_or_else(|_| panic!("still serves: {}", !expected));
}

/// Calls until the breaker of the backing cache is open.
async fn notice_outage(server: &Server, client: &Client) {
    let is_open = async || {
        let status = get(server.metrics(), "/statusz").await.json();
        status["backing"]["breaker"] == "open"
    };
    while !is_open().await {
        let _ = client.find_missing(vec![digest_of(b"any")]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_local_tier_stays_ready_in_an_outage_of_the_backing_cache() {
    let peer = FaultyPeer::start();
    let link = Link::to(peer.address());
    let server = Server::in_front_of(
        &link.grpc_url(),
        &[SERVED, "backing_cache.put_retry_count=0"],
    );
    let client = Client::connect(server.address()).await;
    link.down();
    notice_outage(&server, &client).await;
    let ready = get(server.metrics(), "/readyz").await;
    assert_eq!(ready.status, 200);
    assert!(
        ready
            .content
            .contains("backing cache: failed: does not answer"),
        "{ready:#?}"
    );
    assert!(serves(&server).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_local_tier_is_ready_again_after_an_outage_without_a_call() {
    let peer = FaultyPeer::start();
    let link = Link::to(peer.address());
    let settings = [
        SERVED,
        "local_cache.enabled=false",
        "backing_cache.put_retry_count=0",
    ];
    let server = Server::in_front_of(&link.grpc_url(), &settings);
    let client = Client::connect(server.address()).await;
    assert_eq!(get(server.metrics(), "/readyz").await.status, 200);
    link.down();
    notice_outage(&server, &client).await;
    until_serves(&server, false).await;
    let refused = get(server.metrics(), "/readyz").await;
    assert_eq!(refused.status, 503);
    assert!(refused.content.starts_with("not ready\n"), "{refused:#?}");
    link.restore();
    wait_for(server.metrics(), "/readyz", |response| {
        response.status == 200
    })
    .await;
    until_serves(&server, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_shuts_down_is_alive_but_not_ready() {
    let mut server = Server::start(&[SERVED, "limits.drain_timeout=1m"]);
    let client = Client::connect(server.address()).await;
    // An upload without an end delays the shutdown.
    let content = blob(1, 100_000);
    let (name, digest) = ("2c1ff6a8-9f3c-4a51-8d4c-0b1b6f3f6d10", digest_of(&content));
    let mut upload = client.begin_upload(name, &digest);
    upload.send(&content.slice(..65_536)).await;
    client.wait_until_committed(name, &digest, 65_536).await;
    server.ask_to_stop();
    let is_ending = |response: &Response| response.status == 503;
    let ending = wait_for(server.metrics(), "/readyz", is_ending).await;
    assert!(
        ending.content.contains("server: failed: shutting down"),
        "{ending:#?}"
    );
    assert_eq!(get(server.metrics(), "/healthz").await.status, 200);
    drop(upload);
    assert!(server.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_connections_do_not_prevent_a_scrape() {
    let server = Server::start(&[SERVED]);
    let mut stalled = Vec::new();
    for _ in 0..70 {
        let mut stream = TcpStream::connect(server.metrics()).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: local")
            .await
            .unwrap();
        stalled.push(stream);
    }
    let metrics = Metrics::of(server.metrics()).await;
    assert!(metrics.has("gorego_build_info"));
}
