use std::sync::LazyLock;

use gorego_storage::DigestFunction;

use super::*;
use crate::builds::{Cause, Comparison, Redaction, cause, event::testing::call};

static EVICTIONS: LazyLock<Evictions> = LazyLock::new(Evictions::default);
static REDACTION: LazyLock<Redaction> = LazyLock::new(|| Redaction::new::<&str>(&[]).unwrap());

fn event(number: usize, outcome: Outcome) -> Event {
    Event {
        at_ms: number as u64,
        call: None,
        instance: "".into(),
        action: DigestFunction::Sha256.digest(&number.to_le_bytes()),
        outcome,
    }
}

/// Records a miss of an own action.
fn miss(records: &mut BuildRecords, number: usize, build: &str, target: &str, mnemonic: &str) {
    let call = call(build, target, mnemonic);
    let call = CallNames::of(Some(&call), &REDACTION);
    records.apply(&event(number, Outcome::Miss), &call, &EVICTIONS);
}

/// Checks that the running estimate of the memory is not below that of all builds together.
fn assert_accounted(records: &BuildRecords) {
    let builds: usize = records.builds().map(Build::memory).sum();
    assert!(
        (builds..=builds * 3 / 2).contains(&records.memory),
        "{builds}"
    );
}

#[test]
fn misses_targets_and_mnemonics_beyond_the_limits_are_counted() {
    let mut records = BuildRecords::new();
    for number in 0..MAX_MISSES + 10 {
        let name = number.to_string();
        miss(&mut records, number, "b", &name, &name);
    }
    let build = records.build("b").unwrap();
    assert_eq!(build.misses.len(), MAX_MISSES);
    assert_eq!(build.targets.len(), 2000);
    assert_eq!(build.mnemonics.len(), 200);
    let left_out = build.head.left_out;
    assert_eq!(
        (left_out.misses, left_out.targets, left_out.mnemonics),
        (10, 10, 1810)
    );
    assert_eq!(build.head.total.misses, MAX_MISSES as u64 + 10);
    assert_accounted(&records);
}

#[test]
fn a_second_miss_of_an_action_is_counted_but_listed_once() {
    let mut records = BuildRecords::new();
    for _ in 0..2 {
        miss(&mut records, 1, "b", "//:t", "Genrule");
    }
    let build = records.build("b").unwrap();
    assert_eq!((build.head.total.misses, build.misses.len()), (2, 1));
}

#[test]
fn a_miss_without_a_target_is_explained_by_the_last_result_of_the_action() {
    let mut records = BuildRecords::new();
    let call = call("b", "", "");
    let call = CallNames::of(Some(&call), &REDACTION);
    let facts = ResultFacts {
        output: Some("out".to_owned()),
        ..ResultFacts::default()
    };
    records.apply(&event(1, Outcome::Stored(facts)), &call, &EVICTIONS);
    records.apply(&event(1, Outcome::Miss), &call, &EVICTIONS);
    records.apply(&event(2, Outcome::Miss), &call, &EVICTIONS);
    let misses = &records.build("b").unwrap().misses;
    let explained = |at: usize| misses[at].explanation.clone().unwrap();
    assert_eq!(explained(0).cause, Cause::Lost { stored_ms: 1 });
    assert_eq!(explained(1).cause, Cause::NeverSeen);
    let sentence = explained(1).sentence;
    assert!(sentence.contains("names no target"), "{sentence}");
}

#[test]
fn actions_known_before_the_clock_was_set_back_count_as_seen() {
    let mut records = BuildRecords::new();
    let call = call("b", "//:t", "Genrule");
    let call = CallNames::of(Some(&call), &REDACTION);
    let stored = Outcome::Stored(ResultFacts::default());
    records.apply(&event(2000, stored), &call, &EVICTIONS);
    records.apply(&event(1000, Outcome::Miss), &call, &EVICTIONS);
    let build = records.build("b").unwrap();
    assert_eq!(build.misses[0].explanation, None, "not never seen");
    assert!(build.head.last_call_ms >= build.head.started_ms);
}

#[test]
fn the_memory_of_builds_is_bounded_and_the_newest_stay() {
    let mut records = BuildRecords::new();
    let target = "t".repeat(400);
    for build in 0..40 {
        for number in 0..400 {
            let number = build * 20_000 + number;
            miss(
                &mut records,
                number,
                &build.to_string(),
                &format!("{target}{number}"),
                "Genrule",
            );
        }
        assert!(records.memory <= MAX_MEMORY, "{}", records.memory);
        assert_accounted(&records);
        records.take_dirty();
    }
    assert_eq!(records.heads().count(), 40, "all are listed");
    assert!(records.is_on_disk_only("0"));
    assert_eq!(records.build("39").unwrap().misses.len(), 400);
    records.not_on_disk("0");
    records.not_saved("39");
    let listed: Vec<_> = records.heads().map(|head| head.id.as_str()).collect();
    assert!(
        !listed.contains(&"0") && listed.contains(&"39"),
        "{listed:?}"
    );
    assert_eq!(records.take_dirty().len(), 1, "39 is saved again");
}

