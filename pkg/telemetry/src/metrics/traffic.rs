//! Metrics of the tiers: lookups and bytes.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use gorego_storage::Traffic;
use prometheus_client::{encoding::EncodeMetric as _, metrics::MetricType};

use super::encode::{Encoder, Metric};
use crate::stores::{BackingCalls, Operation};

const LOOKUPS: Metric = Metric::new(
    "cache_lookups",
    "Reads of blobs and lookups of action results, by tier and outcome.",
);
const PRESENCE: Metric = Metric::new(
    "presence_checks",
    "Blobs that a tier reported present or missing before an upload.",
);
const BYTES: Metric = Metric::bytes(
    "blob",
    "Bytes of blobs that were read from and written to a tier, uncompressed.",
);
const CALLS: Metric = Metric::new(
    "backing_requests",
    "Operations of the backing cache by outcome. The retries of an operation are part of it.",
);
const DURATIONS: Metric = Metric::seconds(
    "backing_request",
    "The time from the start of an operation of the backing cache to its answer, for reads to the first bytes.",
);

/// The label of the tier whose presence checks are not counted.
const LOCAL: &str = "local";

/// A tier and its label.
pub(super) type Tier = (&'static str, Arc<Traffic>);

pub(super) fn tiers(mut encoder: Encoder<'_>, tiers: &[Tier]) -> fmt::Result {
    let read = |total: &AtomicU64| total.load(Relaxed);
    let lookups = tiers.iter().flat_map(|(tier, traffic)| {
        let (blobs, results) = (&traffic.blobs, &traffic.results);
        let of = |(kind, outcome, total)| {
            let labels = [("kind", kind), ("tier", *tier), ("outcome", outcome)];
            (labels, read(total))
        };
        [
            ("blob", "hit", &blobs.hits),
            ("blob", "miss", &blobs.misses),
            ("blob", "outage", &blobs.outage),
            ("blob", "error", &blobs.errors),
            ("result", "hit", &results.hits),
            ("result", "miss", &results.misses),
            ("result", "incomplete", &results.incomplete),
            ("result", "outage", &results.outage),
            ("result", "error", &results.errors),
        ]
        .map(of)
    });
    encoder.counters(LOOKUPS, lookups)?;
    // The lookups of the local tier are parts of others.
    let asked = tiers.iter().filter(|(tier, _)| *tier != LOCAL);
    let presence = asked.flat_map(|(tier, traffic)| {
        let of = |outcome, total| ([("tier", *tier), ("outcome", outcome)], read(total));
        [
            of("present", &traffic.present),
            of("missing", &traffic.missing),
        ]
    });
    encoder.counters(PRESENCE, presence)?;
    let bytes = tiers.iter().flat_map(|(tier, traffic)| {
        let of = |direction, total| ([("tier", *tier), ("direction", direction)], read(total));
        [of("read", &traffic.read), of("write", &traffic.written)]
    });
    encoder.counters(BYTES, bytes)
}

pub(super) fn calls(mut encoder: Encoder<'_>, calls: &BackingCalls) -> fmt::Result {
    let all = || Operation::ALL.iter();
    let counts = all().filter_map(|(operation, label)| Some((calls.of(*operation)?, *label)));
    let outcomes = counts.clone().flat_map(|(counts, operation)| {
        let of = |outcome, total: &AtomicU64| {
            let labels = [("operation", operation), ("outcome", outcome)];
            (labels, total.load(Relaxed))
        };
        [of("ok", &counts.ok), of("error", &counts.errors)]
    });
    encoder.counters(CALLS, outcomes)?;
    let mut family = encoder.descriptor(DURATIONS, MetricType::Histogram)?;
    for (counts, operation) in counts {
        let labels = [("operation", operation)];
        counts.seconds.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
