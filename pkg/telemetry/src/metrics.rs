//! The metrics, their names, and their text formats.

use std::{collections::BTreeMap, fmt};

use gorego_storage::BreakerState;
use gorego_tls::Certificate;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, prometheus_text, text},
    metrics::{MetricType, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};
use tokio::sync::watch;

use crate::Calls;

/// The beginning of every metric's name.
const PREFIX: &str = "gorego";
/// The content type of OpenMetrics 1.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The writes that wait for the backing cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingWrites {
    /// The number of blobs.
    pub blobs: u64,
    /// The number of action results.
    pub results: u64,
    /// The bytes that both count against `backing_cache.journal_max`.
    pub bytes: u64,
}

/// The values of the metrics. A metric without a source is left out. The functions are called at each
/// request, and must not block.
pub struct Sources {
    /// The version of gorego.
    pub version: &'static str,
    /// The state of the backing cache's circuit breaker.
    pub breaker: Option<watch::Receiver<BreakerState>>,
    /// The certificates in the files of `tls` and `backing_cache.tls`.
    pub certificates: Box<dyn Fn() -> Vec<Certificate> + Send + Sync>,
    /// The writes that wait for the backing cache.
    pub journal: Option<Box<dyn Fn() -> PendingWrites + Send + Sync>>,
    /// The calls of clients.
    pub calls: Calls,
}

/// The registry of all metrics.
#[derive(Debug)]
pub struct Metrics(Registry);

impl Metrics {
    /// Registers the metrics that have a source.
    pub fn new(sources: Sources) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let build = Info::new([("version", sources.version)]);
        registry.register("build", "The version of gorego.", build);
        let mut add = |encode: Encode| registry.register_collector(Box::new(Source(encode)));
        if let Some(state) = sources.breaker {
            add(Box::new(move |encoder| breaker(encoder, *state.borrow())));
        }
        let certificates = sources.certificates;
        add(Box::new(move |encoder| expiry(encoder, certificates())));
        if let Some(read) = sources.journal {
            add(Box::new(move |encoder| journal(encoder, read())));
        }
        let requests = sources.calls.requests;
        add(Box::new(move |encoder| requests.encode(encoder)));
        Self(registry)
    }

    /// Encodes the current values, as OpenMetrics if `accept` names it, else in the older format of
    /// Prometheus. Returns the content type and the text.
    pub(crate) fn expose(&self, accept: &str) -> Result<(&'static str, String), fmt::Error> {
        let mut text = String::new();
        if accept.contains("application/openmetrics-text") {
            text::encode(&mut text, &self.0)?;
            return Ok((OPEN_METRICS, text));
        }
        prometheus_text::encode(&mut text, &self.0)?;
        Ok((prometheus_text::CONTENT_TYPE, text))
    }
}

type Encode = Box<dyn Fn(DescriptorEncoder<'_>) -> fmt::Result + Send + Sync>;

/// A function that reads and encodes values at each request.
struct Source(Encode);

impl Collector for Source {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)(encoder)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

fn breaker(mut encoder: DescriptorEncoder<'_>, now: BreakerState) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "backing_cache_breaker_state",
        "1 for the state of the backing cache's circuit breaker: closed, calls are made; open, \
         they fail at once; half_open, one call tests the cache.",
        None,
        MetricType::Gauge,
    )?;
    for (name, state) in [
        ("closed", BreakerState::Closed),
        ("open", BreakerState::Open),
        ("half_open", BreakerState::HalfOpen),
    ] {
        let gauge = ConstGauge::new(u64::from(now == state));
        gauge.encode(family.encode_family(&[("state", name)])?)?;
    }
    Ok(())
}

fn expiry(mut encoder: DescriptorEncoder<'_>, certificates: Vec<Certificate>) -> fmt::Result {
    let labelled = certificates.into_iter().map(|found| {
        let file = found.file.to_string_lossy().into_owned();
        let labels = [
            ("role", found.role.to_owned()),
            ("file", file),
            ("subject", found.subject),
            ("serial", found.serial),
        ];
        (labels, found.expiry)
    });
    // A file may hold a certificate twice, but a series must not repeat.
    let unique: BTreeMap<_, _> = labelled.collect();
    if unique.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(
        "certificate_expiry",
        "The end of a certificate in a file of tls or backing_cache.tls, in Unix time.",
        Some(&Unit::Seconds),
        MetricType::Gauge,
    )?;
    for (labels, expiry) in unique {
        ConstGauge::new(expiry).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn journal(mut encoder: DescriptorEncoder<'_>, pending: PendingWrites) -> fmt::Result {
    for (name, help, unit, value) in [
        (
            "backing_cache_journal_blobs",
            "Blobs that wait for the backing cache.",
            None,
            pending.blobs,
        ),
        (
            "backing_cache_journal_results",
            "Action results that wait for the backing cache.",
            None,
            pending.results,
        ),
        (
            "backing_cache_journal",
            "Bytes that pending writes count against backing_cache.journal_max.",
            Some(&Unit::Bytes),
            pending.bytes,
        ),
    ] {
        let gauge = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        ConstGauge::new(value).encode(gauge)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn sources() -> Sources {
        Sources {
            version: "1.2.3",
            breaker: None,
            certificates: Box::new(Vec::new),
            journal: None,
            calls: Calls::default(),
        }
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
}
