//! The steps of other nodes.

use super::*;
use crate::{Generation, scheduler::ForeignClaim};

/// The number of the worker that is a peer.
const PEER: usize = WORKERS;
const NEEDS: [Need; 4] = [
    Need::Memory(0),
    Need::Memory(3 * GIB),
    Need::Memory(9 * GIB),
    Need::Alone,
];

impl Model {
    /// Holds the slot of a claim for another node.
    pub(super) fn hold(&mut self, worker: usize, claim: &ForeignClaim) {
        let place = (worker, claim.memory, claim.alone);
        assert!(self.held.insert(claim.attempt, place).is_none());
        self.attempts.push(claim.attempt);
    }

    pub(super) fn set_foreign(&mut self, entry: u8, need: usize, actions: usize) {
        let entry = Generation::new(&format!("e{entry}"), 1).unwrap();
        let counts = [(NEEDS[need], actions), (NEEDS[0], 1)];
        self.bench.scheduler.set_foreign(&entry, &counts);
        if actions == 0 {
            self.bench.scheduler.foreign_empty(&entry, NEEDS[need]);
        }
    }

    pub(super) fn claim_for(&mut self, need: usize) {
        let (now, need) = (self.bench.now, NEEDS[need]);
        let scheduler = &mut self.bench.scheduler;
        let peer = name(PEER);
        let queued = scheduler.queued_by_need(&peer, |platform| platform == "any");
        let covered = |(queued, _): &(Need, usize)| need.covers(*queued);
        scheduler.look_ahead(&peer, need, 2, |platform| platform == "any");
        // Those that were named for other claims may need more.
        let named = scheduler.ahead.of(&peer).count();
        assert!(named <= 2 && (named > 0 || !queued.iter().any(covered)));
        let grant = scheduler.claim_for(&peer, need, |platform| platform == "any", now);
        assert_eq!(grant.is_some(), queued.iter().any(covered));
        if let Some(grant) = grant {
            self.held.insert(grant.attempt, (PEER, 0, grant.alone));
            self.attempts.push(grant.attempt);
        }
    }

    pub(super) fn decline(&mut self, attempt: AttemptId) {
        self.declined += 1;
        self.held.remove(&attempt);
        self.bench.scheduler.decline(attempt, self.bench.now);
    }

    /// Resumes an attempt at the peer.
    pub(super) fn adopt(&mut self, attempt: AttemptId) {
        let scheduler = &mut self.bench.scheduler;
        let execution = scheduler.executions.get(&attempt.execution);
        let is_lost = execution.is_some_and(|execution| {
            let lost = (Some(attempt.number), name(PEER));
            execution.running.is_none() && execution.lost.contains(&lost)
        });
        let is_adopted = scheduler.adopt(&name(PEER), attempt, self.bench.now);
        assert_eq!(is_adopted, is_lost);
        if is_adopted {
            self.declined += 1;
            self.held.insert(attempt, (PEER, 0, false));
        }
    }

    pub(super) fn set_peers(&mut self, count: usize) {
        let peers = (PEER..).take(count).map(|peer| Taker {
            worker: name(peer),
            memory: 8 * GIB,
            fits: Arc::new(|platform| platform == "any"),
        });
        let now = self.bench.now;
        self.bench.scheduler.set_peers(peers.collect(), now);
    }

    /// Checks the numbers of queued executions, and that peers are refused nothing.
    pub(super) fn check_queue(&self) {
        let scheduler = &self.bench.scheduler;
        let queued = scheduler.queued_by_need(&name(PEER + 1), |_| true);
        let queued: usize = queued.iter().map(|(_, executions)| executions).sum();
        assert_eq!(queued, scheduler.totals().queued);
        let peer = name(PEER);
        let mut named = scheduler.ahead.of(&peer);
        assert!(named.all(|execution| scheduler.executions[&execution].running.is_none()));
    }
}
