//! Tests of the exported names and values.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use gorego_storage::{ScrubReport, Usage};

use super::*;

fn sources() -> Sources {
    Sources::new("1.2.3")
}

/// The lines with values.
fn samples(metrics: &Metrics) -> Vec<String> {
    let (_, text) = metrics.expose("").unwrap();
    let samples = text.lines().filter(|line| line.starts_with(PREFIX));
    samples.map(str::to_owned).collect()
}

#[test]
fn metrics_of_a_backing_cache_are_left_out_if_there_is_none() {
    let metrics = Metrics::new(sources());
    assert_eq!(
        samples(&metrics),
        ["gorego_build_info{version=\"1.2.3\"} 1"]
    );
}

#[test]
fn each_request_reads_the_current_values() {
    let (state, breaker) = watch::channel(BreakerState::Closed);
    let pending = Arc::new(Mutex::new(PendingWrites::default()));
    let read = Arc::clone(&pending);
    let metrics = Metrics::new(Sources {
        breaker: Some(breaker),
        journal: Some(Box::new(move || *read.lock().unwrap())),
        ..sources()
    });
    let now = |[closed, open, half_open]: [u8; 3], [blobs, results, bytes]: [u64; 3]| {
        let state = "gorego_backing_cache_breaker_state{state=";
        assert_eq!(
            samples(&metrics)[1..],
            [
                format!("{state}\"closed\"}} {closed}"),
                format!("{state}\"open\"}} {open}"),
                format!("{state}\"half_open\"}} {half_open}"),
                format!("gorego_backing_cache_journal_blobs {blobs}"),
                format!("gorego_backing_cache_journal_results {results}"),
                format!("gorego_backing_cache_journal_bytes {bytes}"),
            ]
        );
    };
    now([1, 0, 0], [0, 0, 0]);
    state.send_replace(BreakerState::Open);
    *pending.lock().unwrap() = PendingWrites {
        blobs: 2,
        results: 1,
        bytes: 1 << 40,
    };
    now([0, 1, 0], [2, 1, 1 << 40]);
    state.send_replace(BreakerState::HalfOpen);
    now([0, 0, 1], [2, 1, 1 << 40]);
}

#[test]
fn each_certificate_has_one_series_with_its_expiry() {
    let of = |subject: &str, expiry| Certificate {
        role: "server",
        file: "/etc/\"gorego\"/tls.crt".into(),
        subject: subject.to_owned(),
        serial: "0a:0b".to_owned(),
        expiry,
    };
    let all = vec![of("CN=b", -1), of("CN=a", 1 << 33), of("CN=b", -1)];
    let metrics = Metrics::new(Sources {
        certificates: Box::new(move || all.clone()),
        ..sources()
    });
    let labels = "role=\"server\",file=\"/etc/\\\"gorego\\\"/tls.crt\",subject=";
    let name = format!("gorego_certificate_expiry_seconds{{{labels}");
    let serial = ",serial=\"0a:0b\"}";
    assert_eq!(
        samples(&metrics)[1..],
        [
            format!("{name}\"CN=a\"{serial} 8589934592"),
            format!("{name}\"CN=b\"{serial} -1"),
        ]
    );
}

