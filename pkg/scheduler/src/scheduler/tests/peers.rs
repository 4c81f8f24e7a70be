//! Grants to slots of other nodes.

use super::*;
use crate::{queue::Need, state::Phase};

const GB: Need = Need::Memory(GIB);

impl Bench {
    fn try_claim_for(&mut self, need: Need) -> Option<Grant<u32>> {
        let fits = |platform: &str| platform == "linux";
        self.scheduler
            .claim_for(&worker("peer"), need, fits, self.now)
    }

    /// Claims for the peer, which gets this action.
    #[track_caller]
    fn peer_claims(&mut self, need: Need, action: u32) -> AttemptId {
        let grant = self.try_claim_for(need).unwrap();
        assert_eq!(*grant.job, action);
        grant.attempt
    }

    fn queued(&self) -> Vec<(Need, usize)> {
        self.scheduler
            .queued_by_need(&worker("peer"), |platform| platform == "linux")
    }
}

#[test]
fn a_peer_gets_the_next_action_that_its_claim_covers() {
    let mut bench = Bench::new(1);
    let on_arm = Request {
        platform: "arm".into(),
        ..request(1)
    };
    bench.submit(&on_arm);
    bench.submit(&needing(2, 4 * GIB));
    bench.submit(&needing(3, GIB));
    bench.submit(&needing(4, GIB));
    let grant = bench.try_claim_for(GB).unwrap();
    assert_eq!((*grant.job, grant.memory, grant.alone), (3, GIB, false));
    bench.peer_claims(Need::Memory(8 * GIB), 2);
    bench.peer_claims(Need::Alone, 4);
    assert!(bench.try_claim_for(Need::Alone).is_none());
    bench.claims(1);
}

#[test]
fn a_claim_alone_prefers_an_action_that_ran_out_of_memory() {
    let mut bench = Bench::new(1);
    bench.submit(&request(1));
    let first = bench.claims(1);
    bench.report(first, Report::OutOfMemory(outcome(137)));
    bench.submit(&of_build(2, "other"));
    bench.peer_claims(GB, 2);
    bench.submit(&of_build(3, "another"));
    let grant = bench.try_claim_for(Need::Alone).unwrap();
    assert_eq!((*grant.job, grant.alone), (1, true));
    assert!(bench.try_claim_for(GB).is_some());
}

#[test]
fn builds_take_turns_at_peers_and_here() {
    let mut bench = Bench::new(2);
    for action in 1..=4 {
        bench.submit(&of_build(action, "a"));
    }
    for action in 5..=6 {
        bench.submit(&of_build(action, "b"));
    }
    bench.peer_claims(GB, 1);
    bench.claims(5);
    bench.peer_claims(GB, 2);
    bench.claims(6);
}

#[test]
fn a_peer_neither_starves_nor_wakes_a_worker_that_drains() {
    let mut bench = Bench::new(8);
    bench.submit(&needing(1, 4 * GIB));
    bench.submit(&needing(2, 4 * GIB));
    let running = [bench.claims(1), bench.claims(2)];
    bench.report(running[0], Report::OutOfMemory(outcome(137)));
    for action in 3..=30 {
        bench.submit(&request(action));
    }
    // Here the worker becomes free for the first action; the peer goes on.
    assert!(bench.try_claim("w").is_none());
    for action in 3..=29 {
        bench.peer_claims(GB, action);
        assert!(bench.try_claim("w").is_none());
    }
    bench.report(running[1], done(0));
    bench.claims(1);
}

#[test]
fn a_worker_serves_others_when_a_peer_takes_the_awaited_action() {
    let mut bench = Bench::new(8);
    bench.submit(&request(1));
    bench.submit(&request(2));
    let first = bench.claims(1);
    bench.claims(2);
    bench.report(first, Report::OutOfMemory(outcome(137)));
    bench.submit(&request(3));
    assert!(bench.try_claim("w").is_none());
    bench.peer_claims(Need::Alone, 1);
    bench.claims(3);
}

#[test]
fn the_numbers_by_need_count_executions_that_a_peer_may_run() {
    let mut bench = Bench::new(1);
    let mut version = bench.scheduler.queue_version();
    let mut changes = |bench: &Bench| {
        let now = bench.scheduler.queue_version();
        std::mem::replace(&mut version, now) != now
    };
    assert!(bench.queued().is_empty());
    bench.submit(&needing(1, GIB));
    bench.submit(&needing(1, GIB));
    bench.submit(&needing(2, GIB));
    let third = bench.submit(&needing(3, 2 * GIB));
    let on_arm = Request {
        platform: "arm".into(),
        ..request(4)
    };
    bench.submit(&on_arm);
    assert!(changes(&bench));
    assert_eq!(bench.queued(), [(GB, 2), (Need::Memory(2 * GIB), 1)]);
    let next = bench.scheduler.next_target().unwrap();
    assert_eq!((&*next.0, &*next.1), ("//pkg:1", "Rustc"));
    let attempt = bench.peer_claims(GB, 1);
    assert!(changes(&bench));
    bench.scheduler.cancel(third, bench.now);
    assert_eq!(bench.queued(), [(GB, 1)]);
    assert!(changes(&bench));
    bench.scheduler.lose(attempt, bench.now);
    assert!(changes(&bench));
    assert_eq!(bench.queued(), [(GB, 2)]);
    assert!(!changes(&bench));
}

