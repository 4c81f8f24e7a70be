//! One pass of the janitor: plans and evicts until the demand is met.

use std::{collections::HashSet, mem, time::Duration};

use gorego_storage::{Candidate, EntryId, Evictable};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Janitor;
use crate::{
    Totals,
    demand::Demand,
    oldest::cover,
    plan::{AT_MOST, Plan, Planner},
    shortage::Shortage,
    totals::add,
};

/// The smallest and the largest number of entries evicted in one step.
const STEP: (usize, usize) = (8, 256);
/// The intended time of a step. Waiting uploads are woken after each.
const STEP_TIME: Duration = Duration::from_millis(10);
/// The number of consecutive plans without an eviction after which a pass gives up.
const FRUITLESS: u32 = 3;
/// The most entries that are remembered because they could not be evicted.
const REMEMBERED: usize = 100_000;

/// The outcome of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PassEnd {
    /// The demand was met.
    Met,
    /// The demand was not met, and nothing more could be evicted.
    Stuck,
    /// The process is shutting down.
    Stopped,
}

/// The state and the totals of one pass.
pub(super) struct Pass<'a> {
    janitor: &'a Janitor,
    started: Instant,
    /// The shortage of the file system.
    shortage: Shortage,
    /// Whether eviction continues down to the low mark.
    down_to_low: bool,
    /// Set if an upload was waiting when the latest plan was made. The plan could then break leases.
    pub(super) hard: bool,
    /// The number of the upload that waited when the demand was last computed.
    upload: u64,
    /// The entries and last uses of candidates whose eviction failed.
    stubborn: HashSet<(EntryId, u64)>,
    step: usize,
    /// The totals of the janitor before the pass.
    before: Totals,
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
            // If eviction may turn out futile, small steps find that out with the fewest losses.
            step: if shortage.lacking.is_zero() {
                STEP.0
            } else {
                1
            },
            before: *janitor.totals.borrow(),
        }
    }

    pub(super) async fn run(&mut self, shutdown: &CancellationToken) -> PassEnd {
        let mut fruitless = 0;
        loop {
            let demand = self.demand();
            if demand.total().is_zero() {
                return PassEnd::Met;
            }
            self.hard = !demand.hard.is_zero();
            let before = self.removed();
            let plan = self.plan(demand).await;
            let tried = plan.evict.len() + plan.break_leases.len() > 0;
            self.evict(&plan.evict, false, shutdown).await;
            self.evict(&plan.break_leases, true, shutdown).await;
            if shutdown.is_cancelled() {
                return PassEnd::Stopped;
            }
            fruitless += 1;
            if self.removed() > before {
                fruitless = 0;
            }
            if fruitless == FRUITLESS || (fruitless > 0 && !tried) {
                // Others may have met the demand meanwhile, for example uploads that ended.
                let met = self.demand().total().is_zero();
                return if met { PassEnd::Met } else { PassEnd::Stuck };
            }
        }
    }

    /// Computes the current demand. Once started, eviction continues down to the low mark.
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

    fn removed(&self) -> u64 {
        let totals = self.janitor.totals.borrow();
        totals.evicted.count + totals.uploads_dropped.count
    }

    async fn plan(&mut self, demand: Demand) -> Plan {
        let stubborn = mem::take(&mut self.stubborn);
        let planned = self
            .janitor
            .blocking(move |store| {
                let mut planner = Planner::new(demand, AT_MOST);
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

    /// Evicts in small steps for as long as there is a demand. If `hard`, only the hard demand counts, and
    /// broken leases are charged to the waiting upload.
    async fn evict(&mut self, planned: &[Candidate], hard: bool, shutdown: &CancellationToken) {
        let mut planned = planned;
        while !shutdown.is_cancelled() {
            let demand = self.demand();
            let amount = if hard { demand.hard } else { demand.total() };
            let count = cover(planned, amount).min(self.step);
            let Some((step, rest)) = planned.split_at_checked(count) else {
                return;
            };
            if step.is_empty() {
                return;
            }
            planned = rest;
            self.evict_step(step.to_vec(), hard).await;
        }
    }

    async fn evict_step(&mut self, step: Vec<Candidate>, charged: bool) {
        let started = Instant::now();
        // Another upload may be the waiting one when the step ends.
        let upload = self.upload;
        let select = |keep: fn(&Candidate) -> bool| -> Vec<_> {
            step.iter().copied().filter(keep).collect()
        };
        let partial = select(|candidate| candidate.partial);
        let unleased = select(|candidate| !candidate.partial && !candidate.leased);
        let leased = select(|candidate| !candidate.partial && candidate.leased);
        let evict = move |store: &dyn Evictable| {
            [(partial, false), (unleased, false), (leased, true)]
                .map(|(part, break_leases)| store.evict(&part, break_leases))
        };
        let [uploads, plain, broken] = self.janitor.blocking(evict).await.unwrap_or_default();
        let count = uploads.count + plain.count + broken.count;
        if count < step.len() as u64 && self.stubborn.len() < REMEMBERED {
            self.stubborn.extend(step.iter().map(shown));
        }
        if charged {
            // Before `room_made`, after which the upload may continue and wait again.
            self.janitor.store.charge_leases(upload, broken.bytes);
        }
        if count > 0 {
            self.janitor.store.room_made(false);
        }
        self.janitor.totals.send_modify(|totals| {
            add(&mut totals.uploads_dropped, uploads);
            add(&mut totals.evicted, plain);
            add(&mut totals.evicted, broken);
            totals.leases_broken += broken.count;
        });
        let is_slow = started.elapsed() > STEP_TIME;
        let next = if is_slow {
            self.step / 2
        } else {
            self.step * 2
        };
        self.step = next.clamp(STEP.0, STEP.1);
    }

    /// Logs one line about the pass.
    pub(super) fn log(&self, end: PassEnd) {
        let usage = self.janitor.store.usage();
        let took = self.started.elapsed();
        let (now, before) = (*self.janitor.totals.borrow(), self.before);
        let (evicted, uploads) = (now.evicted, now.uploads_dropped);
        let count = evicted.count - before.evicted.count;
        let uploads_count = uploads.count - before.uploads_dropped.count;
        if count + uploads_count == 0 {
            tracing::debug!(?end, ?usage, ?took, "found nothing to evict");
            return;
        }
        tracing::info!(
            evicted = count,
            bytes = evicted.bytes - before.evicted.bytes,
            leases_broken = now.leases_broken - before.leases_broken,
            uploads = uploads_count,
            upload_bytes = uploads.bytes - before.uploads_dropped.bytes,
            used = usage.used,
            limit = usage.limit,
            ?took,
            ?end,
            "made room"
        );
    }
}

/// Identifies a candidate as it was visited: a later use makes it another one.
fn shown(candidate: &Candidate) -> (EntryId, u64) {
    (candidate.entry, candidate.last_use)
}
