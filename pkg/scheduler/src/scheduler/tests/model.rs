//! Random orders of events, checked against what must always hold.

mod cluster;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{Taker, queue::Need, state::Phase};

const WORKERS: usize = 3;
const PLATFORMS: [&str; 2] = ["linux", "any"];

#[derive(Clone, Debug)]
enum Step {
    Submit {
        action: u32,
        build: usize,
        priority: i32,
        memory: u64,
        platform: usize,
        do_not_cache: bool,
    },
    Claim(usize),
    Report(prop::sample::Index, u8),
    Progress(prop::sample::Index, Phase),
    Lose(prop::sample::Index),
    RemoveWorker(usize),
    SetWorker(usize),
    Attach(prop::sample::Index),
    Detach(prop::sample::Index),
    Cancel(prop::sample::Index),
    Forget(prop::sample::Index),
    Pass(u64),
    SetForeign(u8, usize, usize),
    ClaimFor(usize),
    Decline(prop::sample::Index),
    Adopt(prop::sample::Index),
    SetPeers(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let submit = (
        0_u32..6,
        0_usize..3,
        -2..3,
        0_u64..10,
        0_usize..2,
        any::<bool>(),
    )
        .prop_map(
            |(action, build, priority, memory, platform, do_not_cache)| Step::Submit {
                action,
                build,
                priority,
                memory,
                platform,
                do_not_cache,
            },
        );
    let phase = prop::sample::select(vec![Phase::Fetch, Phase::Stage, Phase::Run, Phase::Publish]);
    let any = any::<prop::sample::Index>;
    prop_oneof![
        6 => submit,
        8 => (0..WORKERS).prop_map(Step::Claim),
        6 => (any(), 0_u8..6).prop_map(|(attempt, kind)| Step::Report(attempt, kind)),
        1 => (any(), phase).prop_map(|(attempt, phase)| Step::Progress(attempt, phase)),
        1 => any().prop_map(Step::Lose),
        1 => (0..WORKERS).prop_map(Step::RemoveWorker),
        1 => (0..WORKERS).prop_map(Step::SetWorker),
        1 => any().prop_map(Step::Attach),
        2 => any().prop_map(Step::Detach),
        1 => any().prop_map(Step::Cancel),
        1 => any().prop_map(Step::Forget),
        2 => (0_u64..40).prop_map(Step::Pass),
        2 => (0_u8..2, 0_usize..4, 0_usize..4).prop_map(|(e, n, a)| Step::SetForeign(e, n, a)),
        3 => (0_usize..4).prop_map(Step::ClaimFor),
        1 => any().prop_map(Step::Decline),
        2 => any().prop_map(Step::Adopt),
        1 => (0_usize..3).prop_map(Step::SetPeers),
    ]
}

/// The record of the caller: what it was granted and notified of.
struct Model {
    bench: Bench,
    operations: Vec<OperationId>,
    /// Every attempt that was granted.
    attempts: Vec<AttemptId>,
    declined: u32,
    /// The worker, the memory, and whether it is alone, of each attempt that runs.
    held: BTreeMap<AttemptId, (usize, u64, bool)>,
    workers: BTreeSet<usize>,
    /// The newest stage of each operation.
    stages: BTreeMap<OperationId, Stage<u32>>,
}

fn capacity(worker: usize) -> Capacity {
    Capacity {
        slots: worker + 1,
        memory: 8 * GIB,
    }
}

fn name(number: usize) -> WorkerId {
    worker(&format!("w{number}"))
}

/// Worker 0 has one of the platforms only.
fn has_platform(worker: usize, platform: &str) -> bool {
    worker > 0 || platform == "any"
}

impl Model {
    fn new() -> Self {
        let options = Options {
            queue_size: 20,
            max_completed: 8,
            max_completed_bytes: 1000,
            ..options()
        };
        let mut model = Self {
            bench: Bench::with(options, 0),
            operations: Vec::new(),
            attempts: Vec::new(),
            declined: 0,
            held: BTreeMap::new(),
            workers: BTreeSet::new(),
            stages: BTreeMap::new(),
        };
        for worker in 0..WORKERS {
            model.set_worker(worker);
        }
        model
    }

    fn set_worker(&mut self, worker: usize) {
        self.workers.insert(worker);
        let scheduler = &mut self.bench.scheduler;
        scheduler.set_worker(&name(worker), capacity(worker));
        scheduler.set_taker(Taker {
            worker: name(worker),
            memory: 8 * GIB,
            fits: Arc::new(move |platform| has_platform(worker, platform)),
        });
    }

    fn remove_worker(&mut self, worker: usize) {
        self.workers.remove(&worker);
        self.held.retain(|_, (on, ..)| *on != worker);
        self.bench
            .scheduler
            .remove_worker(&name(worker), self.bench.now);
    }

    fn submit(&mut self, request: &Request<u32>) {
        let waiting = self.bench.scheduler.totals();
        match self.bench.try_submit(request) {
            Ok(id) => {
                self.operations.push(id);
                let stage = self.bench.scheduler.stage(id).unwrap();
                assert!(!matches!(stage, Stage::Completed(_)));
                self.stages.insert(id, stage);
            }
            Err(refused) => {
                assert!(matches!(refused, Refused::Full(20..)), "{refused}");
                assert!(waiting.live >= 20);
            }
        }
    }

