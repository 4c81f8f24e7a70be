//! Slots for actions of other nodes.

use super::*;
use crate::{Generation, queue::Need};

const SMALL: Need = Need::Memory(GIB);
const LARGE: Need = Need::Memory(6 * GIB);

fn entry(name: &str) -> Generation {
    Generation::new(name, 1).unwrap()
}

impl Bench {
    fn offers(&mut self, name: &str, counts: &[(Need, usize)]) {
        self.scheduler.set_foreign(&entry(name), counts);
    }

    /// Claims for `w`. Returns the entry node and the need, or the number of the own action.
    fn next_claim(&mut self) -> Option<(AttemptId, String)> {
        let claimed = self.scheduler.claim(&worker("w"), |_| true, self.now)?;
        Some(match claimed {
            Claimed::Own(grant) => (grant.attempt, grant.job.to_string()),
            Claimed::Foreign(claim) => {
                let of = claim.entry.node().to_owned();
                let need = match claim.need {
                    Need::Memory(bytes) => format!("{of} {}", bytes / GIB),
                    Need::Alone => format!("{of} alone"),
                };
                (claim.attempt, need)
            }
        })
    }

    #[track_caller]
    fn claims_all(&mut self, expected: &[&str]) -> Vec<AttemptId> {
        let claims = expected.iter().map(|expected| {
            let (attempt, claimed) = self.next_claim().unwrap();
            assert_eq!(claimed, *expected);
            attempt
        });
        claims.collect()
    }
}

#[test]
fn entry_nodes_and_own_builds_take_turns() {
    let mut bench = Bench::new(6);
    for action in 1..=3 {
        bench.submit(&request(action));
    }
    bench.offers("a", &[(Need::Memory(0), 100)]);
    bench.offers("b", &[(Need::Memory(0), 1)]);
    bench.claims_all(&["1", "a 0", "b 0", "2", "a 0", "3"]);
    assert!(bench.next_claim().is_none());
    assert_eq!(bench.scheduler.count_foreign(), 3);
}

#[test]
fn foreign_slots_are_free_when_reported_and_their_counts_end() {
    let mut bench = Bench::new(2);
    bench.offers("a", &[(SMALL, 2)]);
    let claims = bench.claims_all(&["a 1", "a 1"]);
    assert!(bench.next_claim().is_none());
    for claim in claims {
        bench.report(claim, Report::Stopped);
    }
    assert!(bench.next_claim().is_none());
    assert!(bench.scheduler.queue.is_empty() && bench.scheduler.ledger.is_idle());
}

#[test]
fn the_needs_of_an_entry_node_take_turns() {
    let mut bench = Bench::new(8);
    bench.offers("a", &[(SMALL, 3), (Need::Memory(2 * GIB), 1)]);
    bench.claims_all(&["a 1", "a 2", "a 1", "a 1"]);
}

#[test]
fn an_entry_node_without_actions_is_not_asked_again() {
    let mut bench = Bench::new(8);
    bench.offers("a", &[(SMALL, 5), (LARGE, 1)]);
    bench.claims_all(&["a 1"]);
    bench.scheduler.foreign_empty(&entry("a"), SMALL);
    bench.claims_all(&["a 6"]);
    assert!(bench.next_claim().is_none());
    bench.offers("a", &[(SMALL, 1)]);
    bench.claims_all(&["a 1"]);
}

#[test]
fn a_large_foreign_action_is_not_starved_by_small_ones() {
    let mut bench = Bench::new(8);
    bench.submit(&needing(0, 4 * GIB));
    let first = bench.claims(0);
    bench.offers("a", &[(LARGE, 1), (SMALL, 1000)]);
    let mut passed = 0;
    while let Some((attempt, _)) = bench.next_claim() {
        passed += 1;
        bench.report(attempt, Report::Stopped);
    }
    // The small ones are older once before they take turns.
    assert!((16..=17).contains(&passed), "{passed}");
    bench.report(first, done(0));
    bench.claims_all(&["a 6", "a 1"]);
}

