//! Decides which entries to evict, from one pass over all entries.

use gorego_storage::Candidate;

use crate::{
    amount::{Amount, total},
    demand::Demand,
    oldest::{OldestEntries, by_age, cover},
};

/// The most entries of each list of a plan. Others are left to the next plan.
pub(crate) const AT_MOST: usize = 16 * 1024;

/// Sees every entry once, and keeps only those to evict.
#[derive(Debug)]
pub(crate) struct Planner {
    demand: Demand,
    at_most: usize,
    unleased: OldestEntries,
    leased: OldestEntries,
    leased_bytes: u64,
}

/// The entries to evict for as long as there is a demand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Entries to evict in this order until the demand is met. Leased ones among them are the oldest,
    /// beyond the bytes that leases may hold.
    pub(crate) evict: Vec<Candidate>,
    /// Leased entries to evict after that until the hard demand is met, oldest first.
    pub(crate) break_leases: Vec<Candidate>,
}

impl Planner {
    /// Creates a planner for a demand, whose lists have no more than `at_most` entries.
    pub(crate) const fn new(demand: Demand, at_most: usize) -> Self {
        Self {
            demand,
            at_most,
            unleased: OldestEntries::new(at_most),
            leased: OldestEntries::new(at_most),
            leased_bytes: 0,
        }
    }

    /// Considers one entry. Entries may come in any order.
    pub(crate) fn offer(&mut self, candidate: Candidate) {
        if candidate.leased {
            self.leased_bytes = self.leased_bytes.saturating_add(candidate.bytes);
        }
        match (candidate.in_use, candidate.leased) {
            (true, _) => {}
            (false, true) => self.leased.offer(candidate),
            (false, false) => self.unleased.offer(candidate),
        }
    }

    /// Returns the plan, after all entries were offered.
    pub(crate) fn finish(self) -> Plan {
        let demand = self.demand;
        let excess = self.leased_bytes.saturating_sub(demand.leases_allowed);
        let mut lapsed = self.leased.into_vec();
        let all_kept = lapsed.len() < self.at_most;
        let mut break_leases = lapsed.split_off(cover(&lapsed, Amount::of_bytes(excess)));

        let mut evict = self.unleased.into_vec();
        evict.append(&mut lapsed);
        evict.sort_unstable_by(by_age);
        // Each list is cut off at `at_most`, so the common order is right only up to that.
        evict.truncate(self.at_most);
        evict.truncate(cover(&evict, demand.total()));
        let freed = total(&evict);
        let is_partial = evict.len() == self.at_most && !freed.covers(demand.total());
        let short = demand.hard.minus(freed);
        break_leases.truncate(cover(&break_leases, short));
        let broken = total(&break_leases);
        // Leases are not broken for an upload that will be refused anyway.
        let in_vain = all_kept && !broken.covers(short);
        if is_partial || in_vain || broken.bytes > demand.leases_breakable {
            break_leases.clear();
        }
        Plan {
            evict,
            break_leases,
        }
    }
}

#[cfg(test)]
mod tests;
