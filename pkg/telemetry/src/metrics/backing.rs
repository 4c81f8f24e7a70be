//! Metrics of the backing cache.

use std::fmt;

use gorego_storage::BreakerState;

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

pub(super) fn breaker(mut encoder: Encoder<'_>, now: BreakerState) -> fmt::Result {
    let states = STATES.map(|(name, state)| ([("state", name)], u64::from(now == state)));
    encoder.gauges(BREAKER, states)
}

pub(super) fn journal(mut encoder: Encoder<'_>, pending: PendingWrites) -> fmt::Result {
    encoder.gauge(JOURNAL_BLOBS, pending.blobs)?;
    encoder.gauge(JOURNAL_RESULTS, pending.results)?;
    encoder.gauge(JOURNAL, pending.bytes)
}
