//! The executions whose inputs peers fetch ahead of their claims.

use super::*;
use crate::queue::Need;

const GB: Need = Need::Memory(GIB);

impl Bench {
    /// Names an action to a peer, unless one is.
    fn names(&mut self, peer: &str) -> Option<u32> {
        self.names_in_all(peer, 1).pop()
    }

    /// Names actions to a peer, so that it knows `most`. Returns the new ones.
    fn names_in_all(&mut self, peer: &str, most: usize) -> Vec<u32> {
        let fits = |platform: &str| platform == "linux";
        let keys = self.scheduler.look_ahead(&worker(peer), GB, most, fits);
        let numbers = keys.iter().filter_map(|key| {
            let mut actions = 1..100;
            actions.find(|action| *request(*action).key == *key)
        });
        numbers.collect()
    }

    /// Claims for a peer.
    fn gives(&mut self, peer: &str) -> Option<u32> {
        let fits = |platform: &str| platform == "linux";
        let scheduler = &mut self.scheduler;
        let grant = scheduler.claim_for(&worker(peer), GB, fits, self.now)?;
        Some(*grant.job)
    }
}

#[test]
fn each_peer_is_named_another_action_that_it_can_run() {
    let mut bench = Bench::new(1);
    let on_arm = Request {
        platform: "arm".into(),
        ..request(1)
    };
    bench.submit(&on_arm);
    bench.submit(&needing(2, 2 * GIB));
    for action in 3..=5 {
        bench.submit(&request(action));
    }
    assert_eq!(bench.names("peer"), Some(3));
    assert_eq!(bench.names("other"), Some(4));
    // One is enough as long as it is queued.
    assert_eq!(bench.names("peer"), None);
    bench.scheduler.remove_worker(&worker("peer"), bench.now);
    assert_eq!(bench.names("another"), Some(3));
    assert_eq!(bench.names("peer"), Some(5));
    assert_eq!(bench.names("late"), None);
    bench.scheduler.forget_ahead(&worker("peer"));
    assert_eq!(bench.names("late"), Some(5));
}

#[test]
fn a_peer_knows_as_many_actions_as_it_asks_for_up_to_sixteen() {
    let mut bench = Bench::new(1);
    for action in 1..=40 {
        bench.submit(&request(action));
    }
    assert_eq!(bench.names_in_all("peer", 3), [1, 2, 3]);
    assert_eq!(bench.names_in_all("other", 2), [4, 5]);
    assert!(bench.names_in_all("peer", 3).is_empty());
    // In the order of the queue.
    assert_eq!(bench.gives("peer"), Some(1));
    assert_eq!(bench.gives("other"), Some(4));
    assert_eq!(bench.names_in_all("peer", 3), [6]);
    let all = bench.names_in_all("odd", usize::MAX);
    assert_eq!(all, (7..23).collect::<Vec<_>>());
}

#[test]
fn a_peer_gets_the_action_that_it_was_named_if_no_other_slot_took_it() {
    let mut bench = Bench::new(8);
    for action in 1..=4 {
        bench.submit(&request(action));
    }
    assert_eq!(bench.names("other"), Some(1));
    assert_eq!(bench.names("peer"), Some(2));
    assert_eq!(bench.gives("peer"), Some(2));
    // Others leave it, as long as there is more.
    bench.claims(3);
    assert_eq!(bench.gives("late"), Some(4));
    // Nothing is reserved.
    bench.claims(1);
    assert_eq!(bench.gives("other"), None);
    bench.submit(&request(5));
    assert_eq!(bench.names("other"), Some(5));
    assert!(bench.scheduler.cancel(OperationId(5), bench.now));
    assert!(bench.scheduler.ahead.is_empty());
}

#[test]
fn an_action_of_a_peer_that_claims_nothing_is_named_to_another_after_three_claims() {
    let mut bench = Bench::new(1);
    bench.submit(&request(1));
    assert_eq!(bench.names("other"), Some(1));
    for action in 2..=4 {
        bench.submit(&request(action));
        assert_eq!(bench.names("peer"), Some(action));
        assert_eq!(bench.gives("peer"), Some(action));
    }
    bench.submit(&request(5));
    assert_eq!(bench.names("peer"), Some(1));
    assert_eq!(bench.gives("peer"), Some(1));
}

#[test]
fn an_action_is_passed_sixteen_times() {
    let mut bench = Bench::new(1);
    for action in 1..=40 {
        bench.submit(&request(action));
    }
    assert_eq!(bench.names("idle"), Some(1));
    assert_eq!(bench.names_in_all("peer", 16).len(), 16);
    assert_eq!(bench.names("late"), Some(18));
    for action in 2..=17 {
        assert_eq!(bench.gives("peer"), Some(action));
    }
    assert_eq!(bench.gives("late"), Some(1));
}

#[test]
fn only_actions_of_the_same_build_and_priority_are_passed() {
    let urgent = |action| Request {
        priority: -1,
        ..request(action)
    };
    let mut bench = Bench::new(1);
    bench.submit(&request(1));
    assert_eq!(bench.names("peer"), Some(1));
    bench.submit(&urgent(2));
    assert_eq!(bench.gives("peer"), Some(2));
    assert_eq!(bench.gives("peer"), Some(1));

    let mut bench = Bench::new(1);
    bench.submit(&of_build(1, "a"));
    bench.submit(&of_build(2, "b"));
    assert_eq!(bench.names("other"), Some(1));
    assert_eq!(bench.names("peer"), Some(2));
    assert_eq!(bench.gives("peer"), Some(1));
}

#[test]
fn the_named_actions_of_several_builds_are_the_next_of_each() {
    let mut bench = Bench::new(1);
    for action in 1..=3 {
        bench.submit(&of_build(action, "a"));
    }
    bench.submit(&of_build(4, "b"));
    let named = ["p1", "p2", "p3", "p4"].map(|peer| bench.names(peer));
    assert_eq!(named, [1, 4, 2, 3].map(Some));
    let taken = ["p1", "p2", "p3", "p4"].map(|peer| bench.gives(peer));
    assert_eq!(taken, [1, 4, 2, 3].map(Some));
}
