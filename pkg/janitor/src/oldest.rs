//! Selection of the oldest entries that together free a wanted amount.

use std::cmp::Ordering;

use gorego_storage::Candidate;

use crate::amount::{self, Amount};

/// Keeps the oldest of the offered entries: those that free the wanted amount, and no more than
/// `at_most`. Buffers twice as many and partitions them now and then, which is several times cheaper
/// than keeping them sorted.
#[derive(Debug)]
pub(crate) struct OldestEntries {
    wanted: Amount,
    at_most: usize,
    kept: Vec<Candidate>,
    /// The youngest entry that can still be needed.
    youngest: Option<Candidate>,
}

impl OldestEntries {
    pub(crate) const fn new(wanted: Amount, at_most: usize) -> Self {
        Self {
            wanted,
            at_most,
            kept: Vec::new(),
            youngest: None,
        }
    }

    pub(crate) fn offer(&mut self, candidate: Candidate) {
        let too_young = self
            .youngest
            .is_some_and(|youngest| by_age(&youngest, &candidate).is_lt());
        if too_young || self.wanted.is_zero() {
            return;
        }
        self.kept.push(candidate);
        if self.kept.len() >= self.at_most.saturating_mul(2) {
            self.youngest = self.drop_young();
        }
    }

    /// Keeps the oldest `at_most`, unordered, and returns the youngest of them.
    fn drop_young(&mut self) -> Option<Candidate> {
        let index = self.at_most.checked_sub(1)?;
        let (_, youngest, _) = self.kept.select_nth_unstable_by(index, by_age);
        let youngest = *youngest;
        self.kept.truncate(self.at_most);
        Some(youngest)
    }

    /// Returns the selected entries, oldest first.
    pub(crate) fn into_vec(mut self) -> Vec<Candidate> {
        self.kept.sort_unstable_by(by_age);
        let needed = cover(&self.kept, self.wanted);
        self.kept.truncate(needed.min(self.at_most));
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
