//! Histograms of durations: one that is counted without a lock, and one with traces.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use prometheus_client::{
    encoding::{EncodeMetric as _, MetricEncoder},
    metrics::exemplar::HistogramWithExemplars,
};

/// The upper bounds of all buckets but the last, in seconds.
pub(crate) const BOUNDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0,
];

/// A histogram of seconds for Prometheus, with the traces of some calls as exemplars.
#[derive(Debug)]
pub(crate) struct TracedSeconds(HistogramWithExemplars<[(&'static str, String); 1]>);

impl TracedSeconds {
    pub(crate) fn new(bounds: [f64; 14]) -> Self {
        Self(HistogramWithExemplars::new(bounds.into_iter()))
    }

    /// Records a duration, and the id of the call's trace if it has one.
    pub(crate) fn observe(&self, took: Duration, trace: Option<String>) {
        let exemplar = trace.map(|trace| [("trace_id", trace)]);
        let now = exemplar.is_some().then(SystemTime::now);
        self.0.observe(took.as_secs_f64(), exemplar, now);
    }

    pub(crate) fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }
}

/// Counts of durations, from half a millisecond to two minutes.
#[derive(Debug, Default)]
pub(crate) struct Durations {
    buckets: [AtomicU64; BOUNDS.len() + 1],
}

impl Durations {
    pub(crate) fn record(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Relaxed);
        }
    }

    /// Estimates the seconds that this share of the durations did not exceed, between the bounds of its
    /// bucket. `None` if nothing was recorded. Beyond the last bound, returns that.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let counts = self.counts();
        let all: u64 = counts.iter().sum();
        let rank = share * all as f64;
        let (mut before, mut lower) = (0.0, 0.0);
        for (count, upper) in counts.into_iter().zip(BOUNDS) {
            let count = count as f64;
            if count > 0.0 && before + count >= rank {
                return Some(lower + (upper - lower) * (rank - before) / count);
            }
            before += count;
            lower = upper;
        }
        (all > 0).then_some(lower)
    }

    fn counts(&self) -> [u64; BOUNDS.len() + 1] {
        self.buckets.each_ref().map(|bucket| bucket.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_between_the_bounds_of_their_bucket() {
        let durations = Durations::default();
        assert_eq!(durations.quantile(0.5), None);
        for _ in 0..98 {
            durations.record(Duration::from_millis(2));
        }
        for slow in [Duration::from_millis(80), Duration::from_hours(1)] {
            durations.record(slow);
        }
        let within = |share, lower, upper| {
            let seconds = durations.quantile(share).unwrap();
            assert!(seconds > lower && seconds <= upper, "{share}: {seconds}");
        };
        within(0.5, 0.001, 0.0025);
        within(0.985, 0.05, 0.1);
        assert_eq!(durations.quantile(1.0), Some(120.0));
    }
}
