//! The metrics, their names, and their text formats.

mod backing;
mod budgets;
mod certificates;
mod cluster;
mod disk;
mod encode;
mod execution;
mod process;
mod traffic;

use std::{fmt, sync::Arc};

use gorego_limits::Budget;
use gorego_storage::{BackingReport, BreakerState, DiskReport, Traffic};
use gorego_tls::Certificate;
use prometheus_client::{
    encoding::{prometheus_text, text},
    metrics::info::Info,
    registry::Registry,
};
use tokio::{runtime::Handle, sync::watch};

pub use self::cluster::{ClusterReport, StartTimes};
use self::encode::{Encode, Metric, Source};
pub use self::execution::{Execution, ExecutionReport};
use crate::{BackingCalls, Calls};

/// The beginning of the name of every metric but those of the process.
const PREFIX: &str = "gorego";
/// The beginning of the names that all programs use for their process.
const PROCESS: &str = "process";
const SPANS_DROPPED: Metric = Metric::new(
    "spans_dropped",
    "Spans of traces that the collector did not get, because it was down or too slow.",
);
/// The content type of OpenMetrics 1.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The writes that wait for the backing cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
    /// The tiers by their labels.
    pub tiers: Vec<(&'static str, Arc<Traffic>)>,
    /// The calls of the backing cache.
    pub backing_calls: Option<Arc<BackingCalls>>,
    /// The state of the calls to the backing cache.
    pub backing: Option<Box<dyn Fn() -> BackingReport + Send + Sync>>,
    /// The state of the local tier.
    pub disk: Option<Box<dyn Fn() -> DiskReport + Send + Sync>>,
    /// The parts of the memory by their labels.
    pub budgets: Vec<(&'static str, Budget)>,
    /// The files open for reads and uploads.
    pub files: Option<Budget>,
    /// The numbers of the executor, if actions are executed.
    pub execution: Option<Execution>,
    /// The numbers of the cluster, if there is one.
    pub cluster: Option<Box<dyn Fn() -> ClusterReport + Send + Sync>>,
    /// The number of spans that were dropped, if there is a collector of traces.
    pub spans_dropped: Option<Box<dyn Fn() -> u64 + Send + Sync>>,
    /// The runtime that serves.
    pub runtime: Option<Handle>,
}

impl Sources {
    /// Returns the sources of a server without any part that is measured.
    pub fn new(version: &'static str) -> Self {
        Self {
            version,
            breaker: None,
            certificates: Box::new(Vec::new),
            journal: None,
            tiers: Vec::new(),
            backing_calls: None,
            backing: None,
            disk: None,
            budgets: Vec::new(),
            files: None,
            execution: None,
            cluster: None,
            spans_dropped: None,
            runtime: None,
            calls: Calls::default(),
        }
    }
}

impl Sources {
    /// Returns the functions that encode the metrics that have a source.
    fn encoders(self) -> Vec<Encode> {
        let Self {
            certificates,
            calls,
            tiers,
            budgets,
            ..
        } = self;
        let mut all: Vec<Encode> = vec![
            Box::new(move |encoder| calls.requests.encode(encoder.0)),
            Box::new(move |encoder| certificates::encode(encoder, certificates())),
        ];
        if !tiers.is_empty() {
            all.push(Box::new(move |encoder| traffic::tiers(encoder, &tiers)));
        }
        if let Some(read) = self.disk {
            all.push(Box::new(move |encoder| disk::encode(encoder, &read())));
        }
        if let Some(state) = self.breaker {
            let now = move || *state.borrow();
            all.push(Box::new(move |encoder| backing::breaker(encoder, now())));
        }
        if let Some(read) = self.journal {
            all.push(Box::new(move |encoder| backing::journal(encoder, read())));
        }
        if let Some(calls) = self.backing_calls {
            all.push(Box::new(move |encoder| traffic::calls(encoder, &calls)));
        }
        if let Some(read) = self.backing {
            all.push(Box::new(move |encoder| backing::report(encoder, &read())));
        }
        if !budgets.is_empty() {
            all.push(Box::new(move |encoder| budgets::memory(encoder, &budgets)));
        }
        if let Some(files) = self.files {
            all.push(Box::new(move |encoder| budgets::files(encoder, &files)));
        }
        if let Some(sources) = self.execution {
            all.push(Box::new(move |encoder| {
                execution::encode(encoder, &sources)
            }));
        }
        if let Some(read) = self.cluster {
            all.push(Box::new(move |encoder| cluster::encode(encoder, &read())));
        }
        if let Some(read) = self.spans_dropped {
            all.push(Box::new(move |mut encoder| {
                encoder.counter(SPANS_DROPPED, read())
            }));
        }
        if let Some(runtime) = self.runtime {
            all.push(Box::new(move |encoder| process::runtime(encoder, &runtime)));
        }
        all
    }
}

/// The registry of all metrics.
#[derive(Debug)]
pub struct Metrics(Registry);

impl Metrics {
    /// Registers the metrics that have a source.
    pub fn new(sources: Sources) -> Self {
        let mut all = Registry::default();
        let boot = process::boot();
        let process: Encode = Box::new(move |encoder| process::process(encoder, boot));
        all.sub_registry_with_prefix(PROCESS)
            .register_collector(Box::new(Source(process)));
        let registry = all.sub_registry_with_prefix(PREFIX);
        let build = Info::new([("version", sources.version)]);
        registry.register("build", "The version of gorego.", build);
        for encode in sources.encoders() {
            registry.register_collector(Box::new(Source(encode)));
        }
        Self(all)
    }

    /// Encodes the current values, as OpenMetrics if `accept` (RFC 9110, 12.5.1) names it and prefers no other text,
    /// else in the older format of Prometheus. Returns the content type and the text.
    pub(crate) fn expose(&self, accept: &str) -> Result<(&'static str, String), fmt::Error> {
        let mut text = String::new();
        let open_metrics = weight(accept, &["application/openmetrics-text"]);
        if open_metrics > 0.0 && open_metrics >= weight(accept, &["text/plain", "text/*", "*/*"]) {
            text::encode(&mut text, &self.0)?;
            return Ok((OPEN_METRICS, text));
        }
        prometheus_text::encode(&mut text, &self.0)?;
        Ok((prometheus_text::CONTENT_TYPE, text))
    }
}

/// Returns the weight that `accept` gives to the first of these media ranges that it names, from 0 to 1; 0 if it names
/// none.
fn weight(accept: &str, ranges: &[&str]) -> f32 {
    let of_range = |range: &&str| {
        let items = accept.split(',').filter_map(|item| {
            let mut parts = item.split(';').map(str::trim);
            parts
                .next()
                .filter(|name| name.eq_ignore_ascii_case(range))?;
            let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
            Some(weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0)))
        });
        items.reduce(f32::max)
    };
    ranges.iter().find_map(of_range).unwrap_or(0.0)
}

#[cfg(test)]
mod tests;
