//! Calls of clients: their number, status and duration, and those in progress.

use std::{
    array, fmt,
    sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::{
    durations::{BOUNDS, Durations, TracedSeconds},
    web::MethodCalls,
};

/// The methods of the services. Clients choose the names that they call, so all others share the last label.
const METHODS: [&str; 21] = [
    "BatchReadBlobs",
    "BatchUpdateBlobs",
    "CancelOperation",
    "Check",
    "DeleteOperation",
    "Execute",
    "FindMissingBlobs",
    "GetActionResult",
    "GetCapabilities",
    "GetOperation",
    "GetTree",
    "ListOperations",
    "QueryWriteStatus",
    "Read",
    "ServerReflectionInfo",
    "UpdateActionResult",
    "WaitExecution",
    "WaitOperation",
    "Watch",
    "Write",
    "other",
];

/// The names of the status codes in the gRPC specification, by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
const UNKNOWN: usize = 2;
/// The codes of a fault of the server or of its surroundings: `UNKNOWN`, `DEADLINE_EXCEEDED`,
/// `RESOURCE_EXHAUSTED`, `INTERNAL`, `UNAVAILABLE` and `DATA_LOSS`.
const FAULTS: [usize; 6] = [UNKNOWN, 4, 8, 13, 14, 15];

/// Returns the place of a status in [`CODES`].
fn place(code: i32) -> usize {
    let code = usize::try_from(code).ok();
    code.filter(|code| *code < CODES.len()).unwrap_or(UNKNOWN)
}

/// Returns the name of a gRPC status.
pub(crate) fn code_name(code: i32) -> &'static str {
    CODES.get(place(code)).copied().unwrap_or_default()
}

/// A method of the services, as its place in [`METHODS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Method(usize);

impl Method {
    /// Returns the method at a path such as `/package.Service/Method`.
    fn of(path: &str) -> Self {
        let name = path.as_bytes().rsplit(|byte| *byte == b'/').next();
        let known = METHODS
            .iter()
            .position(|known| Some(known.as_bytes()) == name);
        Self(known.unwrap_or(METHODS.len() - 1))
    }

    pub(crate) fn name(self) -> &'static str {
        METHODS.get(self.0).copied().unwrap_or_default()
    }
}

/// Counts the calls of clients. Each method and status has a place of its own, so that calls need no lock
/// to find it.
#[derive(Debug)]
pub(crate) struct Requests([MethodCounts; METHODS.len()]);

#[derive(Debug)]
struct MethodCounts {
    /// Set by the first call.
    called: AtomicBool,
    inflight: AtomicI64,
    ended: [AtomicU64; CODES.len()],
    /// The durations of calls, for the estimates of the page.
    durations: Durations,
    /// The durations of calls for Prometheus, with the traces of some calls.
    traced: TracedSeconds,
}

impl Default for Requests {
    fn default() -> Self {
        Self(array::from_fn(|_| MethodCounts {
            called: AtomicBool::new(false),
            inflight: AtomicI64::new(0),
            ended: array::from_fn(|_| AtomicU64::new(0)),
            durations: Durations::default(),
            traced: TracedSeconds::new(BOUNDS),
        }))
    }
}

impl Requests {
    /// Records the start of a call.
    pub(crate) fn began(&self, path: &str) -> Method {
        let method = Method::of(path);
        if let Some(counts) = self.0.get(method.0) {
            counts.called.store(true, Relaxed);
            counts.inflight.fetch_add(1, Relaxed);
        }
        method
    }

    /// Records the end of a call with the number of its gRPC status, and the id of its trace if it has one.
    pub(crate) fn ended(&self, method: Method, code: i32, took: Duration, trace: Option<String>) {
        let Some(counts) = self.0.get(method.0) else {
            return;
        };
        counts.inflight.fetch_sub(1, Relaxed);
        if let Some(ended) = counts.ended.get(place(code)) {
            ended.fetch_add(1, Relaxed);
        }
        counts.durations.record(took);
        counts.traced.observe(took, trace);
    }

    /// Returns the number of calls in progress.
    pub(crate) fn in_flight(&self) -> u64 {
        let calls = self.0.iter().map(|counts| counts.inflight.load(Relaxed));
        u64::try_from(calls.sum::<i64>()).unwrap_or(0)
    }