#[test]
fn builds_in_progress_together_lose_no_counts() {
    const BUILDS: usize = 20;
    let mut records = BuildRecords::new();
    for number in 0..MAX_MISSES * BUILDS / 4 {
        let target = format!("{}{number}", "t".repeat(200));
        miss(
            &mut records,
            number,
            &(number % BUILDS).to_string(),
            &target,
            "",
        );
        assert!(records.memory <= MAX_MEMORY, "{}", records.memory);
    }
    assert_eq!(records.builds().count(), BUILDS);
    assert_accounted(&records);
    for build in records.builds() {
        let (head, listed) = (&build.head, build.misses.len() as u64);
        assert_eq!(head.total.misses, MAX_MISSES as u64 / 4);
        assert_eq!(listed + head.left_out.misses, head.total.misses);
        assert!(listed > 0);
    }
    let later = MAX_MISSES * BUILDS;
    miss(&mut records, later, "later", "//:t", "");
    let later = records.build("later").unwrap();
    assert_eq!(later.misses.len(), 1, "those that are idle make room");
}

#[test]
fn no_build_is_listed_that_is_neither_in_memory_nor_on_the_disk() {
    let mut records = BuildRecords::new();
    let target = "t".repeat(400);
    for number in 0..20_000 {
        let build = (number / 500).to_string();
        miss(
            &mut records,
            number,
            &build,
            &format!("{target}{number}"),
            "",
        );
    }
    let listed: Vec<_> = records.heads().map(|head| head.id.clone()).collect();
    assert!(listed.len() < 40, "some were dropped");
    assert!(listed.iter().all(|id| records.build(id).is_some()));
}

#[test]
fn the_number_of_builds_is_bounded_and_the_newest_stay() {
    let mut records = BuildRecords::new();
    for build in 0..MAX_BUILDS * 2 {
        miss(&mut records, build, &build.to_string(), "//:t", "Genrule");
        assert!(records.heads().count() <= MAX_BUILDS);
    }
    assert!(
        records
            .heads()
            .any(|head| head.id == (MAX_BUILDS * 2 - 1).to_string())
    );
    assert!(!records.heads().any(|head| head.id == "0"));
    assert_accounted(&records);
}

#[test]
fn explanations_of_one_build_are_bounded() {
    let mut records = BuildRecords::new();
    let difference = super::super::Difference {
        aspect: super::super::Aspect::Argument,
        name: "1".to_owned(),
        before: Some("x".repeat(500)),
        after: Some("y".repeat(500)),
    };
    let comparison = Comparison {
        differences: vec![difference; 50],
        ..Comparison::default()
    };
    for number in 0..MAX_MISSES {
        miss(&mut records, number, "b", "", "");
        let job = Job {
            build: "b".to_owned(),
            action: event(number, Outcome::Miss).action.to_string(),
            at_ms: 0,
            candidates: Vec::new(),
        };
        records.explained(&job, cause::differs(comparison.clone(), 0, None));
    }
    assert!(records.memory <= 2 * MAX_EXPLAINED, "{}", records.memory);
}

#[test]
fn a_result_that_is_stored_again_takes_no_more_memory() {
    let mut records = BuildRecords::new();
    let call = call("b", "//:t", "Genrule");
    let call = CallNames::of(Some(&call), &REDACTION);
    let stored = |output: &str| {
        Outcome::Stored(ResultFacts {
            output: Some(output.to_owned()),
            ..ResultFacts::default()
        })
    };
    records.apply(&event(1, stored("known")), &call, &EVICTIONS);
    records.apply(&event(2, Outcome::Miss), &call, &EVICTIONS);
    for output in ["long name of an output", "out"].repeat(50) {
        let job = records.apply(&event(2, stored(output)), &call, &EVICTIONS);
        if let Some(job) = job {
            records.explained(&job, cause::not_uploaded(1));
            records.explained(&job, cause::not_uploaded(1));
        }
    }
    assert_accounted(&records);
}

#[test]
fn calls_without_a_target_or_mnemonic_count_in_the_build_only() {
    let mut records = BuildRecords::new();
    miss(&mut records, 1, "b", "", "");
    let build = records.build("b").unwrap();
    assert_eq!(build.head.total.misses, 1);
    assert!(build.targets.is_empty() && build.mnemonics.is_empty());
    assert_eq!(build.head.left_out.targets, 0);
}

#[test]
fn long_names_are_cut() {
    let call = call(&"b".repeat(130), &"é".repeat(300), "m");
    let names = CallNames::of(Some(&call), &REDACTION);
    assert!(names.build.id.len() <= 128, "{names:?}");
    let names = names.action_names(&event(1, Outcome::Miss));
    assert!(
        names.target.len() <= 512 && names.target.ends_with('…'),
        "{names:?}"
    );
}

#[test]
fn a_miss_after_the_clock_was_set_back_is_compared_with_what_was_known() {
    let mut records = BuildRecords::new();
    let call = call("b", "//:t", "Genrule");
    let call = CallNames::of(Some(&call), &REDACTION);
    let mut apply = |number, at_ms, outcome| {
        let event = Event {
            at_ms,
            ..event(number, outcome)
        };
        records.apply(&event, &call, &EVICTIONS)
    };
    apply(1, 9_000_000, Outcome::Stored(ResultFacts::default()));
    apply(2, 1_000_000, Outcome::Miss);
    // Another action is stored after that lookup, and is not compared with it.
    apply(3, 1_000_001, Outcome::Stored(ResultFacts::default()));
    let job = apply(2, 1_000_002, Outcome::Stored(ResultFacts::default())).unwrap();
    let known = DigestFunction::Sha256.digest(&1_usize.to_le_bytes());
    let candidates: Vec<_> = job.candidates.iter().map(|it| &*it.action).collect();
    assert_eq!(candidates, [known.to_string()]);
}
