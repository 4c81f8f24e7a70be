//! The spans of requests, and the context that their requests to the backing cache carry.

use gorego_storage::span::TARGET;
use http::{HeaderMap, HeaderValue};
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use tonic::Code;
use tracing::{Span, field::Empty, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::{context, ids};
use crate::{Call, METADATA};

/// Begins the span of a sampled call of the method at `path`.
pub(crate) fn begin(call: &Call, path: &str) -> Span {
    // Clients choose unknown names.
    let service = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    let service = service.filter(|_| call.method != "other");
    let service = service.map_or("other", |(service, _)| service);
    let sent = call.metadata();
    let span = info_span!(
        target: TARGET,
        parent: None,
        "request",
        otel.name = format!("{service}/{}", call.method),
        otel.kind = "server",
        otel.status_code = Empty,
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = call.method,
        rpc.grpc.status_code = Empty,
        client.address = %call.peer.ip(),
        invocation_id = sent.map(|sent| sent.tool_invocation_id.as_str()),
        action = sent.map(|sent| sent.action_id.as_str()),
        target = sent.map(|sent| sent.target_id.as_str()),
        mnemonic = sent.map(|sent| sent.action_mnemonic.as_str()),
    );
    let mut chosen = None;
    if let Some(parent) = call.parent.as_deref() {
        let _ = span.set_parent(Context::new().with_remote_span_context(parent.clone()));
    } else {
        chosen = sent.and_then(|sent| context::trace_id(&sent.tool_invocation_id));
    }
    // The trace and the span get their ids now.
    if let Some(begun) = ids::with_trace_id(chosen, || context_of(&span)) {
        let _ = call.trace.set(Box::new(begun));
    }
    span
}

/// Ends the span of a call. Work that continues has spans of its own.
pub(crate) fn end(span: &Span, code: i32) {
    if span.is_none() {
        return;
    }
    span.record("rpc.grpc.status_code", code);
    let is_servers = matches!(
        Code::from(code),
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    );
    if is_servers {
        span.record("otel.status_code", "ERROR");
    }
    span.context().span().end();
}

pub(super) fn context_of(span: &Span) -> Option<SpanContext> {
    let context = span.context().span().span_context().clone();
    context.is_valid().then_some(context)
}

/// Adds the trace of the current call and the client's metadata to the headers of a request made for it. If this
/// server decides on tracing (`decides`), the request of an untraced call forbids the backing cache to trace it.
pub fn forward(headers: &mut HeaderMap, decides: bool) {
    let Some(call) = Call::current() else {
        return;
    };
    if let Some(sent) = call.metadata_header()
        && let Ok(sent) = HeaderValue::from_bytes(sent)
    {
        headers.insert(&METADATA, sent);
    }
    let span = Span::current();
    let current = if span.is_none() {
        call.trace().cloned()
    } else {
        context_of(&span)
    };
    match current {
        Some(current) => context::write(&current, headers),
        None if decides => context::write(&unsampled(), headers),
        None => {}
    }
}

/// Creates the context of a call that is not traced.
fn unsampled() -> SpanContext {
    let (trace, span) = (fastrand::u128(1..), fastrand::u64(1..));
    let (trace, span) = (TraceId::from(trace), SpanId::from(span));
    SpanContext::new(
        trace,
        span,
        TraceFlags::NOT_SAMPLED,
        false,
        TraceState::NONE,
    )
}
