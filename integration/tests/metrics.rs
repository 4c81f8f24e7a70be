//! Tests of the names and values of metrics.
#![cfg(test)]

use std::{fs, net::TcpListener, time::Duration};

use gorego_integration::{
    client::Client,
    cluster,
    content::{blob, digest_of, result_of},
    link::Link,
    metrics::{Families, Metrics, families, labels_of},
    peer::{FaultyPeer, PeerState},
    process::describe,
    project,
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
async fn without_a_backing_cache_its_metrics_are_absent() {
    let server = Server::start(&[TOLD]);
    let metrics = Metrics::of(server.metrics()).await;
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("gorego_build_info{{version=\"{version}\"}}");
    assert_eq!(metrics.get(&name), Some(1), "{metrics:#?}");
    let exported = families(server.metrics()).await;
    let of_backing = |name: &String| name.contains("backing");
    assert!(!exported.keys().any(of_backing), "{exported:#?}");
}

/// Returns the lookups of a kind and a tier: hits, misses, and errors.
fn lookups(metrics: &Metrics, kind: &str, tier: &str) -> [u64; 3] {
    ["hit", "miss", "error"].map(|outcome| {
        let labels = format!("kind=\"{kind}\",tier=\"{tier}\",outcome=\"{outcome}\"");
        value(metrics, &format!("gorego_cache_lookups_total{{{labels}}}"))
    })
}

/// Returns the bytes that were read from and written to a tier.
fn bytes(metrics: &Metrics, tier: &str) -> [u64; 2] {
    ["read", "write"].map(|direction| {
        let labels = format!("tier=\"{tier}\",direction=\"{direction}\"");
        value(metrics, &format!("gorego_blob_bytes_total{{{labels}}}"))
    })
}

fn value(metrics: &Metrics, name: &str) -> u64 {
    let value = metrics.get(name);
    value.unwrap_or_else(|| panic!("no {name} in {metrics:#?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_misses_and_bytes_are_counted_for_each_tier() {
    let peer = FaultyPeer::start();
    let server = Server::in_front_of(&peer.grpc_url(), &[TOLD]);
    let client = Client::connect(server.address()).await;
    let (fetched, uploaded) = (blob(1, 300_000), blob(2, 200_000));
    let digest = peer.put(&fetched);
    client.compare(&digest, &fetched).await;
    client.compare(&digest, &fetched).await;
    let absent = digest_of(b"absent");
    client.download(&absent).await.unwrap_err();
    client.upload_whole(&uploaded).await.unwrap();
    let action = digest_of(b"action");
    client.get_action(&action).await.unwrap_err();
    let result = result_of([digest_of(&uploaded)]);
    client.put_action(&action, result).await.unwrap();
    client.get_action(&action).await.unwrap();
    let metrics = Metrics::of(server.metrics()).await;
    for (kind, tier, expected) in [
        ("blob", "client", [2, 1, 0]),
        // Once each, although the client names no function, and what is missing is looked up under two.
        ("blob", "local", [1, 2, 0]),
        ("blob", "backing", [1, 1, 0]),
        ("result", "client", [1, 1, 0]),
        ("result", "local", [1, 1, 0]),
        ("result", "backing", [0, 1, 0]),
    ] {
        assert_eq!(lookups(&metrics, kind, tier), expected, "{kind} in {tier}");
    }
    assert_eq!(bytes(&metrics, "client"), [600_000, 200_000]);
    assert_eq!(bytes(&metrics, "local")[1], 500_000);
    assert!(bytes(&metrics, "local")[0] >= 300_000, "{metrics:#?}");
    assert_eq!(bytes(&metrics, "backing"), [300_000, 200_000]);
    let read = "gorego_backing_requests_total{operation=\"read\",outcome=\"ok\"}";
    assert_eq!(metrics.get(read), Some(1));
    let took = "gorego_backing_request_seconds_count{operation=\"read\"}";
    assert_eq!(metrics.get(took), Some(1));
    assert_eq!(metrics.get("gorego_disk_blobs"), Some(2));
    assert_eq!(metrics.get("gorego_disk_results"), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_counted_as_errors_of_the_backing_cache() {
    let peer = FaultyPeer::start();
    let link = Link::to(peer.address());
    let once = "backing_cache.put_retry_count=1";
    let server = Server::in_front_of(&link.grpc_url(), &[TOLD, once]);
    let client = Client::connect(server.address()).await;
    let absent = digest_of(b"absent");
    client.download(&absent).await.unwrap_err();
    link.down();
    let open = "gorego_backing_breaker_transitions_total{state=\"open\"}";
    let opened = async {
        while value(&Metrics::of(server.metrics()).await, open) == 0 {
            client.download(&absent).await.unwrap_err();
        }
    };
    timeout(PATIENCE, opened).await.expect("the breaker opens");
    let metrics = Metrics::of(server.metrics()).await;
    let [hits, misses, errors] = lookups(&metrics, "blob", "client");
    assert_eq!((hits, misses), (0, 1));
    assert!(errors > 0, "{metrics:#?}");
    assert_eq!(lookups(&metrics, "blob", "backing"), [0, 1, errors]);
    let failed = "gorego_backing_requests_total{operation=\"read_batch\",outcome=\"error\"}";
    assert_eq!(metrics.get(failed), Some(errors));
    assert!(value(&metrics, "gorego_backing_outages_total") > 0);
    assert!(value(&metrics, "gorego_backing_retries_total") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn evictions_and_damaged_files_are_counted() {
    let server = Server::start(&[
        TOLD,
        "local_cache.max_size_gb=16MiB",
        "local_cache.min_free=0",
    ]);
    let client = Client::connect(server.address()).await;
    let damaged = [blob(1, 1000), blob(2, 1000)];
    client.batch_upload(&damaged).await.unwrap();
    let [corrupt, lost] = damaged.each_ref().map(|content| {
        let hash = digest_of(content).hash;
        let folder = server.data().join("cas").join(&hash[..2]);
        folder.join(&hash[2..4]).join(hash)
    });
    // The scan removes folders that it finds empty.
    fs::write(corrupt.with_file_name("beside"), "").unwrap();
    fs::remove_file(&lost).unwrap();
    fs::remove_file(&corrupt).unwrap();
    fs::create_dir(&corrupt).unwrap();
    for content in &damaged {
        client.download(&digest_of(content)).await.unwrap_err();
    }
    let metrics = Metrics::of(server.metrics()).await;
    assert_eq!(metrics.get("gorego_quarantined_total"), Some(1));
    assert_eq!(metrics.get("gorego_lost_total"), Some(1));
    assert_eq!(metrics.get("gorego_evicted_blobs_total"), Some(0));
    assert!(!metrics.has("gorego_eviction_age_seconds"));
    assert_eq!(lookups(&metrics, "blob", "local"), [0, 2, 0]);
    for seed in 0..24 {
        client
            .upload_whole(&blob(10 + seed, 1 << 20))
            .await
            .unwrap();
    }
    // Eviction goes on after an upload.
    let metrics = Metrics::wait_for(server.metrics(), |metrics| {
        let evicted = value(metrics, "gorego_evicted_blobs_total");
        value(metrics, "gorego_disk_blobs") + evicted == 24
    })
    .await;
    let evicted = value(&metrics, "gorego_evicted_blobs_total");
    assert!(evicted >= 8, "{metrics:#?}");
    let freed = value(&metrics, "gorego_evicted_bytes_total");
    assert_eq!(freed, evicted << 20);
    assert!(metrics.has("gorego_eviction_age_seconds"));
    // Blobs that were just uploaded are leased.
    assert!(value(&metrics, "gorego_lease_broken_total") > 0);
    let limit = value(&metrics, "gorego_disk_limit_bytes");
    assert_eq!(limit, 16 << 20);
    assert!((1..=limit).contains(&value(&metrics, "gorego_disk_bytes")));
}

/// Returns the metrics in the tables of the README, with the names of their labels.
fn documented() -> Families {
    let readme = fs::read_to_string(project::root().join("README.md")).unwrap();
    let (_, section) = readme.split_once("\n### Metrics\n").expect("a section");
    let (section, _) = section.split_once("\n## ").expect("another section");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.map(|row| row.split(" | ").next().unwrap_or(row));
    let names = cells.flat_map(|cell| cell.split('`').step_by(2));
    let names = names.filter(|name| !name.trim_matches([',', ' ']).is_empty());
    let labelled = |series: &str| {
        let name = series.split('{').next().unwrap_or(series);
        (name.to_owned(), labels_of(series).collect())
    };
    names.map(labelled).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readme_documents_each_metric_with_its_labels_and_no_other() {
    let peer = FaultyPeer::start();
    let small = [
        "local_cache.max_size_gb=16MiB",
        "local_cache.min_free=0",
        // Nothing listens there.
        "telemetry.tracing_endpoint=127.0.0.1:1",
        "execution.enabled=true",
        "execution.run_as_root=true",
        TOLD,
    ];
    let server = Server::in_front_of(&peer.grpc_url(), &small);
    let client = Client::connect(server.address()).await;
    for seed in 0..24 {
        client.upload_whole(&blob(seed, 1 << 20)).await.unwrap();
    }
    // Leases are measured after the scan.
    Metrics::wait_for(server.metrics(), |metrics| {
        metrics.has("gorego_lease_bytes")
    })
    .await;
    let mut exported = families(server.metrics()).await;
    let dir = TempDir::new().unwrap();
    let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let [cert, key] = ["tls.crt", "tls.key"].map(|name| dir.path().join(name));
    fs::write(&cert, signed.cert.pem()).unwrap();
    fs::write(&key, signed.signing_key.serialize_pem()).unwrap();
    let secured = Server::start(&[
        TOLD,
        "tls.enabled=true",
        &format!("tls.cert_file={}", cert.display()),
        &format!("tls.key_file={}", key.display()),
    ]);
    exported.extend(
        families(secured.metrics())
            .await
            .into_iter()
            .filter(|(name, _)| name == "gorego_certificate_expiry_seconds"),
    );
    let [node, _other] = cluster::start::<2>(&[]).await;
    Metrics::wait_for(node.server.metrics(), |metrics| {
        metrics.has("gorego_cluster_link_round_trip_seconds")
    })
    .await;
    let is_of_cluster = |(name, _): &(String, _)| name.starts_with("gorego_cluster_");
    let of_cluster = families(node.server.metrics()).await;
    exported.extend(of_cluster.into_iter().filter(is_of_cluster));
    assert_eq!(exported, documented());
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
