//! The W3C trace context of calls, and the decision to trace them.

use std::str::FromStr as _;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// The header with a trace, the parent span and the flag of sampled calls.
pub(super) static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The header with the state of the tracing systems on the way.
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// The longest state that is forwarded, in bytes.
const MAX_STATE: usize = 512;

/// Reads the context of the caller's span from headers. Ignores an invalid one.
pub fn read(headers: &HeaderMap) -> Option<SpanContext> {
    let parent = find(headers, &TRACEPARENT)?.to_str().ok()?;
    let mut parts = parent.split('-');
    let mut part = |digits| parts.next().filter(|part| is_hex(part, digits));
    let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    // Later versions may have more parts.
    if version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let state = headers
        .get(&TRACESTATE)
        .and_then(|state| state.to_str().ok());
    let state = state.filter(|state| state.len() <= MAX_STATE);
    let state = state.and_then(|state| TraceState::from_str(state).ok());
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        state.unwrap_or_default(),
    );
    context.is_valid().then_some(context)
}

/// Returns the first value of a header. Comparing the few names of a call costs less than hashing one.
pub(crate) fn find<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut headers = headers.iter();
    let (_, value) = headers.find(|(found, _)| *found == name)?;
    Some(value)
}

fn is_hex(text: &str, digits: usize) -> bool {
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == digits && text.bytes().all(is_digit)
}

/// Sets the headers that make `context` the parent of a request.
pub fn write(context: &SpanContext, headers: &mut HeaderMap) {
    let (trace, span) = (context.trace_id(), context.span_id());
    let flags = u8::from(context.is_sampled());
    let parent = HeaderValue::try_from(format!("00-{trace}-{span}-{flags:02x}"));
    let state = context.trace_state().header();
    let state = (!state.is_empty()).then(|| HeaderValue::try_from(state));
    for (name, value) in [(&TRACEPARENT, Some(parent)), (&TRACESTATE, state)] {
        if let Some(Ok(value)) = value {
            headers.insert(name, value);
        }
    }
}

/// Returns the id of a trace without a caller's span: that of the build, if it is a UUID. Otherwise it is random.
pub fn trace_id(invocation: &str) -> Option<TraceId> {
    let digits = invocation.replace('-', "").to_ascii_lowercase();
    let is_uuid = matches!(invocation.len(), 32 | 36) && is_hex(&digits, 32);
    let id = TraceId::from_hex(&digits).ok().filter(|_| is_uuid);
    id.filter(|id| *id != TraceId::INVALID)
}

/// The share of calls that are traced, unless their caller decided.
#[derive(Clone, Copy, Debug)]
pub struct Sampling(f64);

impl Sampling {
    /// Creates a share from 0 to 1.
    pub const fn new(ratio: f64) -> Self {
        Self(ratio)
    }

    /// Decides for a call.
    pub fn samples(self, parent: Option<&SpanContext>) -> bool {
        parent.map_or_else(|| fastrand::f64() < self.0, SpanContext::is_sampled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(parent: &str, state: &str) -> HeaderMap {
        [(&TRACEPARENT, parent), (&TRACESTATE, state)]
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .into_iter()
            .collect()
    }

    #[test]
    fn a_context_is_written_as_it_was_read() {
        for parent in [PARENT, &PARENT.replace("-01", "-00")] {
            let given = headers(parent, "vendor=value,other=1");
            let context = read(&given).unwrap();
            assert_eq!(context.is_sampled(), parent == PARENT);
            let mut written = HeaderMap::new();
            write(&context, &mut written);
            assert_eq!(written, given);
        }
    }

    #[test]
    fn contexts_of_later_versions_are_read_and_unknown_flags_ignored() {
        for parent in [
            PARENT.replace("-01", "-03"),
            PARENT.replace("00-4", "cc-4"),
            PARENT.replace("00-4", "01-4") + "-what-comes",
        ] {
            let context = read(&headers(&parent, "")).unwrap();
            let id = "4bf92f3577b34da6a3ce929d0e0e4736";
            assert_eq!(context.trace_id().to_string(), id, "{parent}");
            assert_eq!(context.trace_flags(), TraceFlags::SAMPLED);
        }
    }

    #[test]
    fn invalid_contexts_are_ignored() {
        for parent in [
            "",
            "00",
            &PARENT.to_uppercase(),
            &PARENT.replace("00-4", "ff-4"),
            &format!("{PARENT}-more"),
            &PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &PARENT.replace("00f0", "+0f0"),
            &PARENT.replace("-01", "-1"),
        ] {
            assert_eq!(read(&headers(parent, "a=b")), None, "{parent}");
        }
    }

    #[test]
    fn an_invalid_or_long_state_is_dropped_without_its_context() {
        for state in ["no value", &format!("a={}", "b".repeat(MAX_STATE))] {
            let context = read(&headers(PARENT, state)).unwrap();
            assert_eq!(context.trace_state().header(), "", "{state}");
        }
    }

    #[test]
    fn a_build_whose_id_is_a_uuid_is_a_trace() {
        let id = "4BF92F35-77b3-4da6-a3ce-929d0e0e4736";
        let found = trace_id(id).map(|id| id.to_string());
        assert_eq!(found.as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        for invocation in [
            "",
            "build-7",
            &"0".repeat(32),
            &"g".repeat(32),
            &"ä".repeat(16),
        ] {
            assert_eq!(trace_id(invocation), None, "{invocation}");
        }
    }

    #[test]
    fn the_caller_decides_before_the_ratio() {
        let parent = |parent: &str| read(&headers(parent, "")).unwrap();
        let (yes, no) = (parent(PARENT), parent(&PARENT.replace("-01", "-00")));
        assert!(Sampling::new(0.0).samples(Some(&yes)));
        assert!(!Sampling::new(1.0).samples(Some(&no)));
        assert!(Sampling::new(1.0).samples(None));
        assert!(!Sampling::new(0.0).samples(None));
    }
}
