//! The order of grants, and the cost of an event.

use super::*;
use crate::queue::Need;

/// Returns the actions granted to a worker with one slot, in order.
fn order(bench: &mut Bench) -> Vec<u32> {
    let mut order = Vec::new();
    while let Some(grant) = bench.try_claim("w") {
        order.push(*grant.job);
        bench.report(grant.attempt, done(0));
    }
    order
}

fn with_priority(action: u32, priority: i32) -> Request<u32> {
    Request {
        priority,
        ..request(action)
    }
}

#[test]
fn ten_thousand_actions_of_a_build_delay_another_by_at_most_a_slot() {
    let size = Options {
        queue_size: 20_000,
        ..options()
    };
    let mut bench = Bench::with(size, 4);
    for action in 0..10_000 {
        bench.submit(&of_build(action, "a"));
    }
    let running: Vec<_> = (0..4).map(|action| bench.claims(action)).collect();
    for action in 20_000..20_003 {
        bench.submit(&of_build(action, "b"));
    }
    // Each slot that becomes free goes to the build with fewer slots, then to both in turn.
    bench.report(running[0], done(0));
    let first = bench.claims(20_000);
    bench.report(running[1], done(0));
    bench.claims(20_001);
    bench.report(running[2], done(0));
    bench.claims(4);
    bench.report(first, done(0));
    bench.claims(20_002);
}

#[test]
fn builds_take_turns() {
    let mut bench = Bench::new(1);
    for action in 0..3 {
        bench.submit(&of_build(action, "a"));
    }
    for action in 10..12 {
        bench.submit(&of_build(action, "b"));
    }
    for action in 20..23 {
        bench.submit(&of_build(action, ""));
    }
    assert_eq!(order(&mut bench), [0, 10, 20, 1, 11, 21, 2, 22]);
}

#[test]
fn lower_priority_values_start_first_then_older_actions() {
    let mut bench = Bench::new(1);
    for (action, priority) in [(1, 0), (2, -5), (3, 7), (4, 0), (5, -5)] {
        bench.submit(&with_priority(action, priority));
    }
    assert_eq!(order(&mut bench), [2, 5, 1, 4, 3]);
}

#[test]
fn a_priority_concerns_its_own_build_only() {
    let mut bench = Bench::new(1);
    bench.submit(&of_build(1, "a"));
    bench.submit(&of_build(2, "a"));
    for action in [11, 12] {
        let first = with_priority(action, -1000);
        let build = "b".to_owned();
        bench.submit(&Request { build, ..first });
    }
    assert_eq!(order(&mut bench), [1, 11, 2, 12]);
}

#[test]
fn merged_executions_keep_the_best_priority() {
    let mut bench = Bench::new(1);
    for (action, priority) in [(1, 0), (2, 5), (2, -5), (2, 3), (3, -1)] {
        bench.submit(&with_priority(action, priority));
    }
    assert_eq!(order(&mut bench), [2, 3, 1]);
}

#[test]
fn a_merged_execution_starts_at_the_turn_of_any_of_its_builds() {
    let mut bench = Bench::new(1);
    for action in 0..100 {
        bench.submit(&of_build(action, "a"));
    }
    bench.submit(&of_build(99, "b"));
    let order = order(&mut bench);
    assert_eq!(order[..3], [0, 99, 1]);
    assert_eq!(order.len(), 100);
}

#[test]
fn only_actions_whose_platform_fits_are_granted() {
    let mut bench = Bench::new(4);
    let on_arm = Request {
        platform: "arm".into(),
        ..request(1)
    };
    bench.submit(&on_arm);
    bench.submit(&request(2));
    bench.claims_on("linux", Some(2));
    bench.claims_on("linux", None);
    bench.claims_on("arm", Some(1));
}

impl Bench {
    #[track_caller]
    fn claims_on(&mut self, offered: &str, action: Option<u32>) {
        let fits = |platform: &str| platform == offered;
        let claimed = self.scheduler.claim(&worker("w"), fits, self.now);
        let granted = claimed.map(|claimed| match claimed {
            Claimed::Own(grant) => *grant.job,
            Claimed::Foreign(claim) => panic!("{claim:?}"),
        });
        assert_eq!(granted, action);
    }
}

#[test]
fn a_hundred_thousand_queued_actions_are_served_in_turn() {
    let size = Options {
        queue_size: 100_000,
        ..options()
    };
    let mut bench = Bench::with(size, 8);
    for action in 0..100_000 {
        bench.submit(&of_build(action, if action < 90_000 { "a" } else { "b" }));
    }
    assert_eq!(bench.scheduler.totals().queued, 100_000);
    for turn in 0..10_000 {
        for action in [turn, 90_000 + turn] {
            let attempt = bench.claims(action);
            bench.report(attempt, done(0));
        }
        drop(bench.scheduler.take_effects());
    }
    assert_eq!(bench.scheduler.totals().live, 80_000);
    for action in 10_000..20_000 {
        assert_eq!(
            bench.scheduler.queued_by_need(&worker("p"), |_| true).len(),
            1
        );
        let peer = worker("peer");
        let need = Need::Memory(0);
        let grant = bench.scheduler.claim_for(&peer, need, |_| true, bench.now);
        let grant = grant.unwrap();
        assert_eq!(*grant.job, action);
        bench.report(grant.attempt, done(0));
        drop(bench.scheduler.take_effects());
    }
}

#[test]
fn ten_thousand_platforms_are_served_in_turn() {
    let size = Options {
        queue_size: 20_000,
        ..options()
    };
    let mut bench = Bench::with(size, 8);
    for action in 0..20_000 {
        let build = if action % 2 == 0 { "a" } else { "b" };
        let request = Request {
            platform: format!("pool\0{}\0", action / 2).into(),
            ..of_build(action, build)
        };
        bench.submit(&request);
    }
    // A turn that cost time for each platform would take minutes here.
    for action in 0..10_000 {
        let attempt = bench.claims(action);
        bench.report(attempt, done(0));
        drop(bench.scheduler.take_effects());
    }
    let peer = worker("peer");
    let last = |platform: &str| platform == "pool\09999\0";
    let counts = bench.scheduler.queued_by_need(&peer, last);
    assert_eq!(counts, [(Need::Memory(0).rounded(), 2)]);
    for action in [19_998, 19_999] {
        let grant = bench
            .scheduler
            .claim_for(&peer, Need::Alone, last, bench.now);
        assert_eq!(*grant.unwrap().job, action);
    }
}
