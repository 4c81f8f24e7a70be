//! Slots and memory of workers.

use super::*;

#[test]
fn reservations_never_exceed_the_memory_of_the_worker() {
    let mut bench = Bench::new(8);
    for action in 1..=4 {
        bench.submit(&needing(action, 3 * GIB));
    }
    let first = bench.claim();
    assert_eq!(first.memory, 3 * GIB);
    bench.claim();
    assert!(bench.try_claim("w").is_none());
    bench.report(first.attempt, done(0));
    assert!(bench.try_claim("w").is_some());
    assert!(bench.try_claim("w").is_none());
}

#[test]
fn one_action_runs_however_much_memory_it_needs() {
    let mut bench = Bench::new(8);
    bench.submit(&needing(1, 100 * GIB));
    bench.submit(&needing(2, u64::MAX));
    let grant = bench.claim();
    assert_eq!(grant.memory, 8 * GIB);
    assert!(!grant.alone);
    assert!(bench.try_claim("w").is_none());
    bench.report(grant.attempt, done(0));
    bench.claims(2);
}

#[test]
fn smaller_actions_pass_a_large_one_but_do_not_starve_it() {
    let mut bench = Bench::new(8);
    bench.submit(&needing(0, 4 * GIB));
    let mut running = vec![bench.claims(0)];
    bench.submit(&needing(1, 6 * GIB));
    let mut passed = 0;
    while running.len() < 40 {
        let small = u32::try_from(running.len()).unwrap() + 1;
        bench.submit(&needing(small, 2 * GIB));
        let Some(grant) = bench.try_claim("w") else {
            break;
        };
        passed += 1;
        running.push(grant.attempt);
        bench.report(grant.attempt, done(0));
    }
    assert_eq!(passed, 16);
    bench.report(running[0], done(0));
    bench.claims(1);
    bench.claims(18);
}

#[test]
fn refused_claims_do_not_hold_back_smaller_actions() {
    let mut bench = Bench::new(8);
    bench.submit(&needing(0, 4 * GIB));
    bench.claims(0);
    bench.submit(&needing(1, 6 * GIB));
    for _ in 0..100 {
        assert!(bench.try_claim("w").is_none());
    }
    bench.submit(&needing(2, 2 * GIB));
    bench.claims(2);
}

#[test]
fn an_action_out_of_memory_runs_once_more_alone() {
    let mut bench = Bench::new(4);
    for action in 1..=4 {
        bench.submit(&request(action));
    }
    let first = bench.claims(1);
    let second = bench.claims(2);
    bench.report(first, Report::OutOfMemory(outcome(137)));
    // The worker becomes free for it.
    assert!(bench.try_claim("w").is_none());
    bench.report(second, done(0));
    let alone = bench.claim();
    assert_eq!((*alone.job, alone.alone, alone.memory), (1, true, 8 * GIB));
    assert!(bench.try_claim("w").is_none());
    bench.effects();
    bench.report(alone.attempt, Report::OutOfMemory(outcome(137)));
    assert_eq!(bench.effects(), ["1 done 137"]);
    bench.claims(3);
    bench.claims(4);
}

#[test]
fn one_worker_is_kept_free_for_an_action_out_of_memory() {
    let mut bench = Bench::new(2);
    let capacity = Capacity {
        slots: 2,
        memory: 2 * GIB,
    };
    bench.scheduler.set_worker(&worker("peer"), capacity);
    for action in 1..=5 {
        bench.submit(&request(action));
    }
    let on_w = [bench.claim().attempt, bench.claim().attempt];
    let on_peer = bench.try_claim("peer").unwrap();
    bench.report(on_w[0], Report::OutOfMemory(outcome(137)));
    assert!(bench.try_claim("w").is_none());
    // The peer goes on, and gets the action if it is idle first.
    let fourth = bench.try_claim("peer").unwrap();
    bench.report(on_peer.attempt, done(0));
    bench.report(fourth.attempt, done(0));
    let alone = bench.try_claim("peer").unwrap();
    assert_eq!((*alone.job, alone.alone), (1, true));
    bench.claims(5);
}

#[test]
fn another_worker_becomes_free_when_the_first_offers_no_slots_any_more() {
    let mut bench = Bench::new(2);
    let capacity = |slots| Capacity { slots, memory: GIB };
    bench.scheduler.set_worker(&worker("peer"), capacity(2));
    for action in 1..=4 {
        bench.submit(&request(action));
    }
    let first = bench.claims(1);
    bench.claims(2);
    let on_peer = bench.try_claim("peer").unwrap();
    bench.report(first, Report::OutOfMemory(outcome(137)));
    assert!(bench.try_claim("w").is_none());
    bench.scheduler.set_worker(&worker("w"), capacity(0));
    assert!(bench.try_claim("peer").is_none());
    bench.report(on_peer.attempt, done(0));
    assert!(bench.try_claim("peer").unwrap().alone);
}

#[test]
fn a_worker_serves_others_again_when_the_awaited_action_is_cancelled() {
    let mut bench = Bench::new(3);
    let id = bench.submit(&request(1));
    bench.submit(&request(2));
    bench.submit(&request(3));
    let first = bench.claims(1);
    bench.claims(2);
    bench.report(first, Report::OutOfMemory(outcome(137)));
    assert!(bench.try_claim("w").is_none());
    bench.effects();
    bench.scheduler.cancel(id, bench.now);
    let effects = bench.scheduler.take_effects();
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Claim)));
    bench.claims(3);
}

#[test]
fn a_stopped_attempt_holds_its_slot_until_its_worker_reports() {
    let mut bench = Bench::new(1);
    let id = bench.submit(&request(1));
    let attempt = bench.claims(1);
    bench.submit(&request(2));
    bench.scheduler.cancel(id, bench.now);
    assert!(bench.try_claim("w").is_none());
    bench.report(attempt, Report::Stopped);
    bench.claims(2);
}

#[test]
fn a_changed_capacity_applies_to_later_claims() {
    let mut bench = Bench::new(1);
    for action in 1..=3 {
        bench.submit(&needing(action, GIB));
    }
    let capacity = |slots, memory| Capacity { slots, memory };
    bench.claims(1);
    assert!(bench.try_claim("w").is_none());
    bench
        .scheduler
        .set_worker(&worker("w"), capacity(4, 2 * GIB));
    bench.claims(2);
    bench.scheduler.set_worker(&worker("w"), capacity(4, GIB));
    assert!(bench.try_claim("w").is_none());
    assert!(bench.try_claim("unknown").is_none());
}
