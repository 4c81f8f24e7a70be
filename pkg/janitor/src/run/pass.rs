//! One pass: from a need to its end.

use std::{collections::HashSet, mem, time::Duration};

use gorego_storage::{Candidate, EntryId, Removed};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Janitor;
use crate::{Amount, Demand, Plan, Planner, oldest::cover, shortage::Shortage};

/// How many entries are evicted at a time, at most and at least.
const STEP: (usize, usize) = (8, 256);
/// How long a step should take; those who wait are told after each.
const STEP_TIME: Duration = Duration::from_millis(10);
/// How many plans in a row may come to nothing.
const FRUITLESS: u32 = 3;
/// How many entries that could not be evicted are remembered.
const REMEMBERED: usize = 100_000;

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing more is needed.
    Met,
    /// More is needed, and nothing more could be removed.
    Stuck,
    /// The program is to end.
    Stopped,
}

/// The janitor's work from one need to its end, and what came of it.
pub(super) struct Pass<'a> {
    janitor: &'a Janitor,
    started: Instant,
    /// The shortage of the file system.
    shortage: Shortage,
    /// Whether eviction goes on down to the low mark.
    down_to_low: bool,
    /// Whether an upload was waiting when the latest plan was made.
    hard: bool,
    /// The number of the upload that the latest look at the need was for.
    upload: u64,
    /// Shown like this, and not evicted: it was used since, or cannot be removed.
    stubborn: HashSet<(EntryId, u64)>,
    step: usize,
    evicted: Removed,
    leases_broken: u64,
    uploads: Removed,
}

impl<'a> Pass<'a> {
    pub(super) fn new(janitor: &'a Janitor, shortage: Shortage) -> Self {
        Self {
            janitor,
            started: Instant::now(),
            shortage,
            down_to_low: false,
            hard: false,
            upload: 0,
            stubborn: HashSet::new(),
            // Where it may be futile, as little as possible is evicted before that can be told.
            step: if shortage.lacking().is_zero() {
                STEP.0
            } else {
                1
            },
            evicted: Removed::default(),
            leases_broken: 0,
            uploads: Removed::default(),
        }
    }

    pub(super) async fn run(&mut self, shutdown: &CancellationToken) -> End {
        let mut fruitless = 0;
        loop {
            let demand = self.demand();
            if demand.total().is_zero() {
                return End::Met;
            }
            self.hard = !demand.hard.is_zero();
            let before = self.removed();
            let plan = self.plan(demand).await;
            let tried = !plan.is_empty();
            self.carry_out(plan, shutdown).await;
            if shutdown.is_cancelled() {
                return End::Stopped;
            }
            fruitless = if self.removed() > before {
                0
            } else {
                fruitless + 1
            };
            if fruitless == FRUITLESS || (fruitless > 0 && !tried) {
                // The last look may have been met by others: uploads that ended, for one.
                let met = self.demand().total().is_zero();
                return if met { End::Met } else { End::Stuck };
            }
        }
    }

    /// What is needed at this moment. Once below the high mark, eviction goes on to the low one.
    fn demand(&mut self) -> Demand {
        let (usage, marks) = (self.janitor.store.usage(), &self.janitor.options.marks);
        self.upload = usage.upload;
        let on_disk = self.shortage.left(&usage);
        let demand = Demand::of(&usage, marks, on_disk);
        self.down_to_low |= !demand.soft.is_zero();
        if self.down_to_low {
            Demand::down_to_low(&usage, marks, on_disk)
        } else {
            demand
        }
    }

    /// Whether the pass did, at its end, what it may do for waiting uploads only.
    pub(super) const fn was_hard(&self) -> bool {
        self.hard
    }

    const fn removed(&self) -> u64 {
        self.evicted.count + self.uploads.count
    }

