//! The promises of the scheduler. Helpers here; the tests by subject in the modules.

mod ahead;
mod attempts;
mod capacity;
mod fairness;
mod foreign;
mod model;
mod operations;
mod peers;
mod takers;

use std::{sync::Arc, time::Duration};

use gorego_storage::{DigestFunction, InstanceName};

use super::*;
use crate::{
    ledger::{AttemptId, Capacity, WorkerId},
    state::{Grant, Outcome, Report},
};

pub(super) const GIB: u64 = 1 << 30;

fn options() -> Options {
    Options {
        queue_size: 1000,
        abandon_after: Duration::from_mins(1),
        retain_completed: Duration::from_mins(10),
        max_completed: 1000,
        max_completed_bytes: GIB,
        max_retries: 2,
        max_losses: 5,
    }
}

/// Returns a request for the action with this number, which is also its job.
pub(super) fn request(action: u32) -> Request<u32> {
    Request {
        key: Arc::new(ActionKey {
            instance: InstanceName::default(),
            action: DigestFunction::Sha256.digest(&action.to_le_bytes()),
        }),
        do_not_cache: false,
        build: "build".to_owned(),
        priority: 0,
        platform: "linux".into(),
        memory: 0,
        target: format!("//pkg:{action}"),
        mnemonic: "Rustc".to_owned(),
        job: Arc::new(action),
    }
}

fn of_build(action: u32, build: &str) -> Request<u32> {
    let build = build.to_owned();
    Request {
        build,
        ..request(action)
    }
}

pub(super) fn worker(name: &str) -> WorkerId {
    WorkerId::new(name)
}

fn needing(action: u32, memory: u64) -> Request<u32> {
    Request {
        memory,
        ..request(action)
    }
}

fn outcome(value: u32) -> Outcome<u32> {
    Outcome { value, bytes: 100 }
}

pub(super) fn done(value: u32) -> Report<u32> {
    Report::Done(outcome(value))
}

/// A scheduler with one worker, `w`, and a clock.
pub(super) struct Bench {
    pub(super) scheduler: Scheduler<u32, u32>,
    pub(super) now: Time,
    last_id: u128,
}

impl Bench {
    pub(super) fn new(slots: usize) -> Self {
        Self::with(options(), slots)
    }

    fn with(options: Options, slots: usize) -> Self {
        let mut scheduler = Scheduler::new(options);
        let capacity = Capacity {
            slots,
            memory: 8 * GIB,
        };
        scheduler.set_worker(&worker("w"), capacity);
        Self {
            scheduler,
            now: Time::ZERO,
            last_id: 0,
        }
    }

    fn try_submit(&mut self, request: &Request<u32>) -> Result<OperationId, Refused> {
        self.last_id += 1;
        let id = OperationId(self.last_id);
        self.scheduler.submit(id, request, self.now).map(|_| id)
    }

    pub(super) fn submit(&mut self, request: &Request<u32>) -> OperationId {
        self.try_submit(request).unwrap()
    }

    pub(super) fn try_claim(&mut self, name: &str) -> Option<Grant<u32>> {
        match self.scheduler.claim(&worker(name), |_| true, self.now)? {
            Claimed::Own(grant) => Some(grant),
            Claimed::Foreign(claim) => panic!("{claim:?}"),
        }
    }

    /// Claims for `w`, which gets a grant.
    fn claim(&mut self) -> Grant<u32> {
        self.try_claim("w").unwrap()
    }

    /// Claims for `w`, which gets this action.
    #[track_caller]
    pub(super) fn claims(&mut self, action: u32) -> AttemptId {
        let grant = self.claim();
        assert_eq!(*grant.job, action);
        grant.attempt
    }

    pub(super) fn report(&mut self, attempt: AttemptId, report: Report<u32>) {
        self.scheduler.report(attempt, report, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.scheduler.tick(self.now);
    }

    /// The stage of an operation in short: `queued`, `run 2`, `done 7`, `cancelled`, `unknown`.
    pub(super) fn stage(&self, id: OperationId) -> String {
        let stage = self.scheduler.stage(id);
        stage.map_or_else(|| "unknown".to_owned(), |stage| short(&stage))
    }

    /// Carries out the effects. Returns those of operations and attempts in short, in order.
    pub(super) fn effects(&mut self) -> Vec<String> {
        let effects = self.scheduler.take_effects().into_iter();
        let shown = effects.filter_map(|effect| match effect {
            Effect::Notify(id, stage) => Some(format!("{} {}", id.0, short(&stage))),
            Effect::Stop(worker, attempt) => Some(format!("stop {worker} {}", attempt.number())),
            Effect::Claim => None,
        });
        shown.collect()
    }
}

fn short(stage: &Stage<u32>) -> String {
    match stage {
        Stage::Queued => "queued".to_owned(),
        Stage::Executing(running) => match running.phase {
            None => format!("run {}", running.attempt.number()),
            Some(phase) => format!("run {} {phase:?}", running.attempt.number()),
        },
        Stage::Completed(End::Outcome(value)) => format!("done {value}"),
        Stage::Completed(End::Cancelled) => "cancelled".to_owned(),
        Stage::Completed(End::Abandoned) => "abandoned".to_owned(),
        Stage::Completed(End::WorkersLost(lost)) => format!("lost {}", lost.len()),
        Stage::Completed(End::ShutDown) => "shut down".to_owned(),
    }
}
