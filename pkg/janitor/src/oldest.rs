//! Selection of the oldest entries.

use std::cmp::Ordering;

use gorego_storage::Candidate;

use crate::amount::{self, Amount};

/// Keeps the oldest of the offered entries, no more than `at_most`. Buffers twice as many and partitions
/// them now and then, which is several times cheaper than keeping them sorted.
#[derive(Debug)]
pub(crate) struct OldestEntries {
    at_most: usize,
    kept: Vec<Candidate>,
    /// An entry that is not needed, nor are younger ones.
    too_young: Option<Candidate>,
}

impl OldestEntries {
    pub(crate) const fn new(at_most: usize) -> Self {
        Self {
            at_most,
            kept: Vec::new(),
            too_young: None,
        }
    }

    pub(crate) fn offer(&mut self, candidate: Candidate) {
        let limit = self.too_young.as_ref();
        if limit.is_some_and(|limit| by_age(limit, &candidate).is_lt()) {
            return;
        }
        self.kept.push(candidate);
        if self.kept.len() > self.at_most.saturating_mul(2) {
            let by_rank = self.kept.select_nth_unstable_by(self.at_most, by_age);
            self.too_young = Some(*by_rank.1);
            self.kept.truncate(self.at_most);
        }
    }

    /// Returns the selected entries, oldest first.
    pub(crate) fn into_vec(mut self) -> Vec<Candidate> {
        self.kept.sort_unstable_by(by_age);
        self.kept.truncate(self.at_most);
        self.kept
    }
}

/// Orders candidates by last use, and by entry number where that is equal.
pub(crate) fn by_age(a: &Candidate, b: &Candidate) -> Ordering {
    (a.last_use, a.entry).cmp(&(b.last_use, b.entry))
}

/// Returns how many of the first candidates free the wanted amount, or the number of all if they do
/// not suffice.
pub(crate) fn cover(candidates: &[Candidate], wanted: Amount) -> usize {
    let mut sum = Amount::default();
    candidates
        .iter()
        .take_while(|candidate| {
            let short = !sum.covers(wanted);
            sum = sum.plus(amount::of(**candidate));
            short
        })
        .count()
}