#[test]
fn a_worker_does_not_become_free_for_an_action_that_another_node_is_kept_free_for() {
    let mut bench = Bench::new(8);
    bench.submit(&request(0));
    let first = bench.claims(0);
    bench.offers("a", &[(Need::Alone, 1), (SMALL, 1000)]);
    bench.claims_all(&["a 1"]);
    assert!(bench.next_claim().is_none());
    bench.scheduler.leave_foreign(&entry("a"), &[Need::Alone]);
    let mut small = bench.claims_all(&["a 1"; 6]);
    small.push(first);
    for attempt in small {
        bench.report(attempt, Report::Stopped);
    }
    assert!(bench.next_claim().is_some());
    bench.scheduler.leave_foreign(&entry("a"), &[]);
    assert!(bench.next_claim().is_none());
}

#[test]
fn a_worker_stops_draining_for_a_foreign_action_that_is_gone() {
    let mut bench = Bench::new(8);
    bench.submit(&request(0));
    bench.claims(0);
    bench.offers("a", &[(Need::Alone, 1)]);
    assert!(bench.next_claim().is_none());
    bench.submit(&request(1));
    assert!(bench.next_claim().is_none());
    bench.effects();
    bench.scheduler.foreign_gone(&entry("a"));
    let effects = bench.scheduler.take_effects();
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Claim)));
    bench.claims(1);
}

#[test]
fn a_foreign_action_runs_alone_with_all_memory() {
    let mut bench = Bench::new(8);
    bench.offers("a", &[(Need::Alone, 1), (SMALL, 1)]);
    let small = bench.claims_all(&["a 1"])[0];
    assert!(bench.next_claim().is_none());
    bench.report(small, Report::Stopped);
    let alone = bench.claims_all(&["a alone"])[0];
    bench.offers("a", &[(SMALL, 1)]);
    assert!(bench.next_claim().is_none());
    // The entry node had only a small one for the claim.
    assert_eq!(bench.scheduler.shrink(alone, SMALL), GIB);
    bench.claims_all(&["a 1"]);
}

#[test]
fn a_foreign_queue_counts_as_queued_for_idle_work() {
    let mut bench = Bench::new(1);
    let idle = bench.scheduler.claim_idle(&worker("w"), 0).unwrap();
    bench.offers("a", &[(SMALL, 1)]);
    assert!(bench.next_claim().is_none());
    assert_eq!(bench.effects(), ["stop w 1"]);
    bench.report(idle, Report::Stopped);
    assert!(bench.scheduler.claim_idle(&worker("w"), 0).is_none());
    bench.claims_all(&["a 1"]);
}

#[test]
fn a_draining_node_takes_nothing_and_stops_foreign_actions_at_the_end() {
    let mut bench = Bench::new(3);
    bench.offers("a", &[(SMALL, 2)]);
    bench.claims_all(&["a 1"]);
    bench.scheduler.drain(bench.now);
    assert!(bench.next_claim().is_none());
    assert!(bench.effects().is_empty());
    bench.scheduler.shut_down(bench.now);
    assert_eq!(bench.effects(), ["stop w 1"]);
}

#[test]
fn running_actions_of_an_entry_node_that_is_gone_keep_their_slots() {
    let mut bench = Bench::new(1);
    bench.offers("a", &[(SMALL, 2)]);
    let running = bench.claims_all(&["a 1"])[0];
    bench.scheduler.foreign_gone(&entry("a"));
    bench.submit(&request(1));
    assert!(bench.next_claim().is_none());
    bench.report(running, Report::Stopped);
    bench.claims(1);
}

#[test]
fn many_needs_of_an_entry_node_are_few_queues() {
    let mut bench = Bench::new(1);
    let needs: Vec<_> = (0..10_000)
        .map(|n| (Need::Memory(n * 1_000_003), 1))
        .collect();
    bench.offers("a", &needs);
    assert!(bench.scheduler.foreign.len() < 100);
    bench.offers("a", &[]);
    assert!(bench.scheduler.queue.is_empty());
}
