//! The metrics, by name, and the texts that they are told in.

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

/// Before every name.
const PREFIX: &str = "gorego";
/// Of OpenMetrics 1.0; the other format's is the library's.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What waits for the backing cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// How many blobs.
    pub blobs: u64,
    /// How many action results.
    pub results: u64,
    /// What they count for together, in bytes.
    pub bytes: u64,
}

/// Where the values are. What a server does not have is not told of.
pub struct Sources {
    /// Which gorego this is.
    pub version: &'static str,
    /// Whether the backing cache is asked at all.
    pub breaker: Option<watch::Receiver<BreakerState>>,
    /// The certificates of both sides. Called each time, as the next one is.
    pub certificates: Box<dyn Fn() -> Vec<Certificate> + Send + Sync>,
    /// What waits for it. Called each time, so it should neither block nor take long.
    pub journal: Option<Box<dyn Fn() -> Waiting + Send + Sync>>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("version", &self.version)
            .field("breaker", &self.breaker)
            .finish_non_exhaustive()
    }
}

/// All that can be asked for.
#[derive(Debug)]
pub struct Metrics(Registry);

/// Metrics as a text.
#[derive(Debug)]
pub(crate) struct Exposition {
    pub(crate) content_type: &'static str,
    pub(crate) text: String,
}

impl Metrics {
    /// Those that have a source.
    pub fn new(sources: Sources) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let build = Info::new([("version", sources.version)]);
        registry.register("build", "Which gorego this is", build);
        if let Some(state) = sources.breaker {
            registry.register_collector(Box::new(Breaker(state)));
        }
        registry.register_collector(Box::new(Certificates(sources.certificates)));
        if let Some(read) = sources.journal {
            registry.register_collector(Box::new(Journal(read)));
        }
        Self(registry)
    }

    /// Their values now: in the format of OpenMetrics for whoever accepts that, else in the older
    /// one of Prometheus, which everybody reads.
    pub(crate) fn expose(&self, accept: &str) -> Result<Exposition, fmt::Error> {
        let mut text = String::new();
        let content_type = if accept.contains("application/openmetrics-text") {
            text::encode(&mut text, &self.0)?;
            OPEN_METRICS
        } else {
            prometheus_text::encode(&mut text, &self.0)?;
            prometheus_text::CONTENT_TYPE
        };
        Ok(Exposition { content_type, text })
    }
}

#[derive(Debug)]
struct Breaker(watch::Receiver<BreakerState>);

impl Collector for Breaker {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "backing_cache_breaker_state",
            "Whether the backing cache is asked: closed, calls are made; open, they fail at once; \
             half_open, one call finds out. 1 for the state that it is in.",
            None,
            MetricType::Gauge,
        )?;
        let now = *self.0.borrow();
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
}

struct Certificates(Box<dyn Fn() -> Vec<Certificate> + Send + Sync>);

impl Collector for Certificates {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // A file may have a certificate twice, but a metric no value.
        let unique = (self.0)().into_iter().map(|found| {
            let Certificate { expiry, role, .. } = found;
            let file = found.file.to_string_lossy().into_owned();
            ([role.to_owned(), file, found.subject, found.serial], expiry)
        });
        let unique: BTreeMap<_, _> = unique.collect();
        if unique.is_empty() {
            return Ok(());
        }
        let mut family = encoder.encode_descriptor(
            "certificate_expiry",
            "The end of a certificate in a file of tls or backing_cache.tls, in Unix time.",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for ([role, file, subject, serial], expiry) in unique {
            let labels = [
                ("role", role),
                ("file", file),
                ("subject", subject),
                ("serial", serial),
            ];
            ConstGauge::new(expiry).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Certificates").field(&(self.0)()).finish()
    }
}

struct Journal(Box<dyn Fn() -> Waiting + Send + Sync>);

impl Collector for Journal {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Waiting {
            blobs,
            results,
            bytes,
        } = (self.0)();
        let mut gauge = |name, help, unit: Option<Unit>, value| {
            let unit = unit.as_ref();
            let gauge = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            ConstGauge::new(value).encode(gauge)
        };
        gauge(
            "backing_cache_journal_blobs",
            "Blobs that wait for the backing cache.",
            None,
            blobs,
        )?;
        gauge(
            "backing_cache_journal_results",
            "Action results that wait for the backing cache.",
            None,
            results,
        )?;
        gauge(
            "backing_cache_journal",
            "What waits for the backing cache, as backing_cache.journal_max counts it.",
            Some(Unit::Bytes),
            bytes,
        )
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Journal").field(&(self.0)()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn lone() -> Sources {
        Sources {
            version: "1.2.3",
            breaker: None,
            certificates: Box::new(Vec::new),
            journal: None,
        }
    }

    /// The lines with values.
    fn samples(metrics: &Metrics) -> Vec<String> {
        let text = metrics.expose("").unwrap().text;
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.map(str::to_owned).collect()
    }

    #[test]
    fn a_server_without_a_backing_cache_tells_nothing_of_one() {
        let metrics = Metrics::new(lone());
        assert_eq!(
            samples(&metrics),
            ["gorego_build_info{version=\"1.2.3\"} 1"]
        );
    }

    #[test]
    fn values_are_those_of_the_time_of_asking() {
        let (state, breaker) = watch::channel(BreakerState::Closed);
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let read = Arc::clone(&waiting);
        let metrics = Metrics::new(Sources {
            breaker: Some(breaker),
            journal: Some(Box::new(move || *read.lock().unwrap())),
            ..lone()
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
        *waiting.lock().unwrap() = Waiting {
            blobs: 2,
            results: 1,
            bytes: 1 << 40,
        };
        now([0, 1, 0], [2, 1, 1 << 40]);
        state.send_replace(BreakerState::HalfOpen);
        now([0, 0, 1], [2, 1, 1 << 40]);
    }

    #[test]
    fn each_certificate_is_told_once_with_its_end() {
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
            ..lone()
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
    fn each_scraper_gets_the_format_that_it_reads() {
        let metrics = Metrics::new(Sources {
            journal: Some(Box::new(Waiting::default)),
            ..lone()
        });
        let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
        let open = metrics.expose(accept).unwrap();
        assert_eq!(open.content_type, OPEN_METRICS);
        let unit = "# UNIT gorego_backing_cache_journal_bytes bytes\n";
        assert!(open.text.contains(unit), "{}", open.text);
        assert!(open.text.ends_with("# EOF\n"), "{}", open.text);
        for accept in ["", "*/*", "text/plain;version=0.0.4"] {
            let plain = metrics.expose(accept).unwrap();
            assert!(plain.content_type.starts_with("text/plain; version=0.0.4"));
            assert!(!plain.text.contains("# EOF"), "{}", plain.text);
        }
    }
}
