//! Executions that failed at a worker, and workers that keep failing.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::{Taker, queue::Need};

const ANY: Need = Need::Memory(8 * GIB);

fn taker(name: &str, memory: u64) -> Taker {
    Taker {
        worker: worker(name),
        memory,
        fits: Arc::new(|platform| platform == "linux"),
    }
}

/// A bench whose worker `w` has peers of these names.
fn bench(slots: usize, peers: &[&str]) -> Bench {
    let mut bench = Bench::new(slots);
    bench.scheduler.set_taker(taker("w", 8 * GIB));
    bench.join(peers);
    bench
}

fn failed() -> Report<u32> {
    Report::Failed(outcome(500))
}

impl Bench {
    fn join(&mut self, peers: &[&str]) {
        let peers = peers.iter().map(|name| taker(name, 8 * GIB));
        self.scheduler.set_peers(peers.collect(), self.now);
    }

    fn claim_at(&mut self, peer: &str) -> Option<Grant<u32>> {
        let fits = |platform: &str| platform == "linux";
        self.scheduler.claim_for(&worker(peer), ANY, fits, self.now)
    }

    /// Fails the next action at a peer.
    #[track_caller]
    fn fails_at(&mut self, peer: &str) {
        let grant = self.claim_at(peer).unwrap();
        self.report(grant.attempt, failed());
    }

    fn counts_for(&self, peer: &str) -> usize {
        let counts = self.scheduler.queued_by_need(&worker(peer), |_| true);
        counts.iter().map(|(_, actions)| actions).sum()
    }
}

#[test]
fn a_failed_action_is_left_to_the_workers_where_it_did_not_fail() {
    let mut bench = bench(1, &["p", "q"]);
    let id = bench.submit(&request(1));
    bench.fails_at("p");
    assert!(bench.claim_at("p").is_none());
    assert_eq!((bench.counts_for("p"), bench.counts_for("q")), (0, 1));
    // The next in the queue is not held up.
    bench.submit(&request(2));
    assert_eq!(*bench.claim_at("p").unwrap().job, 2);
    let attempt = bench.claims(1);
    bench.report(attempt, failed());
    assert!(bench.try_claim("w").is_none());
    let grant = bench.claim_at("q").unwrap();
    bench.report(grant.attempt, done(7));
    assert_eq!(bench.stage(id), "done 7");
}

#[test]
fn a_lost_action_is_left_to_others_as_well() {
    let mut bench = bench(0, &["p", "q"]);
    bench.submit(&request(1));
    bench.claim_at("p").unwrap();
    bench.scheduler.remove_worker(&worker("p"), bench.now);
    assert!(bench.claim_at("p").is_none());
    assert!(bench.claim_at("q").is_some());
}

#[test]
fn the_last_worker_takes_an_action_that_failed_there() {
    // Nobody else is there, nobody has the platform, or nobody has the memory.
    let on_arm = Request {
        platform: "arm".into(),
        ..request(1)
    };
    for (request, peers) in [(request(1), 0), (on_arm, 1), (needing(1, 9 * GIB), 1)] {
        let mut bench = bench(1, &["p"][..peers]);
        bench.scheduler.set_taker(taker("w", 16 * GIB));
        bench.submit(&request);
        for _ in 0..2 {
            let attempt = bench.claims(1);
            bench.report(attempt, failed());
        }
        bench.claims(1);
    }
}

#[test]
fn a_worker_is_asked_again_when_the_others_leave() {
    let mut bench = bench(1, &["p"]);
    bench.submit(&request(1));
    let attempt = bench.claims(1);
    bench.report(attempt, failed());
    assert!(bench.try_claim("w").is_none());
    bench.effects();
    let version = bench.scheduler.queue_version();
    bench.join(&[]);
    let effects = bench.scheduler.take_effects();
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Claim)));
    assert_ne!(bench.scheduler.queue_version(), version);
    bench.claims(1);
}

