//! Tests that the server applies its configuration.
#![cfg(test)]

use std::{fs, pin::pin, time::Duration};

use bytes::Bytes;
use gorego_integration::{
    client::Client,
    content::{blob, digest_of, uuid},
    peer::{FaultyPeer, Method},
    server::{self, Server},
};
use reapi::v2::{
    ActionResult, GetCapabilitiesRequest, ServerCapabilities,
    capabilities_client::CapabilitiesClient,
};
use rustix::process::Signal;
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

const MIB: usize = 1024 * 1024;
/// The longest wait for a condition; far more than it needs.
const PATIENCE: Duration = Duration::from_mins(1);

async fn capabilities(channel: Channel) -> Result<ServerCapabilities, Status> {
    let request = GetCapabilitiesRequest::default();
    let mut client = CapabilitiesClient::new(channel);
    Ok(client.get_capabilities(request).await?.into_inner())
}

#[track_caller]
fn assert_refused<T>(outcome: Result<T, Status>, code: Code) {
    let Err(status) = outcome else {
        panic!("the call was accepted");
    };
    assert_eq!(status.code(), code, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_announced_to_clients_and_enforced() {
    let server = Server::start(&[
        "limits.max_batch_bytes=1MiB",
        "limits.max_blob_size=2MiB",
        "action_cache.updates=false",
    ]);
    let client = Client::connect(server.address()).await;
    let announced = capabilities(client.channel()).await.unwrap();
    let announced = announced.cache_capabilities.expect("cache capabilities");
    assert_eq!(announced.max_batch_total_size_bytes, 1024 * 1024);
    assert_eq!(announced.max_cas_blob_size_bytes, 2 * 1024 * 1024);
    let updates = announced.action_cache_update_capabilities.unwrap();
    assert!(!updates.update_enabled);

    let mut rng = fastrand::Rng::with_seed(1);
    client.batch_upload(&[blob(1, MIB)]).await.unwrap();
    let outcome = client.batch_upload(&[blob(2, MIB + 1)]).await;
    assert_refused(outcome, Code::InvalidArgument);
    client
        .upload(&uuid(&mut rng), &blob(3, 2 * MIB))
        .await
        .unwrap();
    let outcome = client.upload(&uuid(&mut rng), &blob(4, 2 * MIB + 1)).await;
    assert_refused(outcome, Code::InvalidArgument);
    let action = digest_of(b"action");
    let outcome = client.put_action(&action, ActionResult::default()).await;
    assert_refused(outcome, Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn action_results_are_accepted_by_default() {
    let server = Server::start(&[]);
    let client = Client::connect(server.address()).await;
    let announced = capabilities(client.channel()).await.unwrap();
    let announced = announced.cache_capabilities.expect("cache capabilities");
    let updates = announced.action_cache_update_capabilities.unwrap();
    assert!(updates.update_enabled);
    let result = ActionResult {
        exit_code: 7,
        ..ActionResult::default()
    };
    let action = digest_of(b"action");
    client.put_action(&action, result.clone()).await.unwrap();
    assert_eq!(client.get_action(&action).await.unwrap().exit_code, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_wait() {
    let server = Server::start(&["limits.max_connections=1"]);
    let first = Client::connect(server.address()).await;
    let mut health = HealthClient::new(first.channel());
    let watch = health.watch(HealthCheckRequest::default()).await;
    let second = Client::connect(server.address()).await;
    let mut waits = pin!(capabilities(second.channel()));
    let others = async {
        for _ in 0..200 {
            capabilities(first.channel()).await.unwrap();
        }
    };
    tokio::select! {
        _ = &mut waits => panic!("the second connection is served at the same time"),
        () = others => {}
    }
    drop((first, health, watch));
    waits.await.expect("the second connection is served now");
}

#[test]
fn headers_that_http2_forbids_are_refused_with_their_key() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("headers");
    fs::write(&file, "transfer-encoding=sesame\n").unwrap();
    let in_file = |key| format!("{key}={}", file.display());
    let target = "backing_cache.target=grpc://127.0.0.1:1";
    let endpoint = "telemetry.tracing_endpoint=127.0.0.1:1";
    for (with, key, header) in [
        (target, "backing_cache.headers", "connection"),
        (target, "backing_cache.headers_file", "transfer-encoding"),
        (endpoint, "telemetry.tracing_headers", "upgrade"),
        (
            endpoint,
            "telemetry.tracing_headers_file",
            "transfer-encoding",
        ),
    ] {
        let setting = if key.ends_with("_file") {
            in_file(key)
        } else {
            format!("{key}={header}=sesame")
        };
        let (_, stderr) = server::refusal(&dir.path().join("data"), &[with, &setting]);
        let named = format!("{key}: header \"{header}\": ");
        assert!(stderr.contains(&named), "no {named} in {stderr}");
        assert!(!stderr.contains("sesame"), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_a_file_are_sent_to_the_backing_cache_and_reloaded_at_sighup() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("headers");
    let setting = format!("backing_cache.headers_file={}", file.display());
    let peer = FaultyPeer::start();
    let target = format!("backing_cache.target={}", peer.grpc_url());
    let settings = [target.as_str(), setting.as_str()];
    let data = dir.path().join("data");
    let (_, stderr) = server::refusal(&data, &settings);
    assert!(stderr.contains("backing_cache.headers_file"), "{stderr}");
    fs::write(&file, "letmein\n").unwrap();
    let (_, stderr) = server::refusal(&data, &settings);
    assert!(
        stderr.contains("line 1") && !stderr.contains("letmein"),
        "{stderr}"
    );

    fs::write(&file, "# a key\nx-api-key=letmein\n").unwrap();
    let server = Server::start(&settings);
    let client = Client::connect(server.address()).await;
    let missing = client.find_missing(vec![digest_of(b"x")]).await;
    assert_eq!(missing.unwrap().len(), 1);
    let calls = peer.calls(Method::FindMissingBlobs);
    assert_eq!(calls[0].header("x-api-key"), Some("letmein"));

    fs::write(&file, "x-api-key=another").unwrap();
    server.signal(Signal::HUP);
    let sends_it = async {
        loop {
            let missing = client.find_missing(vec![digest_of(b"x")]).await;
            assert_eq!(missing.unwrap().len(), 1);
            let calls = peer.calls(Method::FindMissingBlobs);
            if calls.last().and_then(|call| call.header("x-api-key")) == Some("another") {
                return;
            }
        }
    };
    let sends_it = tokio::time::timeout(PATIENCE, sends_it).await;
    sends_it.expect("the new key is sent");
}

#[test]
fn a_pattern_that_is_no_regular_expression_prevents_the_start() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("data");
    // Also without a page.
    for page in ["telemetry.ui=local", "telemetry.ui=off"] {
        let settings = [page, r#"telemetry.redact=["token", "(secret"]"#];
        let (status, stderr) = server::refusal(&data, &settings);
        assert_eq!(status.code(), Some(2), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        let named = r#"telemetry.redact: "(secret": unclosed group; accepted: "#;
        assert!(stderr.contains(named), "{stderr}");
        assert!(!data.exists(), "nothing is written before");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_whether_the_data_directory_is_usable() {
    let server = Server::start(&[]);
    let client = Client::connect(server.address()).await;
    let mut health = HealthClient::new(client.channel());
    let watch = health.watch(HealthCheckRequest::default()).await;
    let mut watch = watch.expect("the health service").into_inner();
    let mut next = async || {
        let status = tokio::time::timeout(PATIENCE, watch.message()).await;
        status.expect("a change").unwrap().unwrap().status()
    };
    assert_eq!(next().await, ServingStatus::Serving);
    let tmp = server.data().join("tmp");
    // The server may be recreating it at this moment.
    while fs::write(&tmp, "in the way").is_err() {
        let _ = fs::remove_dir_all(&tmp);
    }
    assert_eq!(next().await, ServingStatus::NotServing);
    fs::remove_file(&tmp).unwrap();
    assert_eq!(next().await, ServingStatus::Serving);
    let stored = client.batch_upload(&[Bytes::from_static(b"x")]).await;
    stored.expect("the data directory is usable again");
}
