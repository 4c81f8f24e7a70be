//! Trace ids that are chosen by the caller.

use std::cell::Cell;

use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

thread_local! {
    /// The id of the next trace that this thread begins.
    static NEXT: Cell<Option<TraceId>> = const { Cell::new(None) };
}

/// Runs `begin`, in which a trace that begins gets this id: a span can be given a parent, but no trace id.
pub(super) fn with_trace_id<T>(id: Option<TraceId>, begin: impl FnOnce() -> T) -> T {
    NEXT.set(id);
    let begun = begin();
    NEXT.set(None);
    begun
}

/// Chosen trace ids, else random ones.
#[derive(Debug)]
pub(super) struct TraceIds;

impl IdGenerator for TraceIds {
    fn new_trace_id(&self) -> TraceId {
        NEXT.take()
            .unwrap_or_else(|| RandomIdGenerator::default().new_trace_id())
    }

    fn new_span_id(&self) -> SpanId {
        RandomIdGenerator::default().new_span_id()
    }
}