#[test]
fn a_peer_is_asked_again_when_this_node_drains() {
    let mut bench = bench(1, &["p"]);
    bench.submit(&request(1));
    bench.fails_at("p");
    assert!(bench.claim_at("p").is_none());
    bench.scheduler.set_closed(true);
    bench.fails_at("p");
    bench.scheduler.set_closed(false);
    assert!(bench.claim_at("p").is_none());
    bench.scheduler.hand_over(bench.now);
    assert!(bench.claim_at("p").is_some());
}

#[test]
fn a_closed_node_leaves_to_peers_what_they_may_run_and_runs_the_rest() {
    let mut bench = bench(2, &["p"]);
    bench.scheduler.set_taker(taker("w", 16 * GIB));
    let on_arm = Request {
        platform: "arm".into(),
        ..request(3)
    };
    for request in [request(1), needing(2, 9 * GIB), on_arm] {
        bench.submit(&request);
    }
    bench.scheduler.set_closed(true);
    let large = bench.claims(2);
    bench.report(large, done(2));
    bench.claims(3);
    assert!(bench.try_claim("w").is_none());
    // The peer cannot be reached any more.
    bench.join(&[]);
    bench.claims(1);
}

#[test]
fn a_node_that_hands_over_ends_what_no_peer_may_run() {
    let mut bench = bench(1, &["p", "q"]);
    let on_arm = Request {
        platform: "arm".into(),
        ..request(2)
    };
    let ids = [request(1), on_arm, request(3)].map(|request| bench.submit(&request));
    let attempt = bench.claims(1);
    bench.scheduler.hand_over(bench.now);
    let stages = |bench: &Bench| ids.map(|id| bench.stage(id));
    assert_eq!(stages(&bench), ["run 1", "shut down", "queued"]);
    bench.join(&["q"]);
    assert_eq!(bench.stage(ids[2]), "queued");
    bench.join(&[]);
    assert_eq!(bench.stage(ids[2]), "shut down");
    bench.report(attempt, Report::Stopped);
    assert_eq!(bench.stage(ids[0]), "shut down");
}

#[test]
fn an_action_that_needs_more_memory_than_any_node_has_may_run_on_any_peer_of_its_platform() {
    for own in [8, 16] {
        let mut bench = bench(1, &["p"]);
        bench.scheduler.set_taker(taker("w", own * GIB));
        // Its memory is of no use to the action.
        let on_arm = Taker {
            fits: Arc::new(|platform| platform == "arm"),
            ..taker("q", 32 * GIB)
        };
        let peers = vec![taker("p", 8 * GIB), on_arm];
        bench.scheduler.set_peers(peers, bench.now);
        let need = Need::Memory(12 * GIB);
        let id = bench.submit(&needing(1, 12 * GIB));
        let asked = |bench: &Bench| bench.scheduler.peers_to_ask(|_| false, 8);
        let is_large = own > 12;
        assert_eq!(bench.counts_for("p"), usize::from(!is_large));
        assert_eq!(asked(&bench).is_empty(), is_large);
        // Without this node, no node has enough.
        bench.scheduler.hand_over(bench.now);
        assert_eq!(bench.stage(id), "queued");
        assert_eq!(bench.counts_for("p"), 1);
        assert_eq!(asked(&bench), [[worker("p")]]);
        let fits = |platform: &str| platform == "linux";
        let claim =
            |bench: &mut Bench, now| bench.scheduler.claim_for(&worker("p"), need, fits, now);
        let now = bench.now;
        let grant = claim(&mut bench, now).unwrap();
        bench.report(grant.attempt, failed());
        // It is queued again, and nobody else is there.
        let grant = claim(&mut bench, now).unwrap();
        bench.report(grant.attempt, done(7));
        assert_eq!(bench.stage(id), "done 7");
    }
}

#[test]
fn a_peer_becomes_free_for_each_action_but_one_that_this_node_runs() {
    let mut bench = bench(1, &[]);
    let now = bench.now;
    bench.scheduler.set_peers(vec![taker("p", 16 * GIB)], now);
    for action in 1..=2 {
        bench.submit(&needing(action, 2 * GIB));
        bench.submit(&needing(10 + action, 9 * GIB));
    }
    let free = |bench: &Bench| bench.scheduler.peers_to_free().into_values();
    assert!(free(&bench).eq([1, 2]));
    bench.scheduler.set_closed(true);
    assert!(free(&bench).eq([2, 2]));
}

