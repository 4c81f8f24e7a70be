//! Metrics of the backing cache.

use std::fmt;

use gorego_storage::{BackingReport, BreakerState};

use super::{
    PendingWrites,
    encode::{Encoder, Metric},
};

const STATES: [(&str, BreakerState); 3] = [
    ("closed", BreakerState::Closed),
    ("open", BreakerState::Open),
    ("half_open", BreakerState::HalfOpen),
];

const BREAKER: Metric = Metric::new(
    "backing_cache_breaker_state",
    "1 for the state of the backing cache's circuit breaker: closed, calls are made; open, \
     they fail at once; half_open, one call tests the cache.",
);
const JOURNAL_BLOBS: Metric = Metric::new(
    "backing_cache_journal_blobs",
    "Blobs that wait for the backing cache.",
);
const JOURNAL_RESULTS: Metric = Metric::new(
    "backing_cache_journal_results",
    "Action results that wait for the backing cache.",
);
const JOURNAL: Metric = Metric::bytes(
    "backing_cache_journal",
    "Bytes that pending writes count against backing_cache.journal_max.",
);

const TRANSITIONS: Metric = Metric::new(
    "backing_breaker_transitions",
    "Changes of the backing cache's circuit breaker to each state.",
);
const OUTAGES: Metric = Metric::new(
    "backing_outages",
    "Failures to reach the backing cache, and losses of its blobs, after which its earlier answers are not \
     trusted.",
);
const RETRIES: Metric = Metric::new("backing_retries", "Retries of calls to the backing cache.");
const INFLIGHT: Metric = Metric::new(
    "inflight_backing_calls",
    "Calls to the backing cache in progress.",
);

pub(super) fn report(mut encoder: Encoder<'_>, now: &BackingReport) -> fmt::Result {
    let entered = |(name, state)| {
        let mut entered = now.transitions.iter();
        let (_, total) = entered.find(|(entered, _)| *entered == state)?;
        Some(([("state", name)], *total))
    };
    let transitions = STATES.into_iter().filter_map(entered);
    encoder.counters(TRANSITIONS, transitions)?;
    encoder.counter(OUTAGES, now.outages)?;
    encoder.counter(RETRIES, now.retries)?;
    encoder.gauge(INFLIGHT, now.inflight)
}

pub(super) fn breaker(mut encoder: Encoder<'_>, now: BreakerState) -> fmt::Result {
    let states = STATES.map(|(name, state)| ([("state", name)], u64::from(now == state)));
    encoder.gauges(BREAKER, states)
}

pub(super) fn journal(mut encoder: Encoder<'_>, pending: PendingWrites) -> fmt::Result {
    encoder.gauge(JOURNAL_BLOBS, pending.blobs)?;
    encoder.gauge(JOURNAL_RESULTS, pending.results)?;
    encoder.gauge(JOURNAL, pending.bytes)
}
