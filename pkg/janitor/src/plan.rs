//! What to evict: decided from one look at every entry, without doing anything.

use gorego_storage::Candidate;

use crate::{
    Amount, Demand,
    amount::total,
    oldest::{Oldest, cover, merge},
};

/// How many entries one plan holds of a kind. What is more waits for the next plan.
const AT_MOST: usize = 16 * 1024;

/// Looks at every entry once, and remembers only those that have to go.
#[derive(Debug)]
pub struct Planner {
    demand: Demand,
    at_most: usize,
    unleased: Oldest,
    leased: Oldest,
    leased_bytes: u64,
}

/// What to evict, as long as it is needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be evicted in this order, until the demand is met. Those with a lease are the oldest
    /// beyond what leases may hold.
    pub evict: Vec<Candidate>,
    /// After that, and only until the hard demand is met: leases to break, the oldest first.
    pub break_leases: Vec<Candidate>,
    /// Whether there were too many entries for one plan.
    pub is_partial: bool,
}

impl Planner {
    /// A planner that has seen nothing.
    pub fn new(demand: Demand) -> Self {
        Self::with_limit(demand, AT_MOST)
    }

    fn with_limit(demand: Demand, at_most: usize) -> Self {
        Self {
            demand,
            at_most,
            unleased: Oldest::new(demand.total(), at_most),
            leased: Oldest::new(demand.total(), at_most),
            leased_bytes: 0,
        }
    }

    /// Looks at one entry. The order of entries does not matter.
    pub fn offer(&mut self, candidate: Candidate) {
        if candidate.leased {
            self.leased_bytes = self.leased_bytes.saturating_add(candidate.bytes);
        }
        match (candidate.in_use, candidate.leased) {
            (true, _) => {}
            (false, true) => self.leased.offer(candidate),
            (false, false) => self.unleased.offer(candidate),
        }
    }

    /// What has to go, now that everything was seen.
    pub fn finish(self) -> Plan {
        let demand = self.demand;
        let excess = self.leased_bytes.saturating_sub(demand.leases_allowed);
        let mut lapsed = self.leased.into_vec();
        let saw_all = lapsed.len() < self.at_most;
        let mut break_leases = lapsed.split_off(cover(&lapsed, Amount::of_bytes(excess)));

        let mut evict = merge(self.unleased.into_vec(), lapsed);
        // Each list holds its oldest, so that this many of both are the oldest of all.
        evict.truncate(self.at_most);
        evict.truncate(cover(&evict, demand.total()));
        let freed = total(&evict);
        let is_partial = evict.len() == self.at_most && !freed.covers(demand.total());
        let short = demand.hard.minus(freed);
        break_leases.truncate(cover(&break_leases, short));
        let broken = total(&break_leases);
        // Leases are not broken for an upload that will be refused all the same.
        let in_vain = saw_all && !broken.covers(short);
        if is_partial || in_vain || broken.bytes > demand.leases_breakable {
            break_leases.clear();
        }
        Plan {
            evict,
            break_leases,
            is_partial,
        }
    }
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.evict.is_empty() && self.break_leases.is_empty()
    }
}

#[cfg(test)]
mod tests;
