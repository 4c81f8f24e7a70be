//! Traces: the spans of sampled calls, sent to a collector (OTLP).

mod collector;
pub mod context;
mod export;
pub mod handed_over;
mod ids;
pub mod request;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gorego_storage::span;
use opentelemetry::{Context, trace::TracerProvider as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Sampler, SdkTracerProvider, Span, SpanData, SpanProcessor},
};
use tokio::sync::mpsc;
use tracing::{Level, Metadata};
use tracing_subscriber::{Layer, Registry, filter::filter_fn};

use crate::logs;

pub use self::collector::{Collector, CollectorOptions, Protocol};

/// The most ended spans that wait for the collector, some 8 MiB. Beyond it, spans are dropped and counted.
const QUEUE: usize = 4096;

/// Spans that ended, on their way to the collector.
#[derive(Debug)]
pub struct EndedSpans {
    spans: mpsc::Receiver<SpanData>,
    dropped: Arc<AtomicU64>,
}

impl EndedSpans {
    /// Returns the number of spans dropped so far.
    pub fn dropped(&self) -> impl Fn() -> u64 + Send + Sync + use<> {
        let dropped = Arc::clone(&self.dropped);
        move || dropped.load(Ordering::Relaxed)
    }
}

/// The layer of `tracing` that records spans, and log lines of `info` and above as their events.
pub type SpanLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Creates the layer that records spans, and the queue of those that ended.
pub fn layer() -> (SpanLayer, EndedSpans) {
    let (sender, spans) = mpsc::channel(QUEUE);
    let dropped = Arc::<AtomicU64>::default();
    let queue = Queue {
        sender,
        dropped: Arc::clone(&dropped),
    };
    let provider = SdkTracerProvider::builder()
        .with_span_processor(queue)
        // Only sampled calls have spans.
        .with_sampler(Sampler::AlwaysOn)
        .with_id_generator(ids::TraceIds)
        .with_resource(Resource::builder_empty().build())
        .build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("gorego"))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_level(false)
        .with_tracked_inactivity(false)
        .with_context_activation(false)
        // With the level, since without one every event of every library would be evaluated.
        .with_filter(filter_fn(is_recorded).with_max_level_hint(Level::INFO));
    (layer.boxed(), EndedSpans { spans, dropped })
}

fn is_recorded(metadata: &Metadata<'_>) -> bool {
    if metadata.is_span() {
        metadata.target() == span::TARGET
    } else {
        // The span of a request has the fields of the access log.
        *metadata.level() <= Level::INFO && metadata.target() != logs::ACCESS
    }
}

/// The queue's entrance. It never waits.
struct Queue {
    sender: mpsc::Sender<SpanData>,
    dropped: Arc<AtomicU64>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.sender.try_send(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}