    async fn plan(&mut self, demand: Demand) -> Plan {
        let stubborn = mem::take(&mut self.stubborn);
        let planned = self
            .janitor
            .blocking(move |store| {
                let mut planner = Planner::new(demand);
                store.visit(&mut |candidate| {
                    if stubborn.is_empty() || !stubborn.contains(&shown(&candidate)) {
                        planner.offer(candidate);
                    }
                });
                (planner.finish(), stubborn)
            })
            .await;
        let (plan, stubborn) = planned.unwrap_or_default();
        self.stubborn = stubborn;
        plan
    }

    async fn carry_out(&mut self, plan: Plan, shutdown: &CancellationToken) {
        self.evict(&plan.evict, Demand::total, false, shutdown)
            .await;
        self.evict(&plan.break_leases, |demand| demand.hard, true, shutdown)
            .await;
    }

    /// Evicts in small steps, for as long as there is a need. With `charged`, broken leases count
    /// against the waiting upload.
    async fn evict(
        &mut self,
        mut candidates: &[Candidate],
        need: impl Fn(&Demand) -> Amount,
        charged: bool,
        shutdown: &CancellationToken,
    ) {
        while !candidates.is_empty() && !shutdown.is_cancelled() {
            let needed = cover(candidates, need(&self.demand()));
            let Some((step, rest)) = candidates.split_at_checked(needed.min(self.step)) else {
                return;
            };
            if step.is_empty() {
                return;
            }
            candidates = rest;
            self.evict_step(step.to_vec(), charged).await;
        }
    }

    async fn evict_step(&mut self, step: Vec<Candidate>, charged: bool) {
        let started = Instant::now();
        // It may leave while the step goes on.
        let upload = self.upload;
        let (partial, rest): (Vec<Candidate>, Vec<Candidate>) = step
            .iter()
            .copied()
            .partition(|candidate| candidate.partial);
        let (leased, unleased): (Vec<_>, Vec<_>) =
            rest.into_iter().partition(|candidate| candidate.leased);
        let evict = move |store: &dyn gorego_storage::Evictable| {
            [(partial, false), (unleased, false), (leased, true)]
                .map(|(step, break_leases)| store.evict(&step, break_leases))
        };
        let [uploads, plain, broken] = self.janitor.blocking(evict).await.unwrap_or_default();
        let evicted = sum(plain, broken);
        let count = evicted.count + uploads.count;
        if count < step.len() as u64 && self.stubborn.len() < REMEMBERED {
            self.stubborn.extend(step.iter().map(shown));
        }
        if charged {
            // First: with the room that was made, the upload may go on and wait again.
            self.janitor.store.charge_leases(upload, broken.bytes);
        }
        if count > 0 {
            self.janitor.store.room_made(false);
        }
        self.evicted = sum(self.evicted, evicted);
        self.uploads = sum(self.uploads, uploads);
        self.leases_broken += broken.count;
        self.janitor.counters.evicted(evicted, broken.count);
        self.janitor.counters.uploads_dropped(uploads);
        self.step = next_step(self.step, started.elapsed());
    }

    /// One line about all of it.
    pub(super) fn log(&self, end: End) {
        let usage = self.janitor.store.usage();
        let took = self.started.elapsed();
        if self.removed() == 0 {
            tracing::debug!(?end, ?usage, ?took, "found nothing to evict");
            return;
        }
        tracing::info!(
            evicted = self.evicted.count,
            bytes = self.evicted.bytes,
            leases_broken = self.leases_broken,
            uploads = self.uploads.count,
            upload_bytes = self.uploads.bytes,
            used = usage.used,
            limit = usage.limit,
            ?took,
            ?end,
            "made room"
        );
    }
}

const fn sum(a: Removed, b: Removed) -> Removed {
    Removed {
        count: a.count + b.count,
        bytes: a.bytes + b.bytes,
    }
}

/// What a candidate was when it was shown.
fn shown(candidate: &Candidate) -> (EntryId, u64) {
    (candidate.entry, candidate.last_use)
}

/// How many entries to evict next, after that many took so long.
fn next_step(step: usize, took: Duration) -> usize {
    let next = if took > STEP_TIME { step / 2 } else { step * 2 };
    next.clamp(STEP.0, STEP.1)
}
