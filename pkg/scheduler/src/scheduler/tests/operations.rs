//! Operations: merging, watchers, cancelling, retention, drain, lists.

use super::*;
use crate::state::Phase;

#[test]
fn merged_operations_share_one_attempt_and_its_outcome() {
    let mut bench = Bench::new(4);
    let first = bench.submit(&request(1));
    let second = bench.submit(&of_build(1, "other"));
    let attempt = bench.claims(1);
    let third = bench.submit(&request(1));
    assert_eq!(bench.stage(third), "run 1");
    assert!(bench.try_claim("w").is_none());
    bench.report(attempt, done(7));
    for id in [first, second, third] {
        assert_eq!(bench.stage(id), "done 7");
    }
}

#[test]
fn merging_survives_the_first_client() {
    let mut bench = Bench::new(1);
    let first = bench.submit(&request(1));
    bench.pass(Duration::from_secs(30));
    let second = bench.submit(&request(1));
    bench.scheduler.detach(first, bench.now);
    let attempt = bench.claims(1);
    bench.pass(Duration::from_mins(1));
    assert_eq!(bench.stage(first), "abandoned");
    assert_eq!(bench.stage(second), "run 1");
    bench.report(attempt, done(7));
    assert_eq!(bench.stage(second), "done 7");
}

#[test]
fn an_action_that_forbids_caching_never_merges() {
    let mut bench = Bench::new(4);
    let alone = Request {
        do_not_cache: true,
        ..request(1)
    };
    for request in [&request(1), &alone, &alone, &request(1)] {
        bench.submit(request);
    }
    let attempts: Vec<_> = (0..3).map(|_| bench.claim().attempt).collect();
    assert!(bench.try_claim("w").is_none());
    for attempt in attempts {
        bench.report(attempt, done(7));
    }
    assert_eq!(bench.scheduler.totals().live, 0);
}

#[test]
fn the_end_of_an_action_that_forbids_caching_leaves_others_mergeable() {
    let mut bench = Bench::new(1);
    bench.submit(&Request {
        do_not_cache: true,
        ..request(1)
    });
    let attempt = bench.claims(1);
    bench.submit(&request(1));
    bench.report(attempt, done(7));
    bench.submit(&request(1));
    assert_eq!(bench.scheduler.totals().queued, 1);
}

#[test]
fn actions_of_different_instances_are_not_merged() {
    let mut bench = Bench::new(4);
    let mut other = request(1);
    Arc::make_mut(&mut other.key).instance = InstanceName::parse("other").unwrap();
    bench.submit(&request(1));
    bench.submit(&other);
    assert_eq!(bench.scheduler.totals().queued, 2);
}

#[test]
fn actions_for_different_platforms_are_not_merged() {
    let mut bench = Bench::new(4);
    let here = Request {
        platform: "here".into(),
        ..request(1)
    };
    for request in [&request(1), &here, &request(1), &here] {
        bench.submit(request);
    }
    assert_eq!(bench.scheduler.totals().queued, 2);
    // The end of one leaves the other mergeable.
    let attempt = bench.claims(1);
    bench.report(attempt, done(7));
    bench.submit(&request(1));
    bench.submit(&here);
    assert_eq!(bench.scheduler.totals().queued, 2);
}

#[test]
fn an_action_runs_again_after_its_completion() {
    let mut bench = Bench::new(1);
    bench.submit(&request(1));
    let attempt = bench.claims(1);
    bench.report(attempt, done(7));
    let again = bench.submit(&request(1));
    assert_eq!(bench.stage(again), "queued");
    bench.claims(1);
}

#[test]
fn a_cancelled_operation_does_not_end_the_others_of_its_execution() {
    let mut bench = Bench::new(1);
    let ids: Vec<_> = (0..4).map(|_| bench.submit(&request(1))).collect();
    assert!(bench.scheduler.cancel(ids[0], bench.now));
    let attempt = bench.claims(1);
    assert!(bench.scheduler.cancel(ids[2], bench.now));
    bench.effects();
    bench.report(attempt, done(7));
    assert_eq!(bench.stage(ids[0]), "cancelled");
    assert_eq!(bench.stage(ids[2]), "cancelled");
    let mut notified = bench.effects();
    notified.sort_unstable();
    assert_eq!(notified, ["2 done 7", "4 done 7"]);
}

#[test]
fn the_last_cancelled_operation_ends_the_execution() {
    let mut bench = Bench::new(1);
    let queued = bench.submit(&request(1));
    bench.scheduler.cancel(queued, bench.now);
    assert!(bench.try_claim("w").is_none());
    let running = bench.submit(&request(2));
    let attempt = bench.claims(2);
    bench.effects();
    bench.scheduler.cancel(running, bench.now);
    assert_eq!(bench.effects(), ["stop w 1", "2 cancelled"]);
    assert_eq!(bench.scheduler.totals().ends.cancelled, 2);
    // The slot is free when the worker says so.
    let next = bench.submit(&request(2));
    assert!(bench.try_claim("w").is_none());
    bench.report(attempt, Report::Stopped);
    assert_eq!(bench.stage(next), "queued");
    bench.claims(2);
    assert_eq!(bench.stage(running), "cancelled");
}

