//! Tests of the values of metrics.
#![cfg(test)]

use std::{net::TcpListener, time::Duration};

use gorego_integration::{
    client::Client,
    content::{blob, digest_of},
    link::Link,
    metrics::Metrics,
    peer::{FaultyPeer, PeerState},
    process::describe,
    server::{self, Server},
};
use reapi::v2::{ActionResult, OutputFile};
use tempfile::TempDir;
use tokio::time::timeout;

const TOLD: &str = "telemetry.metrics_addr=127.0.0.1:0";
const BREAKER: &str = "gorego_backing_cache_breaker_state";
const JOURNAL: &str = "gorego_backing_cache_journal";

/// The longest wait for a condition; far more than it needs.
const PATIENCE: Duration = Duration::from_mins(1);

/// Returns the state of the breaker, which must be exactly one.
fn breaker(metrics: &Metrics) -> &'static str {
    let states = ["closed", "open", "half_open"];
    let value = |state: &str| metrics.get(&format!("{BREAKER}{{state=\"{state}\"}}"));
    let now: Vec<_> = states.iter().filter(|s| value(s) == Some(1)).collect();
    let others = states.iter().filter(|s| value(s) == Some(0));
    assert_eq!((now.len(), others.count()), (1, 2), "{metrics:#?}");
    now[0]
}

/// Returns the numbers of pending blobs, action results and bytes.
fn journal(metrics: &Metrics) -> [u64; 3] {
    ["blobs", "results", "bytes"].map(|what| {
        let value = metrics.get(&format!("{JOURNAL}_{what}"));
        value.unwrap_or_else(|| panic!("no {what} in {metrics:#?}"))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_show_an_outage_of_the_backing_cache_and_its_end() {
    let peer = FaultyPeer::start();
    let link = Link::to(peer.address());
    let server = Server::in_front_of(
        &link.grpc_url(),
        &[
            TOLD,
            "backing_cache.on_outage=degrade",
            "backing_cache.put_retry_count=0",
        ],
    );
    let client = Client::connect(server.address()).await;
    let contents = [blob(1, 1000), blob(2, 2000)];
    let digests: Vec<_> = contents.iter().map(|content| digest_of(content)).collect();
    assert_eq!(client.find_missing(digests.clone()).await.unwrap(), digests);
    let metrics = Metrics::of(server.metrics()).await;
    assert_eq!((breaker(&metrics), journal(&metrics)), ("closed", [0; 3]));

    link.down();
    let open = async {
        // Each call fails.
        while breaker(&Metrics::of(server.metrics()).await) != "open" {
            client.find_missing(digests.clone()).await.unwrap();
        }
    };
    let in_time = timeout(PATIENCE, open).await;
    in_time.expect("the breaker opens");
    client.batch_upload(&contents).await.unwrap();
    let outputs = digests.iter().map(|digest| OutputFile {
        path: digest.hash.clone(),
        digest: Some(digest.clone()),
        ..OutputFile::default()
    });
    let result = ActionResult {
        output_files: outputs.collect(),
        ..ActionResult::default()
    };
    let action = digest_of(b"action");
    client.put_action(&action, result.clone()).await.unwrap();
    let metrics = Metrics::of(server.metrics()).await;
    assert_ne!(breaker(&metrics), "closed");
    let [blobs, results, bytes] = journal(&metrics);
    assert_eq!([blobs, results], [2, 1]);
    assert!(bytes >= 3000, "{bytes} bytes");

    link.restore();
    let arrived = |state: &PeerState| state.action("", &action).as_ref() == Some(&result);
    peer.wait_for(arrived).await;
    // The journal records an upload after its response.
    let done = |metrics: &Metrics| journal(metrics) == [0; 3];
    let metrics = Metrics::wait_for(server.metrics(), done).await;
    assert_eq!(breaker(&metrics), "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_backing_cache_only_the_build_info_is_exported() {
    let server = Server::start(&[TOLD]);
    let metrics = Metrics::of(server.metrics()).await;
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("gorego_build_info{{version=\"{version}\"}}");
    assert_eq!(metrics.get(&name), Some(1), "{metrics:#?}");
    assert_eq!(metrics.get(&format!("{JOURNAL}_bytes")), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_counted_by_method_and_status() {
    let server = Server::start(&[TOLD]);
    let client = Client::connect(server.address()).await;
    let digest = digest_of(b"missing");
    client.find_missing(vec![digest.clone()]).await.unwrap();
    client.get_action(&digest).await.unwrap_err();
    let ended = |metrics: &Metrics| {
        let count = |call: &str| metrics.get(&format!("gorego_requests_total{{{call}}}"));
        let inflight = "gorego_inflight_requests{method=\"GetActionResult\"}";
        count("method=\"FindMissingBlobs\",code=\"OK\"") == Some(1)
            && count("method=\"GetActionResult\",code=\"NOT_FOUND\"") == Some(1)
            && metrics.get("gorego_request_seconds_count{method=\"FindMissingBlobs\"}") == Some(1)
            && metrics.get(inflight) == Some(0)
    };
    Metrics::wait_for(server.metrics(), ended).await;
}

#[test]
fn a_configured_metrics_address_in_use_refuses_the_start() {
    let dir = TempDir::new().unwrap();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap();
    let setting = format!("telemetry.metrics_addr={address}");
    let (status, stderr) = server::refusal(dir.path(), &[setting]);
    assert_eq!(status.code(), Some(2), "{}\n{stderr}", describe(status));
    let named = format!("--set: telemetry.metrics_addr = {address}: ");
    assert!(stderr.contains(&named), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}