    /// Claims for a worker. Returns false if it was refused.
    fn claim(&mut self, worker: usize) -> bool {
        let now = self.bench.now;
        let fits = |platform: &str| has_platform(worker, platform);
        let claimed = self.bench.scheduler.claim(&name(worker), fits, now);
        let grant = match claimed {
            Some(Claimed::Own(grant)) => grant,
            Some(Claimed::Foreign(claim)) => {
                self.hold(worker, &claim);
                return true;
            }
            None => {
                self.assert_refusal(worker);
                return false;
            }
        };
        let place = (worker, grant.memory, grant.alone);
        assert!(self.held.insert(grant.attempt, place).is_none());
        self.attempts.push(grant.attempt);
        // Two errors, five losses, one lack of memory.
        assert!(grant.attempt.number() <= 1 + 2 + 5 + 1 + self.declined);
        true
    }

    /// A claim is refused only without a free slot, without an action that fits, or for an action that waits.
    fn assert_refusal(&self, worker: usize) {
        let scheduler = &self.bench.scheduler;
        let held: Vec<_> = self
            .held
            .values()
            .filter(|(on, ..)| *on == worker)
            .collect();
        let is_full = held.len() >= capacity(worker).slots || held.iter().any(|(.., alone)| *alone);
        if is_full || !self.workers.contains(&worker) {
            return;
        }
        if let Some(awaited) = scheduler.ledger.drains_for(&name(worker)) {
            let execution = scheduler.executions.get(&awaited);
            let is_queued = execution.is_some_and(|execution| execution.running.is_none());
            assert!(is_queued || scheduler.foreign.contains_key(&awaited));
            assert!(!held.is_empty());
            return;
        }
        let free = 8 * GIB - held.iter().map(|(_, memory, _)| memory).sum::<u64>();
        let mut executions = scheduler.executions.values();
        assert!(!executions.any(|execution| {
            let fits = match execution.class.need {
                Need::Memory(bytes) => bytes <= free,
                Need::Alone => false,
            };
            execution.running.is_none()
                && execution
                    .class
                    .is_met(|platform| has_platform(worker, platform))
                && !scheduler.leaves(&name(worker), &execution.class)
                && (fits || held.is_empty())
        }));
    }

    fn report(&mut self, attempt: AttemptId, kind: u8) {
        self.held.remove(&attempt);
        let report = match kind {
            0 => Report::Failed(outcome(0)),
            1 => Report::OutOfMemory(outcome(1)),
            2 => Report::Stopped,
            _ => done(2),
        };
        let is_final = kind > 2;
        self.bench.report(attempt, report);
        let executions = &self.bench.scheduler.executions;
        assert!(!is_final || !executions.contains_key(&attempt.execution));
    }

    fn apply(&mut self, step: &Step) {
        let now = self.bench.now;
        let operation = |at: &prop::sample::Index| match &self.operations[..] {
            [] => OperationId(0),
            operations => *at.get(operations),
        };
        let attempt =
            |at: &prop::sample::Index| (!self.attempts.is_empty()).then(|| *at.get(&self.attempts));
        let scheduler = &mut self.bench.scheduler;
        match step {
            Step::Submit {
                action,
                build,
                priority,
                memory,
                platform,
                do_not_cache,
            } => {
                let mut request = request(*action);
                request.build = format!("build {build}");
                request.priority = *priority;
                request.memory = memory * GIB;
                request.platform = PLATFORMS[*platform].into();
                request.do_not_cache = *do_not_cache;
                self.submit(&request);
            }
            Step::Claim(worker) => drop(self.claim(*worker)),
            Step::Report(at, kind) => {
                if let Some(attempt) = attempt(at) {
                    self.report(attempt, *kind);
                }
            }
            Step::Progress(at, phase) => {
                if let Some(attempt) = attempt(at) {
                    scheduler.progress(attempt, *phase, now);
                }
            }
            Step::Lose(at) => {
                if let Some(attempt) = attempt(at) {
                    scheduler.lose(attempt, now);
                    self.held.remove(&attempt);
                }
            }
            Step::RemoveWorker(worker) => self.remove_worker(*worker),
            Step::SetWorker(worker) => self.set_worker(*worker),
            Step::Attach(at) => drop(scheduler.attach(operation(at))),
            Step::Detach(at) => scheduler.detach(operation(at), now),
            Step::Cancel(at) => drop(scheduler.cancel(operation(at), now)),
            Step::Forget(at) => drop(scheduler.forget(operation(at))),
            Step::SetForeign(entry, need, actions) => self.set_foreign(*entry, *need, *actions),
            Step::ClaimFor(need) => self.claim_for(*need),
            Step::Decline(at) => attempt(at).into_iter().for_each(|it| self.decline(it)),
            Step::Adopt(at) => attempt(at).into_iter().for_each(|it| self.adopt(it)),
            Step::SetPeers(peers) => self.set_peers(*peers),
            Step::Pass(seconds) => self.bench.pass(Duration::from_secs(*seconds)),
        }
    }

