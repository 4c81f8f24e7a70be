//! Attempts: retries, losses, late outcomes.

use super::*;
use crate::Phase;

#[test]
fn an_error_of_the_executor_is_retried_and_then_reported() {
    let mut bench = Bench::new(1);
    bench.submit(&request(1));
    bench.submit(&request(2));
    for number in 1..=3 {
        // A retry comes before the other action.
        let attempt = bench.claims(1);
        assert_eq!(attempt.number(), number);
        bench.report(attempt, Report::Failed(outcome(number)));
    }
    let stages = [
        "1 run 1", "1 queued", "1 run 2", "1 queued", "1 run 3", "1 done 3",
    ];
    assert_eq!(bench.effects(), stages);
    let ends = Ends {
        retries: 2,
        failed: 1,
        cancelled: 0,
    };
    assert_eq!(bench.scheduler.totals().ends, ends);
    bench.claims(2);
}

#[test]
fn each_run_of_a_command_has_a_number_of_its_own() {
    let mut bench = Bench::new(1);
    let id = bench.submit(&request(1));
    let run = |bench: &Bench| match bench.scheduler.stage(id) {
        Some(Stage::Executing(running)) => (running.phase, running.run),
        stage => panic!("{stage:?}"),
    };
    let first = bench.claim();
    assert_eq!((first.run, run(&bench)), (1, (None, 1)));
    for (phase, now) in [
        (Phase::Run, (Some(Phase::Run), 1)),
        (Phase::Collect, (Some(Phase::Collect), 1)),
        // The disk was full, so that all is done again.
        (Phase::Fetch, (Some(Phase::Collect), 1)),
        (Phase::Run, (Some(Phase::Run), 2)),
        (Phase::Run, (Some(Phase::Run), 3)),
    ] {
        bench.scheduler.progress(first.attempt, phase, bench.now);
        assert_eq!(run(&bench), now);
    }
    bench.report(first.attempt, Report::Failed(outcome(0)));
    let second = bench.claim();
    assert_eq!((second.run, run(&bench)), (4, (None, 4)));
    bench
        .scheduler
        .progress(second.attempt, Phase::Run, bench.now);
    assert_eq!(run(&bench), (Some(Phase::Run), 4));
}

#[test]
fn a_retry_comes_before_better_priorities_of_its_build() {
    let mut bench = Bench::new(1);
    bench.submit(&request(1));
    let attempt = bench.claims(1);
    bench.submit(&Request {
        priority: -100,
        ..request(2)
    });
    bench.report(attempt, Report::Failed(outcome(0)));
    bench.claims(1);
}

#[test]
fn losses_of_workers_are_counted_apart_from_errors() {
    let mut bench = Bench::new(1);
    let id = bench.submit(&request(1));
    for _ in 0..2 {
        let attempt = bench.claims(1);
        bench.report(attempt, Report::Failed(outcome(0)));
    }
    for peer in 0..6 {
        let peer = worker(&format!("peer-{peer}"));
        let capacity = Capacity {
            slots: 1,
            memory: GIB,
        };
        bench.scheduler.set_worker(&peer, capacity);
        assert!(bench.scheduler.claim(&peer, |_| true, bench.now).is_some());
        bench.effects();
        bench.scheduler.remove_worker(&peer, bench.now);
    }
    assert_eq!(bench.effects(), ["1 lost 6"]);
    let Some(Stage::Completed(End::WorkersLost(lost))) = bench.scheduler.stage(id) else {
        panic!("{}", bench.stage(id));
    };
    assert_eq!(lost[5].to_string(), "peer-5");
}

#[test]
fn a_lost_grant_is_queued_again_at_the_head() {
    let mut bench = Bench::new(1);
    bench.submit(&request(1));
    bench.submit(&request(2));
    let attempt = bench.claims(1);
    bench.scheduler.lose(attempt, bench.now);
    assert_eq!(bench.effects(), ["1 run 1", "1 queued"]);
    let again = bench.claims(1);
    assert_eq!(again.number(), 2);
    // The loss of an attempt counts once.
    bench.scheduler.lose(attempt, bench.now);
    assert!(bench.effects().contains(&"1 run 2".to_owned()));
    assert!(bench.try_claim("w").is_none());
}

#[test]
fn a_late_outcome_is_used_while_the_execution_is_queued_again() {
    let mut bench = Bench::new(1);
    let id = bench.submit(&request(1));
    let attempt = bench.claims(1);
    bench.scheduler.lose(attempt, bench.now);
    bench.report(attempt, done(7));
    assert_eq!(bench.stage(id), "done 7");
    assert!(bench.try_claim("w").is_none());
}

#[test]
fn a_late_outcome_stops_the_newer_attempt() {
    let mut bench = Bench::new(1);
    let id = bench.submit(&request(1));
    let first = bench.claims(1);
    bench.scheduler.lose(first, bench.now);
    let second = bench.claims(1);
    bench.effects();
    bench.report(first, done(7));
    assert_eq!(bench.effects(), ["stop w 2", "1 done 7"]);
    bench.report(second, done(8));
    assert_eq!(bench.stage(id), "done 7");
    assert!(bench.effects().is_empty());
    assert_eq!(bench.scheduler.totals().running, 0);
}

#[test]
fn late_errors_of_older_attempts_are_ignored() {
    let mut bench = Bench::new(1);
    let id = bench.submit(&request(1));
    let first = bench.claims(1);
    bench.scheduler.lose(first, bench.now);
    bench.claims(1);
    for report in [
        Report::Failed(outcome(1)),
        Report::OutOfMemory(outcome(1)),
        Report::Stopped,
    ] {
        bench.report(first, report);
        assert_eq!(bench.stage(id), "run 2");
    }
}

#[test]
fn an_attempt_that_was_never_granted_is_ignored() {
    let mut bench = Bench::new(1);
    let id = bench.submit(&request(1));
    let mut attempt = bench.claims(1);
    attempt.number = 2;
    bench.report(attempt, done(7));
    attempt.execution = 99;
    bench.report(attempt, done(7));
    assert_eq!(bench.stage(id), "run 1");
}

#[test]
fn a_grant_has_the_time_that_its_action_waited() {
    let mut bench = Bench::new(1);
    bench.submit(&request(1));
    bench.now += Duration::from_secs(3);
    let grant = bench.try_claim("w").unwrap();
    assert_eq!(grant.waited, Duration::from_secs(3));
    bench.now += Duration::from_mins(1);
    bench.report(grant.attempt, Report::Failed(outcome(0)));
    bench.now += Duration::from_secs(1);
    let retried = bench.try_claim("w").unwrap();
    assert_eq!(retried.waited, Duration::from_secs(1));
}
