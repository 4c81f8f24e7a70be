//! Inputs that a node fetches ahead. Node 0 is the entry node, and has no slot unless a test says so.

use std::time::Duration;

use gorego_storage::DigestFunction;

use super::world::{MIB, World};

const LATENCY: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);

fn ten_seconds(_: u32) -> Duration {
    10 * SECOND
}

/// Returns which of these actions a node fetched ahead, in order.
fn fetched(world: &World, node: usize) -> Vec<u32> {
    let number = |hash: &bytes::Bytes| {
        let digest = |action: &u32| DigestFunction::Sha256.digest(&action.to_le_bytes());
        let mut actions = 0..100;
        actions.find(|action| digest(action).hash() == &hash[..])
    };
    let fetched = world.nodes[node].fetched.iter();
    fetched.map(|hash| number(hash).unwrap()).collect()
}

fn running(world: &World, node: usize) -> Vec<u32> {
    let running = world.nodes[node].running.values();
    running.map(|(action, _)| *action).collect()
}

#[test]
fn a_busy_node_fetches_one_action_ahead_for_each_that_starts() {
    let mut world = World::new(&[0, 1], LATENCY, 3);
    world.duration = ten_seconds;
    // Of one build.
    for action in [3, 6, 9] {
        world.submit(0, action, 0);
    }
    world.pass(9 * SECOND);
    assert_eq!((running(&world, 1), fetched(&world, 1)), (vec![3], vec![6]));
    world.pass(9 * SECOND);
    assert_eq!(running(&world, 1), [6]);
    assert_eq!(fetched(&world, 1), [6, 9]);
    world.pass(60 * SECOND);
    assert!(world.is_done());
    assert_eq!(fetched(&world, 1), [6, 9]);
}

#[test]
fn a_node_with_a_free_slot_or_without_an_offer_fetches_nothing() {
    let mut world = World::new(&[0, 4], LATENCY, 3);
    world.duration = ten_seconds;
    for action in 0..3 {
        world.submit(0, action, 0);
    }
    world.pass(5 * SECOND);
    world.submit(0, 3, 0);
    world.pass(SECOND);
    assert_eq!(running(&world, 1).len(), 4);
    assert!(fetched(&world, 1).is_empty());
}

#[test]
fn nodes_fetch_different_actions_and_run_those() {
    let mut world = World::new(&[0, 1, 1], LATENCY, 3);
    world.duration = |action| ten_seconds(action) + action * SECOND / 10;
    for action in [3, 6, 9, 12] {
        world.submit(0, action, 0);
    }
    world.pass(5 * SECOND);
    let ahead = [fetched(&world, 1), fetched(&world, 2)];
    let mut all = ahead.concat();
    all.sort_unstable();
    assert_eq!(all, [9, 12]);
    world.pass(8 * SECOND);
    assert_eq!([running(&world, 1), running(&world, 2)], ahead);
}

#[test]
fn an_action_that_was_fetched_ahead_goes_to_the_first_free_slot() {
    let mut world = World::new(&[1, 1], LATENCY, 3);
    world.duration = |action| action * SECOND;
    world.submit(0, 3, 0);
    world.submit(0, 33, 0);
    world.pass(SECOND);
    assert_eq!([running(&world, 0), running(&world, 1)], [[3], [33]]);
    world.submit(0, 6, 0);
    world.pass(SECOND);
    assert_eq!(fetched(&world, 1), [6]);
    world.pass(2 * SECOND);
    assert_eq!(running(&world, 0), [6]);
    // The next one follows once an action has started.
    world.submit(0, 9, 0);
    world.pass(SECOND);
    assert_eq!(fetched(&world, 1), [6]);
}

#[test]
fn a_new_link_begins_the_fetch_again() {
    let mut world = World::new(&[0, 1], LATENCY, 3);
    world.duration = ten_seconds;
    world.submit(0, 3, 0);
    world.submit(0, 6, 0);
    world.pass(SECOND);
    world.break_link(0, 1);
    world.pass(3 * SECOND);
    assert_eq!(fetched(&world, 1), [6, 6]);
}

#[test]
fn a_node_fetches_for_two_others_at_once() {
    let mut world = World::new(&[0, 0, 0, 1], Duration::ZERO, 3);
    world.duration = ten_seconds;
    world.submit(0, 3, 0);
    world.pass(SECOND);
    for entry in 0..3 {
        for action in 0..3 {
            world.submit(entry, 3 * action, MIB);
        }
    }
    let mut most = 0;
    while world.nodes[3].fetched.len() < 3 {
        assert!(world.step());
        most = most.max(world.nodes[3].handover.fetches.len());
    }
    assert_eq!(most, 2);
}
