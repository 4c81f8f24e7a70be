//! The totals of the last minutes, for the charts.

use std::{collections::VecDeque, time::Duration};

use super::snapshot::Snapshot;

/// The time that the charts show.
pub(super) const SPAN: Duration = Duration::from_mins(5);
/// The most samples: one a second.
const MAX: usize = 301;

/// The totals of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sample {
    at_ms: u64,
    hits: u64,
    lookups: u64,
    read: u64,
    written: u64,
    calls: u64,
}

/// The rates between two samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// The seconds from the end of the interval to the newest sample.
    pub age: f64,
    /// The share of hits of the lookups, if there were any.
    pub hit_rate: Option<f64>,
    /// Bytes a second that clients read.
    pub read: f64,
    /// Bytes a second that clients wrote.
    pub written: f64,
    /// Calls a second that ended.
    pub calls: f64,
}

/// The samples of the last five minutes.
#[derive(Debug, Default)]
pub struct History(VecDeque<Sample>);

impl History {
    /// Adds the totals of a snapshot, and forgets old ones.
    pub fn add(&mut self, snapshot: &Snapshot) {
        let (hits, lookups) = snapshot.traffic.client_lookups();
        let (read, written) = snapshot.traffic.client_bytes();
        let sample = Sample {
            at_ms: snapshot.at_ms,
            hits,
            lookups,
            read,
            written,
            calls: snapshot.traffic.calls(),
        };
        // A clock that was set back would leave intervals without length.
        self.0.retain(|old| {
            old.at_ms < sample.at_ms && u128::from(sample.at_ms - old.at_ms) <= SPAN.as_millis()
        });
        while self.0.len() >= MAX {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// Returns the rates between the samples, the oldest first.
    #[expect(clippy::cast_precision_loss, reason = "charts need few digits")]
    pub fn rates(&self) -> Vec<Rate> {
        let newest = self.0.back().map_or(0, |sample| sample.at_ms);
        let pairs = self.0.iter().zip(self.0.iter().skip(1));
        let rates = pairs.map(|(from, to)| {
            let seconds = to.at_ms.saturating_sub(from.at_ms).max(1) as f64 / 1000.0;
            let per_second = |a: u64, b: u64| b.saturating_sub(a) as f64 / seconds;
            let lookups = to.lookups.saturating_sub(from.lookups);
            let hits = to.hits.saturating_sub(from.hits);
            Rate {
                age: newest.saturating_sub(to.at_ms) as f64 / 1000.0,
                hit_rate: (lookups > 0).then(|| hits as f64 / lookups as f64),
                read: per_second(from.read, to.read),
                written: per_second(from.written, to.written),
                calls: per_second(from.calls, to.calls),
            }
        });
        rates.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::snapshot::{Lookups, Traffic, Transfer, tests::snapshot};

    fn at(at_ms: u64, hits: u64, misses: u64, read: u64) -> Snapshot {
        let lookups = Lookups {
            tier: "client".into(),
            kind: "blob".into(),
            hits,
            misses,
            ..Lookups::default()
        };
        let transfer = Transfer {
            tier: "client".into(),
            read,
            written: 0,
        };
        let traffic = Traffic {
            lookups: vec![lookups],
            transfers: vec![transfer],
            ..Traffic::default()
        };
        Snapshot {
            at_ms,
            ..snapshot(traffic)
        }
    }

    #[test]
    fn rates_are_those_between_two_samples() {
        let mut history = History::default();
        history.add(&at(10_000, 1, 1, 0));
        assert_eq!(history.rates(), []);
        history.add(&at(12_000, 4, 2, 5000));
        history.add(&at(13_000, 4, 2, 5000));
        let rates = history.rates();
        let [busy, idle] = rates.as_slice() else {
            panic!("{rates:?}");
        };
        assert_eq!((busy.hit_rate, idle.hit_rate), (Some(0.75), None));
        assert_eq!((busy.read, idle.read), (2500.0, 0.0));
        assert_eq!((busy.age, idle.age), (1.0, 0.0));
    }

    #[test]
    fn samples_are_kept_for_five_minutes_only() {
        let mut history = History::default();
        for second in 0..1000 {
            history.add(&at(second * 1000, second, 0, 0));
        }
        assert_eq!(history.rates().len(), 300);
        history.add(&at(2_000_000, 0, 0, 0));
        assert_eq!(history.rates(), []);
        for quick in 0..1000 {
            history.add(&at(2_000_000 + quick, 0, 0, 0));
        }
        assert_eq!(history.rates().len(), 300);
    }

    #[test]
    fn a_clock_that_is_set_back_starts_anew() {
        let mut history = History::default();
        history.add(&at(10_000, 0, 0, 0));
        history.add(&at(5_000, 0, 0, 0));
        assert_eq!(history.rates(), []);
        history.add(&at(6_000, 0, 0, 7));
        assert_eq!(history.rates().len(), 1);
    }
}
