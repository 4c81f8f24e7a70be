//! The metrics, their names, and their text formats.

mod backing;
mod certificates;
mod encode;
mod traffic;

use std::{fmt, sync::Arc};

use gorego_storage::{BreakerState, Traffic};
use gorego_tls::Certificate;
use prometheus_client::{
    encoding::{prometheus_text, text},
    metrics::info::Info,
    registry::Registry,
};
use tokio::sync::watch;

use self::encode::{Encode, Source};
use crate::{BackingCalls, Calls};

/// The beginning of every metric's name.
const PREFIX: &str = "gorego";
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
            calls: Calls::default(),
        }
    }
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
            add(Box::new(move |encoder| {
                backing::breaker(encoder, *state.borrow())
            }));
        }
        let certificates = sources.certificates;
        add(Box::new(move |encoder| {
            certificates::encode(encoder, certificates())
        }));
        if let Some(read) = sources.journal {
            add(Box::new(move |encoder| backing::journal(encoder, read())));
        }
        let tiers = sources.tiers;
        if !tiers.is_empty() {
            add(Box::new(move |encoder| traffic::tiers(encoder, &tiers)));
        }
        if let Some(calls) = sources.backing_calls {
            add(Box::new(move |encoder| traffic::calls(encoder, &calls)));
        }
        let requests = sources.calls.requests;
        add(Box::new(move |encoder| requests.encode(encoder.0)));
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

#[cfg(test)]
mod tests;
