//! Slots for other nodes, and attempts at other nodes.

use tokio::sync::mpsc;

use super::*;
use crate::{Generation, Need};

type Slots = mpsc::UnboundedReceiver<ForeignSlot<u32, u32>>;

struct Forward(mpsc::UnboundedSender<ForeignSlot<u32, u32>>);

impl Foreign<u32, u32> for Forward {
    fn claimed(&self, slot: ForeignSlot<u32, u32>) {
        let _ = self.0.send(slot);
    }
}

const NEED: Need = Need::Memory(0);

fn entry() -> Generation {
    Generation::new("entry", 1).unwrap()
}

fn start_foreign(slots: usize) -> (Runner<u32, u32>, Attempts, Slots) {
    let (runner, attempts) = start(slots);
    let (sender, receiver) = mpsc::unbounded_channel();
    runner.set_foreign_handler(Arc::new(Forward(sender)));
    (runner, attempts, receiver)
}

fn grant(action: u32, attempt: AttemptId) -> Grant<u32> {
    Grant {
        attempt,
        key: ActionKey {
            instance: InstanceName::default(),
            action: DigestFunction::Sha256.digest(&action.to_le_bytes()),
        },
        job: Arc::new(action),
        target: "".into(),
        mnemonic: "".into(),
        memory: 5,
        alone: false,
        run: 3,
        waited: SECOND,
    }
}

#[tokio::test(start_paused = true)]
async fn an_action_of_another_node_runs_in_a_slot_of_this_one() {
    let (runner, mut attempts, mut slots) = start_foreign(1);
    runner.set_foreign(&entry(), &[(Need::Memory(1 << 20), 1)], &[]);
    let slot = slots.recv().await.unwrap();
    let _watch = submit(&runner, 1);
    let remote = AttemptId::new(77, 1);
    let (sender, mut phases) = mpsc::unbounded_channel();
    let own = slot.claim.attempt;
    let run = slot.run(grant(9, remote), move |phase, run| {
        let _ = sender.send((phase, run));
    });
    let drive = async {
        let running = next(&mut attempts).await;
        assert_eq!(*running.attempt.grant.job, 9);
        let granted = &running.attempt.grant;
        assert_eq!((granted.attempt, granted.memory), (own, 5));
        running.attempt.begin(Phase::Run);
        running.attempt.begin(Phase::Run);
        running.end(done(7));
    };
    let (report, ()) = tokio::join!(run, drive);
    assert!(matches!(report, Report::Done(Outcome { value: 7, .. })));
    assert_eq!(phases.recv().await, Some((Phase::Run, 3)));
    assert_eq!(phases.recv().await, Some((Phase::Run, 4)));
    // The slot is free for the own action.
    assert_eq!(*next(&mut attempts).await.attempt.grant.job, 1);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_slot_of_another_node_is_free() {
    let (runner, mut attempts, mut slots) = start_foreign(1);
    runner.set_foreign(&entry(), &[(NEED, 1)], &[]);
    let slot = slots.recv().await.unwrap();
    let _watch = submit(&runner, 1);
    drop(slot);
    assert_eq!(*next(&mut attempts).await.attempt.grant.job, 1);
}

#[tokio::test(start_paused = true)]
async fn slots_of_other_nodes_are_told_to_stop_at_shutdown() {
    let (runner, _attempts, mut slots) = start_foreign(1);
    runner.set_foreign(&entry(), &[(NEED, 1)], &[]);
    let slot = slots.recv().await.unwrap();
    let stop = slot.stop.clone();
    let (began, ended) = (runner.clone(), stop.clone());
    tokio::join!(began.shut_down(SECOND), async move {
        ended.cancelled().await;
        drop(slot);
    });
    assert_eq!(runner.totals().running, 0);
}

#[tokio::test(start_paused = true)]
async fn a_peer_runs_an_action_and_is_told_to_stop_it() {
    let runner: Runner<u32, u32> = Runner::new(options());
    let mut stops = runner.stops();
    let mut changes = runner.queue_changes();
    let peer = WorkerId::new("peer");
    let mut first = submit(&runner, 1);
    let second = submit(&runner, 2);
    changes.changed().await.unwrap();
    assert_eq!(runner.queued_by_need(&peer, |_| true), [(NEED, 2)]);
    let granted = runner.claim_for(&peer, NEED, |_| true).unwrap();
    let other = runner.claim_for(&peer, NEED, |_| true).unwrap();
    assert!(changes.has_changed().unwrap());
    runner.progress(granted.attempt, Phase::Run, 1);
    assert_eq!(stage(&mut first).await, "queued");
    assert_eq!(stage(&mut first).await, "run 1 Run");
    runner.report(granted.attempt, done(7));
    assert_eq!(stage(&mut first).await, "done 7");
    runner.cancel(second.operation());
    assert_eq!(stops.recv().await, Some(other.attempt));
    runner.lose(other.attempt);
    assert_eq!(runner.totals().running, 0);
}

#[tokio::test(start_paused = true)]
async fn no_peer_becomes_free_for_an_action_for_which_this_node_can_make_memory_free() {
    let runner: Runner<u32, u32> = Runner::new(options());
    let (worker, mut attempts) = ScriptedWorker::new();
    let most = 4 << 20;
    let capacity = Capacity {
        slots: 1,
        memory: 3 << 20,
    };
    runner.add_worker_with_max_memory(WorkerId::new("w"), capacity, most, worker);
    runner.set_peers(vec![Taker {
        worker: WorkerId::new("peer"),
        memory: most,
        fits: Arc::new(|_| true),
    }]);
    let _first = submit(&runner, 1);
    let running = next(&mut attempts).await;
    let _second = submit_needing(&runner, 2, most);
    assert_eq!(runner.peers_to_free(), [(Need::Memory(most), 0)].into());
    running.end(done(7));
    assert_eq!(*next(&mut attempts).await.attempt.grant.job, 2);
}

#[tokio::test(start_paused = true)]
async fn a_draining_runner_waits_until_peers_took_its_queue() {
    let (runner, _attempts) = start(0);
    let _watch = submit(&runner, 1);
    let peer = WorkerId::new("peer");
    runner.set_peers(vec![Taker {
        worker: peer.clone(),
        memory: u64::MAX,
        fits: Arc::new(|_| true),
    }]);
    let take = async {
        tokio::task::yield_now().await;
        runner.claim_for(&peer, NEED, |_| true).unwrap().attempt
    };
    let (attempt, ()) = tokio::join!(take, runner.hand_over(SECOND));
    assert_eq!(runner.totals().queued, 0);
    let begun = Instant::now();
    let end = async { runner.report(attempt, done(7)) };
    tokio::join!(runner.shut_down(SECOND), end);
    assert!(begun.elapsed() < SECOND);
}