#[test]
fn cancelling_a_completed_operation_changes_nothing() {
    let mut bench = Bench::new(1);
    let id = bench.submit(&request(1));
    let attempt = bench.claims(1);
    bench.report(attempt, done(7));
    assert!(bench.scheduler.cancel(id, bench.now));
    assert_eq!(bench.stage(id), "done 7");
    assert!(!bench.scheduler.cancel(OperationId(99), bench.now));
}

#[test]
fn an_abandoned_operation_is_dropped_or_stopped() {
    let mut bench = Bench::new(1);
    let running = bench.submit(&request(1));
    bench.claims(1);
    let queued = bench.submit(&request(2));
    let watched = bench.submit(&request(3));
    bench.effects();
    for id in [running, queued, watched] {
        bench.scheduler.detach(id, bench.now);
    }
    bench.pass(Duration::from_secs(59));
    assert_eq!(bench.stage(queued), "queued");
    assert!(bench.scheduler.attach(watched).is_some());
    assert_eq!(bench.scheduler.deadline(), Some(Duration::from_mins(1)));
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.effects(), ["stop w 1", "1 abandoned", "2 abandoned"]);
    bench.pass(Duration::from_mins(10));
    assert_eq!(bench.stage(watched), "queued");
}

#[test]
fn an_operation_is_watched_until_its_last_watcher_leaves() {
    let mut bench = Bench::new(1);
    let id = bench.submit(&request(1));
    bench.scheduler.attach(id);
    bench.scheduler.detach(id, bench.now);
    bench.pass(Duration::from_secs(100));
    assert_eq!(bench.stage(id), "queued");
    bench.scheduler.detach(id, bench.now);
    bench.scheduler.detach(id, bench.now);
    bench.pass(Duration::from_mins(1));
    assert_eq!(bench.stage(id), "abandoned");
    assert!(bench.scheduler.attach(OperationId(99)).is_none());
}

#[test]
fn every_stage_is_notified_in_order() {
    let mut bench = Bench::new(1);
    bench.submit(&request(1));
    let attempt = bench.claims(1);
    for phase in [
        Phase::Fetch,
        Phase::Run,
        Phase::Stage,
        Phase::Fetch,
        Phase::Collect,
    ] {
        bench.scheduler.progress(attempt, phase, bench.now);
    }
    bench.report(attempt, done(7));
    bench.scheduler.progress(attempt, Phase::Publish, bench.now);
    let stages = [
        "1 run 1",
        "1 run 1 Fetch",
        "1 run 1 Run",
        "1 run 1 Collect",
        "1 done 7",
    ];
    assert_eq!(bench.effects(), stages);
}

#[test]
fn completed_operations_are_kept_for_the_configured_time() {
    let mut bench = Bench::new(1);
    let id = bench.submit(&request(1));
    let attempt = bench.claims(1);
    bench.scheduler.detach(id, bench.now);
    assert_eq!(bench.scheduler.deadline(), Some(Duration::from_mins(1)));
    bench.report(attempt, done(7));
    assert_eq!(bench.scheduler.deadline(), Some(Duration::from_mins(10)));
    bench.pass(Duration::from_secs(599));
    assert_eq!(bench.stage(id), "done 7");
    assert_eq!(bench.scheduler.key(id).unwrap(), &*request(1).key);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.stage(id), "unknown");
    assert_eq!(bench.scheduler.deadline(), None);
}

#[test]
fn completed_operations_are_bounded_in_count_and_bytes() {
    let mut bench = Bench::with(
        Options {
            max_completed: 3,
            max_completed_bytes: 250,
            ..options()
        },
        1,
    );
    let mut complete = |action, bytes, operations: usize| {
        for _ in 0..operations {
            bench.submit(&request(action));
        }
        let attempt = bench.claims(action);
        let value = Outcome { value: 7, bytes };
        bench.report(attempt, Report::Done(value));
        assert_eq!(bench.effects().len(), 2 * operations);
        bench.scheduler.totals()
    };
    // Merged operations share the bytes of one outcome.
    let totals = complete(1, 100, 2);
    assert_eq!((totals.completed, totals.completed_bytes), (2, 100));
    let totals = complete(2, 100, 2);
    assert_eq!((totals.completed, totals.completed_bytes), (3, 200));
    let totals = complete(3, 200, 1);
    assert_eq!((totals.completed, totals.completed_bytes), (1, 200));
    let totals = complete(4, 251, 1);
    assert_eq!((totals.completed, totals.completed_bytes), (0, 0));
}

#[test]
fn a_forgotten_operation_is_unknown() {
    let mut bench = Bench::new(1);
    let id = bench.submit(&request(1));
    assert!(!bench.scheduler.forget(id));
    let attempt = bench.claims(1);
    bench.report(attempt, done(7));
    assert!(bench.scheduler.forget(id));
    assert!(!bench.scheduler.forget(id));
    assert_eq!(bench.stage(id), "unknown");
    assert_eq!(bench.scheduler.totals().completed_bytes, 0);
}

