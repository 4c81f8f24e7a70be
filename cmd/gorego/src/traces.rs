//! Traces: the layer that records them, and the collector that they are sent to.

use std::sync::Arc;

use gorego_config::{Telemetry, TracingProtocol};
use gorego_storage::span::Tier;
use gorego_telemetry::{
    spans::Traced,
    traces::{
        Collector, CollectorOptions, EndedSpans, Protocol, SpanLayer, context::Sampling, layer,
    },
};
use gorego_tls::ClientFiles;

use crate::{
    backing::{given, parsed},
    meters::TierStores,
    reload::Reloads,
};

/// An unusable value of a `telemetry.tracing_` key.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.tracing_{0}")]
pub(crate) struct Error(String);

/// Creates the layer that records spans, and their queue, if there is a collector.
pub(crate) fn layer_of(config: &Telemetry) -> Option<(SpanLayer, EndedSpans)> {
    config.tracing_endpoint.as_ref().map(|_| layer())
}

/// Returns the share of calls that are traced, if there is a collector.
pub(crate) fn sampling(config: &Telemetry) -> Option<Sampling> {
    let is_on = config.tracing_endpoint.is_some();
    is_on.then(|| Sampling::new(config.tracing_sample_ratio))
}

/// Wraps the stores of a tier so that each operation for a traced call has a span, if there is a collector.
pub(crate) fn traced(config: &Telemetry, tier: Tier, (blobs, actions): TierStores) -> TierStores {
    if config.tracing_endpoint.is_none() {
        return (blobs, actions);
    }
    let blobs = Traced::new(tier, blobs);
    (Arc::new(blobs), Arc::new(Traced::new(tier, actions)))
}

/// Creates the collector. Does not contact it.
pub(crate) fn collector(
    config: &Telemetry,
    reloads: &mut Reloads,
) -> Result<Option<Collector>, Error> {
    let Some(endpoint) = &config.tracing_endpoint else {
        return Ok(None);
    };
    let file = given(&config.tracing_headers_file);
    let configured = config.tracing_headers.clone();
    let headers = reloads.read(file.iter().cloned().collect(), move || {
        let parsed = parsed(&configured, file.as_deref(), None).map_err(Error)?;
        Ok::<_, Error>(parsed.map().clone())
    })?;
    let files = ClientFiles {
        ca_file: given(&config.tracing_ca_file),
        identity: None,
    };
    let load = move || files.load().map_err(|why| Error(why.to_string()));
    let tls = endpoint.tls.then(|| {
        let watched = given(&config.tracing_ca_file).into_iter().collect();
        reloads.read(watched, load)
    });
    let options = CollectorOptions {
        address: endpoint.address.clone(),
        path: endpoint.path.clone(),
        protocol: match config.tracing_protocol {
            TracingProtocol::Grpc => Protocol::Grpc,
            TracingProtocol::Http => Protocol::Http,
        },
        tls: tls.transpose()?,
        headers,
    };
    let collector = Collector::new(options);
    let error = |why| Error(format!("endpoint = {endpoint}: {why}"));
    collector.map(Some).map_err(error)
}