    /// Returns the totals of the methods of which calls ended.
    pub(crate) fn methods(&self) -> Vec<MethodCalls> {
        let all = METHODS.into_iter().zip(&self.0);
        let totals = all.map(|(method, counts)| {
            let of = |faults: bool| {
                let ended = counts.ended.iter().enumerate();
                let ended = ended.filter(move |(code, _)| !faults || FAULTS.contains(code));
                ended.map(|(_, ended)| ended.load(Relaxed)).sum()
            };
            MethodCalls {
                method: method.into(),
                calls: of(false),
                errors: of(true),
                p50_seconds: counts.durations.quantile(0.5),
                p99_seconds: counts.durations.quantile(0.99),
            }
        });
        totals.filter(|method| method.calls > 0).collect()
    }

    /// Encodes the methods that were called.
    pub(crate) fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let called = || {
            let counts = METHODS.into_iter().zip(&self.0);
            counts.filter(|(_, counts)| counts.called.load(Relaxed))
        };
        let help = "Calls that ended, by gRPC method and status.";
        let mut family = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
        for (method, counts) in called() {
            for (code, ended) in CODES.into_iter().zip(&counts.ended) {
                let ended = ended.load(Relaxed);
                if ended > 0 {
                    let labels = [("method", method), ("code", code)];
                    ConstCounter::new(ended).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let help = "The time from the headers of a call to the end of its response.";
        let mut family = encoder.encode_descriptor(
            "request",
            help,
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for (method, counts) in called() {
            let labels = [("method", method)];
            counts.traced.encode(family.encode_family(&labels)?)?;
        }
        let help = "Calls in progress, by gRPC method.";
        let mut family =
            encoder.encode_descriptor("inflight_requests", help, None, MetricType::Gauge)?;
        for (method, counts) in called() {
            let inflight = ConstGauge::new(counts.inflight.load(Relaxed));
            inflight.encode(family.encode_family(&[("method", method)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::{collector::Collector, encoding::text::encode, registry::Registry};

    use super::*;

    #[derive(Debug)]
    struct Collected(Arc<Requests>);

    impl Collector for Collected {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
            self.0.encode(encoder)
        }
    }

    fn samples(requests: &Arc<Requests>) -> Vec<String> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Collected(Arc::clone(requests))));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.map(str::to_owned).collect()
    }

    #[test]
    fn calls_are_counted_by_method_and_status_while_they_run_and_at_their_end() {
        let requests = Arc::<Requests>::default();
        assert_eq!(samples(&requests), Vec::<String>::new());
        let read = requests.began("/google.bytestream.ByteStream/Read");
        let inflight = "inflight_requests{method=\"Read\"}";
        assert!(samples(&requests).contains(&format!("{inflight} 1")));
        requests.ended(read, 5, Duration::from_millis(3), None);
        let samples = samples(&requests);
        for expected in [
            "requests_total{method=\"Read\",code=\"NOT_FOUND\"} 1",
            "request_seconds_sum{method=\"Read\"} 0.003",
            "request_seconds_bucket{le=\"0.0025\",method=\"Read\"} 0",
            "request_seconds_bucket{le=\"0.005\",method=\"Read\"} 1",
            "inflight_requests{method=\"Read\"} 0",
        ] {
            assert!(samples.iter().any(|line| line == expected), "{samples:#?}");
        }
    }

    #[test]
    fn the_last_traced_call_of_a_bucket_is_its_exemplar() {
        let requests = Arc::<Requests>::default();
        for trace in [Some("old"), Some("new"), None] {
            let read = requests.began("/google.bytestream.ByteStream/Read");
            requests.ended(read, 0, Duration::from_millis(3), trace.map(str::to_owned));
        }
        let bucket =
            "request_seconds_bucket{le=\"0.005\",method=\"Read\"} 3 # {trace_id=\"new\"} 0.003 ";
        let samples = samples(&requests);
        let found = samples.iter().find(|line| line.starts_with(bucket));
        assert!(found.is_some(), "{samples:#?}");
    }

    #[test]
    fn methods_that_clients_invent_share_a_label() {
        for path in ["", "/", "/a/Invented", "Reads", "/x/Read/"] {
            assert_eq!(Method::of(path).name(), "other");
        }
    }

    #[test]
    fn unknown_status_numbers_count_as_unknown() {
        let requests = Arc::<Requests>::default();
        for code in [-1, 17, i32::MAX] {
            let method = requests.began("/x/Write");
            requests.ended(method, code, Duration::ZERO, None);
        }
        let counted = "requests_total{method=\"Write\",code=\"UNKNOWN\"} 3".to_owned();
        assert!(samples(&requests).contains(&counted));
    }
}