#[test]
fn a_full_queue_of_queued_and_merged_operations_refuses_with_its_own_error() {
    let size = |queue_size| Options {
        queue_size,
        ..options()
    };
    let mut bench = Bench::with(size(2), 1);
    bench.submit(&request(1));
    bench.claims(1);
    bench.submit(&request(2));
    bench.submit(&request(2));
    assert_eq!(bench.try_submit(&request(1)), Err(Refused::Full(2)));
    assert_eq!(bench.try_submit(&request(3)), Err(Refused::Full(2)));
    bench.scheduler.cancel(OperationId(2), bench.now);
    bench.submit(&request(1));
}

#[test]
fn an_id_in_use_is_refused() {
    let mut bench = Bench::new(1);
    let id = bench.submit(&request(1));
    let again = bench.scheduler.submit(id, &request(2), bench.now);
    assert!(matches!(again, Err(Refused::Exists(_))));
    assert_eq!(bench.scheduler.totals().queued, 1);
}

#[test]
fn a_draining_scheduler_refuses_new_operations_and_ends_the_queued_ones() {
    let mut bench = Bench::new(1);
    bench.submit(&request(1));
    let attempt = bench.claims(1);
    bench.submit(&request(2));
    bench.effects();
    bench.scheduler.drain(bench.now);
    assert_eq!(bench.try_submit(&request(1)), Err(Refused::Draining));
    assert_eq!(bench.effects(), ["2 shut down"]);
    bench.report(attempt, done(7));
    assert_eq!(bench.effects(), ["1 done 7"]);
}

#[test]
fn an_attempt_that_fails_while_the_scheduler_drains_is_not_retried() {
    for report in [
        Report::Stopped,
        Report::Failed(outcome(7)),
        Report::OutOfMemory(outcome(7)),
    ] {
        let mut bench = Bench::new(1);
        let id = bench.submit(&request(1));
        let attempt = bench.claims(1);
        bench.scheduler.drain(bench.now);
        bench.report(attempt, report);
        assert_eq!(bench.stage(id), "shut down");
        let totals = bench.scheduler.totals();
        assert_eq!(
            (totals.live, totals.running, totals.ends.retries),
            (0, 0, 0)
        );
    }
}

#[test]
fn shutting_down_stops_running_attempts() {
    let mut bench = Bench::new(1);
    bench.submit(&request(1));
    let attempt = bench.claims(1);
    bench.submit(&request(2));
    bench.effects();
    bench.scheduler.shut_down(bench.now);
    let effects = ["stop w 1", "1 shut down", "2 shut down"];
    assert_eq!(bench.effects(), effects);
    bench.report(attempt, Report::Stopped);
    assert_eq!(bench.scheduler.totals().running, 0);
}

#[test]
fn the_list_has_queued_and_running_actions() {
    let mut bench = Bench::new(1);
    let long = Request {
        target: "é".repeat(1000),
        ..request(1)
    };
    bench.submit(&long);
    let attempt = bench.claims(1);
    bench.report(attempt, Report::Failed(outcome(0)));
    bench.claims(1);
    bench.pass(Duration::from_secs(5));
    bench.submit(&request(2));
    bench.submit(&request(2));
    bench.pass(Duration::from_secs(2));
    let listed: Vec<_> = bench.scheduler.list(bench.now).collect();
    assert_eq!(listed[0].target, "é".repeat(128));
    assert_eq!(listed[0].age, Duration::from_secs(7));
    assert_eq!(listed[0].attempts, 2);
    let running = listed[0].running.as_ref().unwrap();
    assert_eq!(
        (running.worker.clone(), running.since),
        (worker("w"), Time::ZERO)
    );
    assert_eq!(listed[1].operations, 2);
    assert_eq!(
        (listed[1].target.as_str(), listed[1].mnemonic.as_str()),
        ("//pkg:2", "Rustc")
    );
    assert!(listed[1].running.is_none());
    assert_eq!(listed.len(), 2);
}

#[test]
fn the_newest_ended_actions_are_remembered_with_their_steps() {
    let mut bench = Bench::new(1);
    for number in 1..=51 {
        bench.submit(&request(number));
    }
    let attempt = bench.claims(1);
    bench.pass(Duration::from_secs(1));
    bench.scheduler.progress(attempt, Phase::Run, bench.now);
    bench.pass(Duration::from_secs(2));
    bench.report(attempt, Report::Done(outcome(0)));
    let recent: Vec<_> = bench.scheduler.recent().collect();
    let [ended] = recent.as_slice() else {
        panic!("{recent:?}");
    };
    assert_eq!((&*ended.target, ended.attempts), ("//pkg:1", 1));
    assert_eq!(ended.ended, Duration::from_secs(3));
    let running = ended.running.as_ref().unwrap();
    let phases = running
        .phases
        .durations(ended.ended.saturating_sub(running.since));
    assert_eq!(phases, [(Phase::Run, Duration::from_secs(2))]);
    bench.scheduler.shut_down(bench.now);
    let recent: Vec<_> = bench.scheduler.recent().collect();
    assert_eq!((&*recent[0].target, recent.len()), ("//pkg:51", 50));
    assert!(recent[0].running.is_none());
}