#[test]
fn the_accept_header_selects_the_format() {
    let metrics = Metrics::new(Sources {
        journal: Some(Box::new(PendingWrites::default)),
        ..sources()
    });
    for accept in [
        "application/openmetrics-text",
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2",
        // Of Prometheus.
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
         application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,\
         text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    ] {
        let (content_type, text) = metrics.expose(accept).unwrap();
        assert_eq!(content_type, OPEN_METRICS, "{accept}");
        let unit = "# UNIT gorego_backing_cache_journal_bytes bytes\n";
        assert!(text.contains(unit), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
    for accept in [
        "",
        "*/*",
        "text/plain;version=0.0.4",
        "application/openmetrics-text; Q=0, */*",
        "application/openmetrics-text;q=much",
        "application/openmetrics-text-2",
        // Of a Prometheus that prefers its older format.
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.9",
        "application/openmetrics-text;q=0.5, text/*;q=0.6, */*;q=0.1",
    ] {
        let (content_type, text) = metrics.expose(accept).unwrap();
        assert!(content_type.starts_with("text/plain; version=0.0.4"));
        assert!(!text.contains("# EOF"), "{text}");
    }
}

/// A report with a different number in each place.
fn report() -> DiskReport {
    DiskReport {
        usage: Usage {
            used: 1,
            limit: 2,
            free_on_disk: Some(3),
            idle_uploads: 4,
            scanning: true,
            ..Usage::default()
        },
        blobs: 5,
        results: 6,
        unverified: 7,
        uploads: 8,
        waiting: 9,
        leased: Some(10),
        leases_broken: 11,
        evicted_blobs: 12,
        evicted_results: 13,
        evicted_bytes: 14,
        eviction_age: Some(Duration::from_millis(15_500)),
        quarantined: 16,
        lost: 17,
        idle_removed: 18,
        scanned: 19,
        scrub: Some(ScrubReport {
            files: 20,
            bytes: 21,
            pass_start: Duration::from_secs(22),
        }),
    }
}

#[test]
fn the_state_of_the_local_tier_has_a_metric_for_each_number() {
    let metrics = Metrics::new(Sources {
        disk: Some(Box::new(report)),
        ..sources()
    });
    let expected = [
        "disk_bytes 1",
        "disk_limit_bytes 2",
        "disk_free_bytes 3",
        "partial_upload_bytes 4",
        "disk_blobs 5",
        "disk_results 6",
        "disk_unverified_blobs 7",
        "inflight_uploads 8",
        "inflight_uploads_waiting 9",
        "lease_bytes 10",
        "lease_broken_total 11",
        "evicted_blobs_total 12",
        "evicted_results_total 13",
        "evicted_bytes_total 14",
        "eviction_age_seconds 15.5",
        "quarantined_total 16",
        "lost_total 17",
        "partial_uploads_removed_total 18",
        "scan_files_total 19",
        "scan_running 1",
        "scrub_files_total 20",
        "scrub_bytes_total 21",
        "scrub_pass_start_time_seconds 22.0",
    ];
    let mut expected = expected.map(|line| format!("gorego_{line}"));
    expected.sort_unstable();
    let mut samples = samples(&metrics);
    samples.remove(0);
    samples.sort_unstable();
    assert_eq!(samples, expected);
}

#[test]
fn numbers_that_are_not_known_yet_are_left_out() {
    let metrics = Metrics::new(Sources {
        disk: Some(Box::new(DiskReport::default)),
        ..sources()
    });
    let samples = samples(&metrics).join("\n");
    for name in ["disk_free", "eviction_age", "lease_bytes", "scrub"] {
        assert!(!samples.contains(name), "{samples}");
    }
}

#[test]
fn each_tier_has_its_lookups_and_bytes() {
    let [client, local, backing] = [(); 3].map(|()| Arc::<Traffic>::default());
    client.add_read(7);
    backing.add_written(9);
    backing.add_presence(5, 2);
    client.results.record(&Ok(()));
    let metrics = Metrics::new(Sources {
        tiers: vec![("client", client), ("local", local), ("backing", backing)],
        ..sources()
    });
    let samples = samples(&metrics);
    let lookups = "gorego_presence_checks_total{tier=";
    let presence = samples.iter().filter(|line| line.starts_with(lookups));
    assert_eq!(presence.count(), 4, "not of the local tier");
    for expected in [
        "blob_bytes_total{tier=\"client\",direction=\"read\"} 7",
        "blob_bytes_total{tier=\"backing\",direction=\"write\"} 9",
        "presence_checks_total{tier=\"backing\",outcome=\"present\"} 3",
        "presence_checks_total{tier=\"backing\",outcome=\"missing\"} 2",
        "cache_lookups_total{kind=\"result\",tier=\"client\",outcome=\"hit\"} 1",
        "cache_lookups_total{kind=\"result\",tier=\"backing\",outcome=\"incomplete\"} 0",
    ] {
        let expected = format!("gorego_{expected}");
        assert!(samples.contains(&expected), "{samples:#?}");
    }
}

#[tokio::test]
async fn calls_of_the_backing_cache_and_the_memory_are_exported() {
    let budget = Budget::memory("tests", 1 << 20);
    let _permit = budget.reserve(1 << 18).await.unwrap();
    let transitions = [
        BreakerState::Open,
        BreakerState::Closed,
        BreakerState::HalfOpen,
    ];
    let metrics = Metrics::new(Sources {
        backing_calls: Some(Arc::default()),
        backing: Some(Box::new(move || BackingReport {
            transitions: transitions.map(|state| (state, u64::from(state == BreakerState::Open))),
            outages: 2,
            retries: 3,
            inflight: 4,
        })),
        budgets: vec![("pieces", budget)],
        files: Some(Budget::count("files", 5)),
        ..sources()
    });
    let samples = samples(&metrics);
    for expected in [
        "backing_requests_total{operation=\"get_result\",outcome=\"error\"} 0",
        "backing_request_seconds_count{operation=\"read_batch\"} 0",
        "backing_breaker_transitions_total{state=\"open\"} 1",
        "backing_breaker_transitions_total{state=\"half_open\"} 0",
        "backing_outages_total 2",
        "backing_retries_total 3",
        "inflight_backing_calls 4",
        "budget_used_bytes{budget=\"pieces\"} 262144",
        "budget_limit_bytes{budget=\"pieces\"} 1048576",
        "budget_waiting_connections{budget=\"pieces\"} 0",
        "inflight_files 0",
        "inflight_files_limit 5",
    ] {
        let expected = format!("gorego_{expected}");
        assert!(samples.contains(&expected), "{expected}: {samples:#?}");
    }
}

#[tokio::test]
async fn the_process_and_its_runtime_are_exported_by_conventional_names() {
    let metrics = Metrics::new(Sources {
        runtime: Some(Handle::current()),
        ..sources()
    });
    let (_, text) = metrics.expose("").unwrap();
    let value = |name: &str| -> f64 {
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value
            .unwrap_or_else(|| panic!("{name}: {text}"))
            .parse()
            .unwrap()
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let age = now.unwrap().as_secs_f64() - value("process_start_time_seconds");
    assert!((-2.0..86_400.0).contains(&age), "started {age} s ago");
    assert!(value("process_cpu_seconds_total") >= 0.0);
    let resident = value("process_resident_memory_bytes");
    assert!(resident > 1e6 && value("process_virtual_memory_bytes") >= resident);
    assert!((3.0..=value("process_max_fds")).contains(&value("process_open_fds")));
    for (name, least) in [
        ("workers", 1.0),
        ("alive_tasks", 0.0),
        ("global_queue_depth", 0.0),
    ] {
        assert!(value(&format!("gorego_tokio_{name}")) >= least);
    }
    assert!(value("gorego_tokio_busy_seconds_total") >= 0.0);
}
