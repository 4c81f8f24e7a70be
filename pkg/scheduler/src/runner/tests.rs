mod cluster;

use async_trait::async_trait;
use gorego_storage::{DigestFunction, InstanceName};
use tokio::sync::mpsc::{Receiver, error::TryRecvError};

use super::*;
use crate::{
    state::{End, Outcome, Phase},
    worker::{ScriptedAttempt, ScriptedWorker},
};

type Attempts = Receiver<ScriptedAttempt<u32, u32>>;

const SECOND: Duration = Duration::from_secs(1);

fn options() -> Options {
    Options {
        queue_size: 100,
        abandon_after: 60 * SECOND,
        retain_completed: 600 * SECOND,
        max_completed: 100,
        max_completed_bytes: 1000,
        max_retries: 2,
        max_losses: 5,
    }
}

fn capacity(slots: usize) -> Capacity {
    Capacity {
        slots,
        memory: 1 << 30,
    }
}

/// Starts a runner with a scripted worker.
fn start(slots: usize) -> (Runner<u32, u32>, Attempts) {
    let runner = Runner::new(options());
    let (worker, attempts) = ScriptedWorker::new();
    runner.add_worker(WorkerId::new("w"), capacity(slots), worker);
    (runner, attempts)
}

fn submit(runner: &Runner<u32, u32>, action: u32) -> Watch<u32, u32> {
    submit_needing(runner, action, 0)
}

fn submit_needing(runner: &Runner<u32, u32>, action: u32, memory: u64) -> Watch<u32, u32> {
    let request = Request {
        key: Arc::new(ActionKey {
            instance: InstanceName::default(),
            action: DigestFunction::Sha256.digest(&action.to_le_bytes()),
        }),
        do_not_cache: true,
        build: String::new(),
        priority: 0,
        platform: "".into(),
        memory,
        target: String::new(),
        mnemonic: String::new(),
        job: Arc::new(action),
    };
    let id = OperationId(action.into());
    runner.submit(id, &request).unwrap()
}

fn done(value: u32) -> Report<u32> {
    Report::Done(Outcome { value, bytes: 1 })
}

async fn next(attempts: &mut Attempts) -> ScriptedAttempt<u32, u32> {
    attempts.recv().await.unwrap()
}