#[test]
fn a_worker_that_keeps_failing_rests_ever_longer_until_it_succeeds() {
    let mut bench = bench(100, &["p"]);
    for action in 0..100 {
        bench.submit(&request(action));
    }
    for _ in 0..2 {
        bench.fails_at("p");
    }
    assert_eq!(bench.scheduler.failing().count(), 0);
    for rest in [1, 2, 4, 8, 16, 30, 30] {
        bench.fails_at("p");
        assert!(bench.scheduler.failing().eq([&worker("p")]));
        assert!(bench.claim_at("p").is_none());
        assert_eq!(bench.counts_for("p"), 0);
        let rest = Duration::from_secs(rest);
        assert_eq!(bench.scheduler.deadline(), Some(bench.now + rest));
        bench.pass(rest);
    }
    let grant = bench.claim_at("p").unwrap();
    bench.report(grant.attempt, done(7));
    assert_eq!(bench.scheduler.failing().count(), 0);
    for _ in 0..2 {
        bench.fails_at("p");
    }
    assert!(bench.claim_at("p").is_some());
}

#[test]
fn actions_that_a_worker_lacks_the_inputs_of_are_retried_elsewhere_and_do_not_make_it_rest() {
    let mut bench = bench(1, &["p"]);
    let ids = [0, 1, 2, 3].map(|action| bench.submit(&request(action)));
    for _ in ids {
        let grant = bench.claim_at("p").unwrap();
        bench.report(grant.attempt, Report::Unsuited(outcome(404)));
    }
    assert_eq!(
        (bench.scheduler.failing().count(), bench.counts_for("p")),
        (0, 0)
    );
    bench.submit(&request(4));
    assert_eq!(*bench.claim_at("p").unwrap().job, 4);
    let attempt = bench.claims(0);
    bench.report(attempt, done(7));
    assert_eq!(bench.stage(ids[0]), "done 7");
}

#[test]
fn a_lost_action_may_return_to_its_worker_after_a_while_and_a_failed_one_may_not() {
    let mut bench = bench(1, &["p"]);
    bench.submit(&request(0));
    bench.claims(0);
    bench.submit(&request(1));
    for _ in 0..2 {
        let lost = bench.claim_at("p").unwrap().attempt;
        bench.scheduler.lose(lost, bench.now);
        assert_eq!(bench.counts_for("p"), 0);
        let due = bench.scheduler.deadline();
        assert_eq!(due, Some(bench.now + Duration::from_secs(10)));
        bench.pass(Duration::from_secs(9));
        assert!(bench.claim_at("p").is_none());
        bench.pass(Duration::from_secs(1));
        assert_eq!(
            (bench.counts_for("p"), bench.scheduler.deadline()),
            (1, None)
        );
    }
    bench.fails_at("p");
    bench.pass(Duration::from_mins(1));
    assert_eq!(bench.counts_for("p"), 0);
}

#[test]
fn no_worker_rests_without_another_for_its_actions() {
    let mut bench = bench(1, &["p"]);
    bench.join(&["p", "q"]);
    for action in 0..9 {
        bench.submit(&request(action));
    }
    for worker in ["p", "q"] {
        for _ in 0..3 {
            bench.fails_at(worker);
        }
        assert!(bench.claim_at(worker).is_none());
    }
    for _ in 0..3 {
        let attempt = bench.claim().attempt;
        bench.report(attempt, failed());
    }
    assert!(bench.try_claim("w").is_some() && bench.claim_at("p").is_some());
}