    /// Checks the effects of a step: no stage goes back except for a retry or another run, and nothing follows the end.
    fn check_effects(&mut self, may_retry: bool) {
        for effect in self.bench.scheduler.take_effects() {
            match effect {
                Effect::Claim => {}
                Effect::Stop(worker, attempt) => {
                    let (on, ..) = self.held[&attempt];
                    assert_eq!(name(on), worker);
                    assert!(
                        !self
                            .bench
                            .scheduler
                            .executions
                            .contains_key(&attempt.execution)
                    );
                }
                Effect::Notify(id, stage) => {
                    let before = self.stages.insert(id, stage.clone()).unwrap();
                    match (before, stage) {
                        (Stage::Completed(_), _) => panic!("{id} ended twice"),
                        (Stage::Queued, Stage::Executing(_)) | (_, Stage::Completed(_)) => {}
                        (Stage::Executing(_), Stage::Queued) => assert!(may_retry),
                        (Stage::Executing(before), Stage::Executing(after)) => {
                            assert_eq!(before.attempt, after.attempt);
                            let is_again = before.run < after.run;
                            assert!(before.phase < after.phase || is_again);
                            assert!(!is_again || after.phase == Some(Phase::Run));
                        }
                        (Stage::Queued, Stage::Queued) => panic!("{id} was queued twice"),
                    }
                }
            }
        }
    }

    /// Checks that the parts of the scheduler agree with each other and with this record.
    fn check_state(&self) {
        let scheduler = &self.bench.scheduler;
        let totals = scheduler.totals();
        assert_eq!(totals.running + totals.elsewhere, self.held.len());
        assert!(totals.completed <= 8 && totals.completed_bytes <= 1000);
        self.check_queue();
        let (mut live, mut executing) = (0, 0);
        for (number, execution) in &scheduler.executions {
            assert!(!execution.operations.is_empty());
            executing += usize::from(execution.running.is_some());
            live += execution.operations.len();
            for (position, id) in execution.operations.iter().enumerate() {
                let entry = scheduler.operations.live(*id).unwrap();
                assert_eq!((entry.execution, entry.position), (*number, position));
                assert_eq!(entry.line.is_none(), execution.running.is_some());
            }
            if let Some(running) = &execution.running {
                assert!(self.held.contains_key(&running.attempt));
            }
        }
        assert_eq!((totals.live, scheduler.executing), (live, executing));
        let ended = |stage: &&Stage<u32>| !matches!(stage, Stage::Completed(_));
        assert_eq!(self.stages.values().filter(ended).count(), live);
        for worker in 0..WORKERS {
            let held: Vec<_> = self
                .held
                .values()
                .filter(|(on, ..)| *on == worker)
                .collect();
            assert!(held.len() <= capacity(worker).slots);
            assert!(held.iter().map(|(_, memory, _)| memory).sum::<u64>() <= 8 * GIB);
            assert!(held.len() <= 1 || held.iter().all(|(.., alone)| !alone));
        }
    }

    /// Lets the workers finish everything.
    fn finish(&mut self) {
        for worker in 0..WORKERS {
            self.set_worker(worker);
        }
        self.set_peers(0);
        for _ in 0..200 {
            let claimed = (0..WORKERS).filter(|worker| self.claim(*worker)).count();
            let held: Vec<_> = self.held.keys().copied().collect();
            if claimed == 0 && held.is_empty() {
                break;
            }
            for attempt in held {
                self.report(attempt, 3);
            }
        }
        self.check_effects(false);
        self.check_state();
        let scheduler = &self.bench.scheduler;
        let totals = scheduler.totals();
        assert_eq!(
            (
                totals.queued,
                totals.running + totals.elsewhere,
                totals.live
            ),
            (0, 0, 0)
        );
        assert!(scheduler.queue.is_empty() && scheduler.ledger.is_idle());
        assert!(scheduler.mergeable.is_empty() && scheduler.ahead.is_empty());
        self.bench.pass(Duration::from_mins(10));
        let deadline = self.bench.scheduler.deadline();
        assert_eq!(
            (self.bench.scheduler.totals().completed, deadline),
            (0, None)
        );
    }
}

proptest! {
    #[test]
    fn whatever_the_order_of_events_every_operation_ends_once_and_nothing_leaks(
        steps in prop::collection::vec(step(), 1..200),
        shuts_down in prop::bool::weighted(0.2),
    ) {
        let mut model = Model::new();
        for step in &steps {
            model.apply(step);
            let may_retry = matches!(
                step,
                Step::Report(_, 0..=2)
                    | Step::Lose(_)
                    | Step::RemoveWorker(_)
                    | Step::Decline(_)
            );
            model.check_effects(may_retry);
            model.check_state();
        }
        if shuts_down {
            model.bench.scheduler.shut_down(model.bench.now);
            model.check_effects(false);
        }
        model.finish();
    }
}
