//! The host of the hand-over, implemented by the links and the scheduler of a node.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    sync::Arc,
};

use futures::FutureExt as _;
use gorego_scheduler::{AttemptId, Generation, Need, Phase, Report};
use prost::Message as _;
use reapi::gorego::{
    ResourceUsage,
    cluster::{self as proto, Done, Prefetch, done::End, frame::Content},
};

use super::{
    RequeueCause, Told,
    ahead::LinkFetches,
    parts::{Given, Parts, Taken, worker},
};
use crate::{
    choice,
    handover::{Host, Member, wire},
    link::MAX_FRAME,
    record::Record,
};

/// The most bytes of a grant, which has to fit into a frame.
const MAX_GRANT: usize = MAX_FRAME / 2;

impl<J: Send + Sync + 'static, O: Send + Sync + 'static> Host for Parts<J, O> {
    fn send(&mut self, peer: &Generation, frame: Content) {
        self.send_content(peer, frame);
    }

    fn connect(&mut self, peer: &Generation) {
        self.dial(peer);
    }

    fn queued(&mut self, peer: &Generation) -> Vec<(Need, usize)> {
        let fits = self.fits(peer);
        self.scheduler.queued_by_need(&worker(peer), fits)
    }

    fn peers_to_free(&self) -> BTreeMap<Need, usize> {
        self.scheduler.peers_to_free()
    }

    fn classes(&self) -> usize {
        self.scheduler.count_classes()
    }