#[test]
fn a_lost_attempt_is_resumed_while_its_action_is_queued() {
    let mut bench = bench(1, &["p"]);
    let id = bench.submit(&request(1));
    let attempt = bench.claim_at("p").unwrap().attempt;
    let adopt = |bench: &mut Bench, peer: &str| {
        let now = bench.now;
        bench.scheduler.adopt(&worker(peer), attempt, now)
    };
    assert!(!adopt(&mut bench, "p"));
    for _ in 0..10 {
        bench.scheduler.remove_worker(&worker("p"), bench.now);
        assert_eq!(bench.stage(id), "queued");
        assert!(!adopt(&mut bench, "q"));
        assert!(adopt(&mut bench, "p"));
        assert_eq!(bench.stage(id), "run 1");
        assert!(bench.try_claim("w").is_none());
    }
    bench.scheduler.lose(attempt, bench.now);
    let second = bench.claims(1);
    assert!(!adopt(&mut bench, "p"));
    bench.report(second, failed());
    assert!(adopt(&mut bench, "p"));
    bench.report(attempt, done(7));
    assert_eq!(bench.stage(id), "done 7");
    assert!(!adopt(&mut bench, "p"));
    assert!(bench.scheduler.ledger.is_idle() && bench.scheduler.queue.is_empty());
}

#[test]
fn a_lost_attempt_that_has_ended_is_not_resumed() {
    let ends: [fn(&mut Bench, AttemptId); 4] = [
        // Its peer stopped it, and says so before or after it was lost.
        |bench, attempt| bench.report(attempt, Report::Stopped),
        |bench, attempt| {
            bench.scheduler.lose(attempt, bench.now);
            bench.report(attempt, Report::Stopped);
        },
        |bench, attempt| {
            bench.scheduler.lose(attempt, bench.now);
            bench.report(attempt, failed());
        },
        |bench, attempt| {
            bench.scheduler.lose(attempt, bench.now);
            bench.scheduler.decline(attempt, bench.now);
        },
    ];
    for end in ends {
        let mut bench = bench(1, &["p"]);
        bench.submit(&request(1));
        let attempt = bench.claim_at("p").unwrap().attempt;
        end(&mut bench, attempt);
        assert!(!bench.scheduler.adopt(&worker("p"), attempt, bench.now));
        // It still counts as lost.
        assert_eq!(bench.counts_for("p"), 0);
        bench.claims(1);
    }
}

#[test]
fn peers_of_one_platform_are_asked_once_for_each_class() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&asked);
    let fits: Arc<dyn Fn(&str) -> bool + Send + Sync> = Arc::new(move |platform| {
        counts.fetch_add(1, Ordering::Relaxed);
        platform == "class 7"
    });
    let mut bench = Bench::new(1);
    let peer = |number| Taker {
        fits: Arc::clone(&fits),
        ..taker(&format!("p{number}"), GIB)
    };
    let now = bench.now;
    bench.scheduler.set_peers((0..100).map(peer).collect(), now);
    for class in 0..50 {
        let platform = format!("class {class}").into();
        bench.submit(&Request {
            platform,
            ..request(class)
        });
    }
    let lists = bench.scheduler.peers_to_ask(|_| false, 8);
    assert_eq!(lists.iter().map(Vec::len).collect::<Vec<_>>(), [100]);
    let none = bench
        .scheduler
        .peers_to_ask(|asked| *asked == worker("p99"), 8);
    assert!(none.is_empty());
    assert_eq!(asked.load(Ordering::Relaxed), 2 * 50);
}

#[test]
fn queued_actions_end_whose_platforms_no_node_has() {
    let mut bench = Bench::new(1);
    let on = |action: u32, platform: &str| Request {
        platform: platform.into(),
        ..request(action)
    };
    let running = bench.submit(&on(1, "arm"));
    bench.claims(1);
    let ids = [(2, "linux"), (3, "arm"), (4, "mips"), (5, "arm")];
    let ids = ids.map(|(action, platform)| bench.submit(&on(action, platform)));
    let gone = ["arm", "mips", "alpha"].map(Arc::from);
    let now = bench.now;
    bench
        .scheduler
        .end_queued(&gone.into_iter().collect(), outcome(9), now);
    let stages = ids.map(|id| bench.stage(id));
    assert_eq!(stages, ["queued", "done 9", "done 9", "done 9"]);
    assert_eq!(bench.stage(running), "run 1");
    let left = bench.scheduler.queued_platforms();
    assert_eq!(left, ["linux".into()].into());
}