#[test]
fn a_lost_peer_counts_a_loss_and_a_declined_grant_does_not() {
    let mut bench = Bench::new(1);
    let id = bench.submit(&request(1));
    for _ in 0..20 {
        let attempt = bench.peer_claims(GB, 1);
        bench.scheduler.decline(attempt, bench.now);
        assert_eq!(bench.stage(id), "queued");
        // A later report of it has no effect.
        bench.scheduler.lose(attempt, bench.now);
    }
    for _ in 0..5 {
        bench.peer_claims(GB, 1);
        bench.scheduler.remove_worker(&worker("peer"), bench.now);
        assert_eq!(bench.stage(id), "queued");
    }
    bench.peer_claims(GB, 1);
    bench.scheduler.remove_worker(&worker("peer"), bench.now);
    assert_eq!(bench.stage(id), "lost 6");
    assert!(bench.scheduler.ledger.is_idle() && bench.scheduler.queue.is_empty());
}

#[test]
fn a_lost_or_declined_action_is_the_next_of_its_build() {
    let mut bench = Bench::new(1);
    bench.submit(&request(1));
    bench.submit(&request(2));
    let attempt = bench.peer_claims(GB, 1);
    bench.scheduler.decline(attempt, bench.now);
    let attempt = bench.peer_claims(GB, 1);
    bench.scheduler.lose(attempt, bench.now);
    bench.claims(1);
}

#[test]
fn a_late_outcome_of_a_lost_attempt_is_used() {
    let mut bench = Bench::new(1);
    let id = bench.submit(&request(1));
    let first = bench.peer_claims(GB, 1);
    bench.scheduler.lose(first, bench.now);
    let second = bench.claims(1);
    assert!(bench.scheduler.is_awaited(first));
    bench.effects();
    bench.report(first, done(7));
    assert_eq!(bench.stage(id), "done 7");
    assert_eq!(bench.effects(), ["stop w 2", "1 done 7"]);
    assert!(!bench.scheduler.is_awaited(second));
}

#[test]
fn repeated_reports_of_progress_have_no_effect() {
    let mut bench = Bench::new(1);
    let id = bench.submit(&request(1));
    let attempt = bench.peer_claims(GB, 1);
    bench.effects();
    let mut report = |phase, run| {
        let now = bench.now;
        bench.scheduler.progress_at_peer(attempt, phase, run, now);
        let run = match bench.scheduler.stage(id) {
            Some(Stage::Executing(running)) => running.run,
            stage => panic!("{stage:?}"),
        };
        (bench.effects(), run)
    };
    assert_eq!(report(Phase::Run, 1), (vec!["1 run 1 Run".to_owned()], 1));
    assert_eq!(report(Phase::Run, 1), (vec![], 1));
    assert_eq!(report(Phase::Fetch, 1), (vec![], 1));
    assert_eq!(report(Phase::Run, 2), (vec!["1 run 1 Run".to_owned()], 2));
    let (effects, run) = report(Phase::Collect, 3);
    assert_eq!((effects, run), (vec!["1 run 1 Collect".to_owned()], 3));
}

#[test]
fn a_draining_node_leaves_its_queue_to_peers() {
    let mut bench = Bench::new(1);
    let first = bench.submit(&request(1));
    let second = bench.submit(&request(2));
    let third = bench.submit(&request(3));
    let peer = Taker {
        worker: worker("peer"),
        memory: 8 * GIB,
        fits: Arc::new(|_| true),
    };
    bench.scheduler.set_peers(vec![peer], bench.now);
    bench.scheduler.hand_over(bench.now);
    assert!(bench.try_submit(&request(4)).is_err());
    assert!(bench.try_claim("w").is_none());
    let attempt = bench.peer_claims(GB, 1);
    bench.scheduler.lose(attempt, bench.now);
    let attempt = bench.peer_claims(GB, 1);
    let other = bench.peer_claims(GB, 2);
    bench.scheduler.drain(bench.now);
    assert_eq!(bench.stage(third), "shut down");
    bench.report(attempt, done(7));
    assert_eq!(bench.stage(first), "done 7");
    bench.scheduler.lose(other, bench.now);
    assert_eq!(bench.stage(second), "shut down");
}
