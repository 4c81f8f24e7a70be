//! The context of actions that nodes hand over to each other: the client's metadata and the trace.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use gorego_limits::Client;
use gorego_storage::span::TARGET;
use http::{HeaderMap, HeaderValue};
use opentelemetry::{Context, trace::TraceContextExt as _};
use reapi::v2::RequestMetadata;
use tracing::{Instrument as _, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::{context, request::context_of};
use crate::Call;

/// Returns the W3C `traceparent` that makes the current span the parent of another node's; empty if it is not traced.
pub fn traceparent() -> String {
    let current = Span::current();
    if current.is_none() {
        return String::new();
    }
    let mut headers = HeaderMap::new();
    if let Some(current) = context_of(&current) {
        context::write(&current, &mut headers);
    }
    let parent = headers.get(&context::TRACEPARENT);
    let parent = parent.and_then(|parent| parent.to_str().ok());
    parent.unwrap_or_default().to_owned()
}

/// Prepares an action that another node handed over. `work` and its tasks belong to a call with this metadata of the
/// client. They are traced if `traceparent` names a sampled span.
pub async fn prepare<T>(
    metadata: &RequestMetadata,
    traceparent: &str,
    work: impl Future<Output = T>,
) -> T {
    let mut headers = HeaderMap::new();
    if let Ok(parent) = HeaderValue::from_str(traceparent) {
        headers.insert(&context::TRACEPARENT, parent);
    }
    let peer = (Ipv4Addr::UNSPECIFIED, 0).into();
    let call = Arc::new(Call::handed_over("Execute", &headers, peer, metadata));
    let span = begin(&call, metadata);
    let prepared = async {
        call.attach();
        work.await
    };
    let prepared = Client::new(Duration::MAX).call().scope(prepared);
    let prepared = prepared.instrument(span.clone()).await;
    if !span.is_none() {
        // The job owns the span, and is kept for a while.
        span.context().span().end();
    }
    prepared
}

fn begin(call: &Call, metadata: &RequestMetadata) -> Span {
    let parent = call.parent.as_deref().filter(|parent| parent.is_sampled());
    let Some(parent) = parent else {
        return Span::none();
    };
    let span = info_span!(
        target: TARGET,
        parent: None,
        "prepare",
        otel.name = "prepare",
        otel.kind = "server",
        invocation_id = metadata.tool_invocation_id,
        target = metadata.target_id,
        mnemonic = metadata.action_mnemonic,
    );
    let _ = span.set_parent(Context::new().with_remote_span_context(parent.clone()));
    if let Some(begun) = context_of(&span) {
        let _ = call.trace.set(Box::new(begun));
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_handed_over_action_has_the_metadata_of_its_client() {
        let metadata = RequestMetadata {
            tool_invocation_id: "build".to_owned(),
            target_id: "//a:b".to_owned(),
            ..RequestMetadata::default()
        };
        assert_eq!(traceparent(), "");
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let call = prepare(&metadata, parent, async { Call::current() }).await;
        let call = call.unwrap();
        assert_eq!(call.metadata(), Some(&metadata));
        assert!(call.metadata_header().is_some());
        let trace = call.trace().unwrap().trace_id().to_string();
        assert_eq!(trace, "4bf92f3577b34da6a3ce929d0e0e4736");
        for unusable in ["", "x\n", "00-0-0-01"] {
            let call = prepare(&metadata, unusable, async { Call::current() }).await;
            assert!(call.unwrap().trace().is_none());
        }
    }
}
