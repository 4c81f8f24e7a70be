//! Tests of the exported names and values.

use std::sync::{Arc, Mutex};

use super::*;

fn sources() -> Sources {
    Sources::new("1.2.3")
}

/// The lines with values.
fn samples(metrics: &Metrics) -> Vec<String> {
    let (_, text) = metrics.expose("").unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
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
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
    let (content_type, text) = metrics.expose(accept).unwrap();
    assert_eq!(content_type, OPEN_METRICS);
    let unit = "# UNIT gorego_backing_cache_journal_bytes bytes\n";
    assert!(text.contains(unit), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    for accept in ["", "*/*", "text/plain;version=0.0.4"] {
        let (content_type, text) = metrics.expose(accept).unwrap();
        assert!(content_type.starts_with("text/plain; version=0.0.4"));
        assert!(!text.contains("# EOF"), "{text}");
    }
}