    fn peers_to_ask<'a>(
        &self,
        members: &[&'a Member],
        chosen: &BTreeSet<Generation>,
        most: usize,
    ) -> Vec<Vec<&'a Member>> {
        self.able_peers(members, chosen, most)
    }

    fn backlog(&mut self) -> (usize, u64) {
        let next = self.scheduler.next_target();
        let kind = next.map(|(target, mnemonic)| choice::kind(&target, &mnemonic));
        (self.scheduler.totals().queued, kind.unwrap_or_default())
    }

    fn grant(&mut self, peer: &Generation, need: Need) -> Option<(AttemptId, proto::Grant)> {
        let fits = self.fits(peer);
        let grant = self.scheduler.claim_for(&worker(peer), need, fits)?;
        let given = Given {
            node: peer.clone(),
            key: grant.key.clone(),
            job: Arc::clone(&grant.job),
            has_ended: false,
        };
        self.given.insert(grant.attempt, given);
        self.counts.given += 1;
        let mut frame = self.work.describe(&grant);
        // A wish, which need not be met.
        if frame.encoded_len() > MAX_GRANT {
            frame.inline_output_files.clear();
        }
        if frame.encoded_len() > MAX_GRANT {
            frame.metadata.clear();
        }
        Some((grant.attempt, frame))
    }

    fn look_ahead(&mut self, peer: &Generation, need: Need, most: usize) -> Vec<Prefetch> {
        self.choose_ahead(peer, need, most)
    }

    fn forget_ahead(&mut self, peer: &Generation) {
        self.scheduler.forget_ahead(&worker(peer));
    }

    fn set_takers(&mut self, takers: &[&Member]) {
        self.replace_takers(takers);
    }

    fn adopt(&mut self, peer: &Generation, attempt: AttemptId) -> bool {
        self.resume(peer, attempt)
    }

    fn is_awaited(&self, attempt: AttemptId) -> bool {
        self.scheduler.is_awaited(attempt)
    }

    fn progress(&mut self, attempt: AttemptId, phase: Phase, run: u16) {
        self.scheduler.progress(attempt, phase, run);
    }

    fn record_usage(&mut self, attempt: AttemptId, usage: Option<ResourceUsage>) {
        if let Some(given) = self.given.get(&attempt) {
            self.work.record_usage(&given.job, attempt, usage);
        }
    }

    fn ended(&mut self, peer: &Generation, done: Done) -> bool {
        let Some(attempt) = wire::attempt(done.attempt.as_ref()) else {
            return true;
        };
        let Some(given) = self.given.get_mut(&attempt) else {
            // Nobody waits for it, but its slot is still counted.
            self.scheduler.report(attempt, Report::Stopped);
            return true;
        };
        given.has_ended = true;
        // A node that stops is no loss, however often that happens to an action.
        let drains = |record: &Arc<Record>| record.draining;
        if done.end() == End::Stopped && self.records.get(peer).is_none_or(drains) {
            self.counts.stopped += u64::from(self.scheduler.is_awaited(attempt));
            self.scheduler.decline(attempt);
            return true;
        }
        let (key, job) = (given.key.clone(), Arc::clone(&given.job));
        let (work, scheduler) = (Arc::clone(&self.work), self.scheduler.clone());
        let (told, peer) = (self.told.clone(), peer.clone());
        self.spawn(async move {
            let decoded = work.decode(&peer, &key, &job, done);
            let decoded = AssertUnwindSafe(decoded).catch_unwind().await;
            let report = decoded.unwrap_or(Report::Stopped);
            let is_stop = matches!(report, Report::Stopped);
            let cause = if is_stop {
                RequeueCause::Stopped
            } else {
                RequeueCause::Failed
            };
            let cause = scheduler.report(attempt, report).then_some(cause);
            // This fails if this node has left the cluster.
            let _ = told.send(Told::Reported(peer, attempt, cause));
        });
        false
    }

    fn lose(&mut self, attempt: AttemptId) {
        self.counts.lost += 1;
        self.end_given(attempt);
        self.scheduler.lose(attempt);
    }

    fn decline(&mut self, attempt: AttemptId) {
        self.counts.declined += 1;
        self.end_given(attempt);
        self.scheduler.decline(attempt);
    }

    fn remove(&mut self, peer: &Generation) {
        for given in self.given.values_mut() {
            if given.node == *peer && !std::mem::replace(&mut given.has_ended, true) {
                self.counts.gone += 1;
            }
        }
        self.scheduler.remove_worker(&worker(peer));
    }

    fn set_foreign(&mut self, entry: &Generation, counts: &[(Need, usize)], left: &[Need]) {
        let offered = counts.iter().map(|(_, actions)| *actions as u64).sum();
        self.counts.offered.insert(entry.clone(), offered);
        self.counts.offered.retain(|_, offered| *offered > 0);
        self.scheduler.set_foreign(entry, counts, left);
    }

    fn foreign_empty(&mut self, entry: &Generation, need: Need) {
        self.scheduler.foreign_empty(entry, need);
    }

    fn is_full(&self) -> bool {
        self.scheduler.is_full()
    }

    fn fetch_ahead(&mut self, entry: &Generation, prefetch: Prefetch) {
        self.start_fetch(entry, prefetch);
    }

    fn measure(&mut self) {
        self.start_measuring();
    }

    fn end_fetches(&mut self, entry: &Generation) {
        if let Some(linked) = self.linked.get_mut(entry) {
            linked.fetches = LinkFetches::default();
        }
    }

    fn free(&mut self, slot: AttemptId) {
        self.slots.remove(&slot);
    }

    fn start(&mut self, slot: AttemptId, entry: &Generation, grant: proto::Grant) {
        let Some((since, claimed)) = self.slots.remove(&slot) else {
            return;
        };
        self.counts.taken += 1;
        let (job, stop) = (Arc::default(), claimed.stop.clone());
        let taken = Taken {
            entry: entry.clone(),
            attempt: grant.attempt,
            job: Arc::clone(&job),
            stop: stop.clone(),
            has_ended: false,
        };
        self.taken.insert(slot, taken);
        let (work, told, entry) = (Arc::clone(&self.work), self.told.clone(), entry.clone());
        self.spawn(async move {
            let phases = told.clone();
            let progress = move |phase, run| {
                let _ = phases.send(Told::Progress(slot, phase, run));
            };
            let run = async {
                let prepared = stop.run_until_cancelled(work.prepare(&entry, &grant)).await;
                let report = match prepared {
                    None => Report::Stopped,
                    Some(Err(report)) => report,
                    Some(Ok(granted)) => {
                        // No other task sets it.
                        let _ = job.set(Arc::clone(&granted.job));
                        work.starts(since.elapsed());
                        claimed.run(granted, progress).await
                    }
                };
                work.encode(report).await
            };
            // Without an end, the lease of the attempt would be renewed forever.
            let done = AssertUnwindSafe(run).catch_unwind().await;
            let _ = told.send(Told::Ended(slot, done.unwrap_or_default()));
        });
    }

    fn stop(&mut self, slot: AttemptId) {
        if let Some(taken) = self.taken.get(&slot) {
            taken.stop.cancel();
        }
    }

    fn forget(&mut self, slot: AttemptId) {
        self.taken.remove(&slot);
    }

    fn orphaned(&mut self, entry: &Generation, done: &Done) {
        let of_done = |taken: &&Taken<J>| taken.entry == *entry && taken.attempt == done.attempt;
        let taken = self.taken.values().find(of_done);
        if let Some(job) = taken.and_then(|taken| taken.job.get()) {
            let (work, job, done) = (Arc::clone(&self.work), Arc::clone(job), done.clone());
            self.spawn(async move { work.adopt(&job, done).await });
        }
    }
}