/// The next stage in short; `-` after the last.
async fn stage(watch: &mut Watch<u32, u32>) -> String {
    match watch.next().await {
        None => "-".to_owned(),
        Some(Stage::Queued) => "queued".to_owned(),
        Some(Stage::Executing(running)) => match running.phase {
            None => format!("run {}", running.attempt.number()),
            Some(phase) => format!("run {} {phase:?}", running.attempt.number()),
        },
        Some(Stage::Completed(End::Outcome(value))) => format!("done {value}"),
        Some(Stage::Completed(end)) => format!("{end:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_action_passes_through_its_stages() {
    let (runner, mut attempts) = start(1);
    let mut watch = submit(&runner, 1);
    assert_eq!(stage(&mut watch).await, "queued");
    assert_eq!(stage(&mut watch).await, "run 1");
    let running = next(&mut attempts).await;
    assert_eq!(*running.attempt.grant.job, 1);
    running.attempt.begin(Phase::Run);
    assert_eq!(stage(&mut watch).await, "run 1 Run");
    running.end(done(7));
    assert_eq!(stage(&mut watch).await, "done 7");
    assert_eq!(stage(&mut watch).await, "-");
    assert_eq!(runner.totals().running, 0);
}

#[tokio::test(start_paused = true)]
async fn a_free_slot_starts_the_next_action() {
    let (runner, mut attempts) = start(2);
    let _watches: Vec<_> = (1..=3).map(|action| submit(&runner, action)).collect();
    let first = next(&mut attempts).await;
    let second = next(&mut attempts).await;
    tokio::time::sleep(SECOND).await;
    assert_eq!(attempts.try_recv().err(), Some(TryRecvError::Empty));
    second.end(done(7));
    assert_eq!(*next(&mut attempts).await.attempt.grant.job, 3);
    first.end(done(7));
}

#[tokio::test(start_paused = true)]
async fn a_slow_watcher_sees_the_completion() {
    let (runner, mut attempts) = start(1);
    let mut watch = submit(&runner, 1);
    let running = next(&mut attempts).await;
    running.attempt.begin(Phase::Fetch);
    running.attempt.begin(Phase::Run);
    running.end(done(7));
    tokio::time::sleep(SECOND).await;
    assert_eq!(stage(&mut watch).await, "queued");
    assert_eq!(stage(&mut watch).await, "done 7");
    assert_eq!(stage(&mut watch).await, "-");
}

#[tokio::test(start_paused = true)]
async fn a_later_watcher_starts_with_the_current_stage() {
    let (runner, mut attempts) = start(1);
    let watch = submit(&runner, 1);
    let id = watch.operation();
    let running = next(&mut attempts).await;
    let mut later = runner.watch(id).unwrap();
    assert_eq!(stage(&mut later).await, "run 1");
    running.end(done(7));
    assert_eq!(stage(&mut later).await, "done 7");
    let mut last = runner.watch(id).unwrap();
    assert_eq!(stage(&mut last).await, "done 7");
    assert_eq!(stage(&mut last).await, "-");
    assert!(runner.watch(OperationId(99)).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_watcher_sees_later_stages_after_all_others_left() {
    let (runner, mut attempts) = start(1);
    let watch = submit(&runner, 1);
    let id = watch.operation();
    let running = next(&mut attempts).await;
    drop(watch);
    let mut later = runner.watch(id).unwrap();
    assert_eq!(stage(&mut later).await, "run 1");
    running.attempt.begin(Phase::Run);
    assert_eq!(stage(&mut later).await, "run 1 Run");
    running.end(done(7));
    assert_eq!(stage(&mut later).await, "done 7");
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_action_is_stopped() {
    let (runner, mut attempts) = start(1);
    let watch = submit(&runner, 1);
    let queued = submit(&runner, 2);
    let running = next(&mut attempts).await;
    drop(watch);
    let dropped = Instant::now();
    running.attempt.stop.cancelled().await;
    assert!(dropped.elapsed() >= 60 * SECOND);
    assert_eq!(attempts.try_recv().err(), Some(TryRecvError::Empty));
    running.end(Report::Stopped);
    assert_eq!(*next(&mut attempts).await.attempt.grant.job, 2);
    drop(queued);
}

#[tokio::test(start_paused = true)]
async fn a_watcher_that_returns_in_time_keeps_the_action() {
    let (runner, mut attempts) = start(1);
    let watch = submit(&runner, 1);
    let running = next(&mut attempts).await;
    let id = watch.operation();
    drop(watch);
    tokio::time::sleep(59 * SECOND).await;
    let mut watch = runner.watch(id).unwrap();
    tokio::time::sleep(600 * SECOND).await;
    assert!(!running.attempt.stop.is_cancelled());
    running.end(done(7));
    assert_eq!(stage(&mut watch).await, "run 1");
    assert_eq!(stage(&mut watch).await, "done 7");
}

#[tokio::test(start_paused = true)]
async fn a_completed_operation_expires() {
    let (runner, mut attempts) = start(1);
    let watch = submit(&runner, 1);
    next(&mut attempts).await.end(done(7));
    tokio::time::sleep(599 * SECOND).await;
    let (_, stage) = runner.get(watch.operation()).unwrap();
    assert!(matches!(stage, Stage::Completed(_)));
    tokio::time::sleep(2 * SECOND).await;
    assert!(runner.get(watch.operation()).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_action_is_stopped() {
    let (runner, mut attempts) = start(1);
    let mut watch = submit(&runner, 1);
    let running = next(&mut attempts).await;
    assert!(runner.cancel(watch.operation()));
    running.attempt.stop.cancelled().await;
    assert_eq!(stage(&mut watch).await, "queued");
    assert_eq!(stage(&mut watch).await, "Cancelled");
    running.end(Report::Stopped);
    tokio::time::sleep(SECOND).await;
    assert_eq!(runner.totals().running, 0);
    assert!(runner.forget(watch.operation()));
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_is_retried() {
    let (runner, mut attempts) = start(1);
    let mut watch = submit(&runner, 1);
    for number in 1..=3 {
        let running = next(&mut attempts).await;
        assert_eq!(running.attempt.grant.attempt.number(), number);
        running.end(Report::Failed(Outcome {
            value: number,
            bytes: 1,
        }));
    }
    tokio::time::sleep(SECOND).await;
    assert_eq!(stage(&mut watch).await, "queued");
    assert_eq!(stage(&mut watch).await, "done 3");
}

/// A worker that panics.
struct Panicking;

#[async_trait]
impl Worker<u32, u32> for Panicking {
    fn fits(&self, _platform: &str) -> bool {
        true
    }

    async fn ready(&self) {}

    async fn run(&self, _attempt: Attempt<u32>) -> Report<u32> {
        panic!("a worker of this test")
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_whose_worker_panics_is_lost() {
    let runner = Runner::new(options());
    runner.add_worker(WorkerId::new("w"), capacity(1), Arc::new(Panicking));
    let mut watch = submit(&runner, 1);
    let mut last = String::new();
    while let next = stage(&mut watch).await
        && next != "-"
    {
        last = next;
    }
    assert!(last.starts_with("WorkersLost"), "{last}");
    assert_eq!(runner.totals().running, 0);
}

#[tokio::test(start_paused = true)]
async fn shutting_down_lets_running_actions_end_and_ends_queued_ones_at_once() {
    let (runner, mut attempts) = start(1);
    let [mut running, mut queued] = [submit(&runner, 1), submit(&runner, 2)];
    let attempt = next(&mut attempts).await;
    let started = Instant::now();
    let watches = async {
        assert_eq!(stage(&mut queued).await, "queued");
        assert_eq!(stage(&mut queued).await, "ShutDown");
        assert_eq!(started.elapsed(), Duration::ZERO);
        tokio::time::sleep(SECOND).await;
        attempt.end(done(7));
    };
    tokio::join!(runner.shut_down(10 * SECOND), watches);
    assert!(started.elapsed() < 2 * SECOND);
    assert_eq!(stage(&mut running).await, "queued");
    assert_eq!(stage(&mut running).await, "done 7");
}

#[tokio::test(start_paused = true)]
async fn shutting_down_ends_with_the_last_operation() {
    let (runner, mut attempts) = start(2);
    let watches = [submit(&runner, 1), submit(&runner, 2)];
    let running = [next(&mut attempts).await, next(&mut attempts).await];
    assert!(runner.cancel(watches[0].operation()));
    let cancels = async {
        tokio::time::sleep(SECOND).await;
        assert!(runner.cancel(watches[1].operation()));
        drop(running);
    };
    let started = Instant::now();
    tokio::join!(runner.shut_down(10 * SECOND), cancels);
    assert!(started.elapsed() < 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn shutting_down_stops_actions_after_the_time_limit() {
    let (runner, mut attempts) = start(1);
    let mut watches = [submit(&runner, 1), submit(&runner, 2)];
    let running = next(&mut attempts).await;
    let stopped = Arc::new(Mutex::new(false));
    let work = async {
        running.attempt.stop.cancelled().await;
        tokio::time::sleep(5 * SECOND).await;
        *stopped.lock() = true;
        running.end(Report::Stopped);
    };
    let end = async {
        runner.shut_down(10 * SECOND).await;
        assert!(*stopped.lock());
    };
    tokio::join!(end, work);
    for watch in &mut watches {
        assert_eq!(stage(watch).await, "queued");
        assert_eq!(stage(watch).await, "ShutDown");
    }
}

#[tokio::test(start_paused = true)]
async fn operations_end_with_the_runner() {
    let (runner, mut attempts) = start(1);
    let mut watch = submit(&runner, 1);
    let running = next(&mut attempts).await;
    drop(runner);
    running.attempt.stop.cancelled().await;
    assert_eq!(stage(&mut watch).await, "queued");
    assert_eq!(stage(&mut watch).await, "run 1");
    assert_eq!(stage(&mut watch).await, "ShutDown");
    assert_eq!(stage(&mut watch).await, "-");
}

#[tokio::test(start_paused = true)]
async fn each_worker_runs_as_many_actions_as_it_has_slots() {
    let (runner, mut attempts) = start(1);
    let (second, mut attempts_of_second) = ScriptedWorker::new();
    runner.add_worker(WorkerId::new("second"), capacity(2), second);
    let _watches: Vec<_> = (1..=4).map(|action| submit(&runner, action)).collect();
    let _running = [
        next(&mut attempts).await,
        next(&mut attempts_of_second).await,
        next(&mut attempts_of_second).await,
    ];
    let totals = runner.totals();
    assert_eq!((totals.running, totals.queued), (3, 1));
    assert_eq!(runner.list(2).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_idle_slot_gives_way_to_an_action() {
    let (runner, mut attempts) = start(1);
    let worker = WorkerId::new("w");
    let _first = submit(&runner, 1);
    let running = next(&mut attempts).await;
    let slot = runner.idle_slot(&worker, 0);
    let waits = async {
        tokio::time::sleep(SECOND).await;
        running.end(done(7));
    };
    let (slot, ()) = tokio::join!(slot, waits);
    let slot = slot.unwrap();
    assert!(!slot.stop.is_cancelled());
    let _second = submit(&runner, 2);
    slot.stop.cancelled().await;
    assert_eq!(attempts.try_recv().err(), Some(TryRecvError::Empty));
    drop(slot);
    next(&mut attempts).await.end(done(7));
    runner.shut_down(SECOND).await;
    assert!(runner.idle_slot(&worker, 0).await.is_none());
}

/// A worker whose attempts fail now and then.
struct Unreliable;

#[async_trait]
impl Worker<u32, u32> for Unreliable {
    fn fits(&self, _platform: &str) -> bool {
        true
    }

    async fn ready(&self) {}

    async fn run(&self, attempt: Attempt<u32>) -> Report<u32> {
        let job = *attempt.grant.job;
        attempt.begin(Phase::Run);
        tokio::task::yield_now().await;
        let value = Outcome {
            value: job,
            bytes: 1,
        };
        match (job + attempt.grant.attempt.number()) % 5 {
            0 => Report::Failed(value),
            1 => Report::OutOfMemory(value),
            2 => Report::Stopped,
            _ => Report::Done(value),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_watcher_on_every_thread_sees_the_outcome() {
    let runner = Runner::new(options());
    for name in ["a", "b"] {
        let worker = Arc::new(Unreliable);
        runner.add_worker(WorkerId::new(name), capacity(3), worker);
    }
    for round in 0..10_u32 {
        let actions = round * 100..(round + 1) * 100;
        let mut clients = tokio::task::JoinSet::new();
        for action in actions {
            let mut watch = submit(&runner, action);
            clients.spawn(async move {
                let mut last = None;
                while let Some(stage) = watch.next().await {
                    last = Some(stage);
                }
                let Some(Stage::Completed(End::Outcome(value))) = last else {
                    panic!("{last:?}");
                };
                assert_eq!(*value, action);
            });
        }
        clients.join_all().await;
    }
    runner.shut_down(Duration::ZERO).await;
    let totals = runner.totals();
    assert_eq!((totals.live, totals.running), (0, 0));
}

/// A worker that becomes ready after a second.
struct Slow;

#[async_trait]
impl Worker<u32, u32> for Slow {
    fn fits(&self, _: &str) -> bool {
        true
    }

    async fn ready(&self) {
        tokio::time::sleep(SECOND).await;
    }

    async fn run(&self, attempt: Attempt<u32>) -> Report<u32> {
        Report::Done(Outcome {
            value: *attempt.grant.job,
            bytes: 1,
        })
    }
}

#[tokio::test(start_paused = true)]
async fn actions_stay_queued_until_the_worker_is_ready() {
    let runner = Runner::new(options());
    runner.add_worker(WorkerId::new("w"), capacity(1), Arc::new(Slow));
    let start = Instant::now();
    let mut watch = submit(&runner, 1);
    assert!(matches!(watch.next().await, Some(Stage::Queued)));
    while !matches!(watch.next().await, Some(Stage::Completed(_))) {}
    assert!(start.elapsed() >= SECOND);
}
