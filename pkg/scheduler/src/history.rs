//! The memory that kinds of actions used before, from which that of the next one is estimated.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::text::bounded;

/// The samples kept of a kind, the newest ones.
const SAMPLES: usize = 20;
/// The longest name of a kind, in bytes; longer ones are cut.
const MAX_KIND_LEN: usize = 512;

/// A kind of actions, which are expected to use similar amounts of memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind(Arc<str>);

impl Kind {
    /// The actions of one target with one mnemonic (REAPI `RequestMetadata`), or those of one command if the client
    /// names neither.
    pub fn new(target: &str, mnemonic: &str, command: &str) -> Self {
        if target.is_empty() && mnemonic.is_empty() {
            return Self(bounded(command, MAX_KIND_LEN));
        }
        // The mnemonic is first, since it is the target that may be too long.
        let name = format!("{mnemonic} {target}");
        Self(bounded(&name, MAX_KIND_LEN))
    }

    /// Returns the kind with a name that [`Kind::name`] returned.
    pub fn named(name: &str) -> Self {
        Self(bounded(name, MAX_KIND_LEN))
    }

    /// Returns the name: any text of a client.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// The memory that the newest actions of each kind used. Of too many kinds, those recorded longest ago are dropped.
#[derive(Debug)]
pub struct History {
    most: usize,
    kinds: HashMap<Kind, Samples>,
    /// The kinds by their last record.
    order: BTreeMap<u64, Kind>,
    next: u64,
}

#[derive(Debug)]
struct Samples {
    recorded: u64,
    /// Peaks in bytes, the oldest first.
    peaks: Vec<u64>,
}

impl History {
    /// Creates an empty history of at most `most` kinds.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            kinds: HashMap::new(),
            order: BTreeMap::new(),
            next: 0,
        }
    }

    /// Records the peak of an action's memory, in bytes.
    pub fn record(&mut self, kind: &Kind, peak: u64) {
        self.next += 1;
        let recorded = self.next;
        let samples = self.kinds.entry(kind.clone()).or_insert(Samples {
            recorded,
            peaks: Vec::new(),
        });
        self.order.remove(&samples.recorded);
        self.order.insert(recorded, kind.clone());
        samples.recorded = recorded;
        if samples.peaks.len() >= SAMPLES {
            samples.peaks.remove(0);
        }
        samples.peaks.push(peak);
        while self.kinds.len() > self.most
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.kinds.remove(&oldest);
        }
    }

    /// Returns the 95th percentile of the kind's recorded peaks, in bytes; `None` if none is recorded.
    pub fn estimate(&self, kind: &Kind) -> Option<u64> {
        let mut peaks = self.kinds.get(kind)?.peaks.clone();
        peaks.sort_unstable();
        let rank = (peaks.len() * 95).div_ceil(100);
        peaks.get(rank.checked_sub(1)?).copied()
    }

    /// Returns every kind's name and recorded peaks, the kind recorded longest ago first. Recording them in this order
    /// restores the history.
    pub fn entries(&self) -> impl Iterator<Item = (&Kind, &[u64])> {
        let kinds = self.order.values();
        kinds.filter_map(|kind| Some((kind, self.kinds.get(kind)?.peaks.as_slice())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(target: &str) -> Kind {
        Kind::new(target, "Rustc", "abc")
    }

    #[test]
    fn the_estimate_is_the_95th_percentile_of_the_newest_peaks() {
        let mut history = History::new(10);
        assert_eq!(history.estimate(&kind("a")), None);
        history.record(&kind("a"), 7);
        assert_eq!(history.estimate(&kind("a")), Some(7));
        for peak in (1..=100).rev() {
            history.record(&kind("a"), peak);
        }
        assert_eq!(history.estimate(&kind("a")), Some(19));
        assert_eq!(history.estimate(&kind("b")), None);
    }

    #[test]
    fn actions_without_a_target_are_of_their_commands_kind() {
        assert_eq!(Kind::new("", "", "abc"), Kind::new("", "", "abc"));
        assert_ne!(Kind::new("", "", "abc"), Kind::new("", "", "abd"));
        assert_eq!(Kind::new("a", "b", "abc"), Kind::new("a", "b", "abd"));
        assert_ne!(Kind::new("a", "b", ""), Kind::new("a", "c", ""));
        assert_ne!(
            Kind::new(&"x".repeat(600), "b", ""),
            Kind::new(&"x".repeat(600), "c", "")
        );
    }

    #[test]
    fn the_kinds_recorded_longest_ago_are_dropped() {
        let mut history = History::new(2);
        for target in ["a", "b", "a", "c"] {
            history.record(&kind(target), 1);
        }
        assert_eq!(history.estimate(&kind("b")), None);
        assert_eq!(history.estimate(&kind("a")), Some(1));
        let kinds: Vec<_> = history.entries().map(|(kind, _)| kind.clone()).collect();
        assert_eq!(kinds, [kind("a"), kind("c")]);
        let mut none = History::new(0);
        none.record(&kind("a"), 1);
        assert_eq!(none.entries().count(), 0);
    }
}
