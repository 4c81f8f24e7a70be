//! The nodes that take this node's actions, resume them after a lost link, or keep failing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use gorego_scheduler::{AttemptId, Generation, Taker, WorkerId};

use super::parts::{Parts, worker};
use crate::handover::Member;

impl<J: Send + Sync + 'static, O: Send + Sync + 'static> Parts<J, O> {
    /// Replaces the peers that take actions.
    pub(super) fn replace_takers(&self, takers: &[&Member]) {
        let mut by_platform = BTreeMap::new();
        let takers = takers.iter().map(|member| {
            let record = self.records.get(&member.node);
            let fits = by_platform.entry(record.map(|record| &record.platform));
            let fits = fits.or_insert_with(|| {
                // The executor owns the scheduler, which must not own the executor.
                let (record, work) = (record.cloned(), Arc::downgrade(&self.work));
                Arc::new(move |platform: &str| {
                    let both = record.as_ref().zip(work.upgrade());
                    both.is_some_and(|(record, work)| work.fits(record, platform))
                })
            });
            Taker {
                worker: worker(&member.node),
                memory: member.memory,
                fits: Arc::clone(fits) as _,
            }
        });
        self.scheduler.set_peers(takers.collect());
    }

    /// Returns the peers that may run queued actions which none of the chosen ones may run.
    pub(super) fn able_peers<'a>(
        &self,
        members: &[&'a Member],
        chosen: &BTreeSet<Generation>,
        most: usize,
    ) -> Vec<Vec<&'a Member>> {
        let named = members.iter().map(|member| (worker(&member.node), *member));
        let named: BTreeMap<_, _> = named.collect();
        let is_chosen = |peer: &WorkerId| {
            let member = named.get(peer);
            member.is_some_and(|member| chosen.contains(&member.node))
        };
        let lists = self.scheduler.peers_to_ask(is_chosen, most).into_iter();
        let members = |peers: Vec<_>| {
            peers
                .iter()
                .filter_map(|peer| named.get(peer).copied())
                .collect()
        };
        lists.map(members).collect()
    }

    /// Resumes a lost attempt that a peer still runs. Returns false if its action is no longer queued.
    pub(super) fn resume(&mut self, peer: &Generation, attempt: AttemptId) -> bool {
        let Some(given) = self.given.get_mut(&attempt) else {
            return false;
        };
        let is_resumed = self.scheduler.adopt(&worker(peer), attempt);
        if is_resumed {
            tracing::debug!(%peer, "a node came back, and its attempt is resumed");
            (given.node, given.has_ended) = (peer.clone(), false);
        }
        is_resumed
    }

    /// Updates the nodes whose attempts keep failing, and logs each new one.
    pub(super) fn update_failing(&mut self) {
        let failing = self.scheduler.failing().into_iter();
        let failing: BTreeSet<_> = failing.map(|worker| worker.to_string()).collect();
        for node in failing.difference(&self.failing) {
            tracing::warn!(
                node,
                "three attempts in a row failed at a node, so it gets few actions while others can run them: see its \
                 log, and run gorego drain there before a repair"
            );
        }
        self.failing = failing;
    }
}
