//! Delivery of ended spans to the collector: in batches, with retries, and for a limited time at shutdown.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use opentelemetry::KeyValue;
use opentelemetry_proto::{
    tonic::collector::trace::v1::ExportTraceServiceRequest,
    transform::{
        common::tonic::ResourceAttributesWithSchema,
        trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{Resource, trace::SpanData};
use prost::Message as _;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Collector, EndedSpans, QUEUE, collector::Failure};

/// The most spans of a request.
const BATCH: usize = 512;
/// The longest time that a span waits for others.
const DELAY: Duration = Duration::from_secs(2);
/// The first and the longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The time in which the last spans are sent at shutdown.
const FLUSH: Duration = Duration::from_secs(2);

/// Describes this server, as part of each request.
fn resource(version: &'static str) -> ResourceAttributesWithSchema {
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let resource = Resource::builder_empty()
        .with_service_name("gorego")
        .with_attributes([
            KeyValue::new("service.version", version),
            KeyValue::new("host.name", host),
        ])
        .build();
    (&resource).into()
}

/// The delivery of spans to a collector.
struct Export {
    queue: EndedSpans,
    collector: Collector,
    resource: ResourceAttributesWithSchema,
    /// True while the collector does not accept spans, which is logged once.
    is_failing: bool,
    pause: Duration,
}

impl EndedSpans {
    /// Sends spans to the collector until the shutdown, and then the last ones for at most two seconds.
    pub async fn export(
        self,
        collector: Collector,
        version: &'static str,
        shutdown: CancellationToken,
    ) {
        let mut export = Export {
            queue: self,
            collector,
            resource: resource(version),
            is_failing: false,
            pause: PAUSE.0,
        };
        let mut batch = Vec::new();
        shutdown.run_until_cancelled(export.run(&mut batch)).await;
        if timeout(FLUSH, export.flush(&mut batch)).await.is_err() {
            export.drop_spans(batch.len() + export.queue.spans.len());
        }
    }
}

impl Export {
    /// Sends batches. When cancelled, `batch` has the spans that may not have been sent.
    async fn run(&mut self, batch: &mut Vec<SpanData>) {
        while self.queue.spans.recv_many(batch, BATCH).await > 0 {
            let spans = &mut self.queue.spans;
            let fill = async {
                while batch.len() < BATCH && spans.recv_many(batch, BATCH - batch.len()).await > 0 {
                }
            };
            let _ = timeout(DELAY, fill).await;
            while let Err(Failure { is_temporary, .. }) = self.send(batch).await {
                sleep(self.pause).await;
                self.pause = (self.pause * 2).min(PAUSE.1);
                if !is_temporary {
                    self.drop_spans(batch.len());
                    break;
                }
            }
            batch.clear();
        }
    }

    /// Sends the spans that are left, until the collector fails.
    async fn flush(&mut self, batch: &mut Vec<SpanData>) {
        self.queue.spans.close();
        loop {
            while batch.len() < BATCH
                && let Ok(span) = self.queue.spans.try_recv()
            {
                batch.push(span);
            }
            if batch.is_empty() {
                return;
            }
            if self.send(batch).await.is_err() {
                self.drop_spans(batch.len() + self.queue.spans.len());
                return;
            }
            batch.clear();
        }
    }

    async fn send(&mut self, batch: &[SpanData]) -> Result<(), Failure> {
        let resource_spans = group_spans_by_resource_and_scope(batch.to_vec(), &self.resource);
        let request = ExportTraceServiceRequest { resource_spans };
        let message = Bytes::from(request.encode_to_vec());
        // Boxed, since a TLS handshake is a large future.
        let sent = Box::pin(self.collector.send(&message)).await;
        let address = self.collector.address();
        match &sent {
            Ok((refused, reason)) => {
                if *refused > 0 && !self.is_failing {
                    warn!("the collector {address} refuses spans: {reason:?}");
                } else if *refused == 0 && self.is_failing {
                    info!("traces are delivered to {address} again");
                }
                self.is_failing = *refused > 0;
                self.pause = PAUSE.0;
                self.drop_spans(usize::try_from(*refused).unwrap_or(usize::MAX));
            }
            Err(failure) => {
                if !self.is_failing {
                    let why = &failure.why;
                    warn!(
                        "traces cannot be delivered to {address}: {why}; up to {QUEUE} spans wait, more are dropped"
                    );
                }
                self.is_failing = true;
            }
        }
        sent.map(drop)
    }

    fn drop_spans(&self, count: usize) {
        let dropped = &self.queue.dropped;
        dropped.fetch_add(count as u64, Ordering::Relaxed);
    }
}
