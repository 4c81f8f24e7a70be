//! Inputs that a node fetches ahead. Node 0 is the entry node, and has no slot unless a test says so.

use std::time::Duration;

use gorego_storage::DigestFunction;
use reapi::gorego::cluster::{Prefetch, Queued, frame::Content};

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
    // The queue was empty, so that the node asks again.
    world.submit(0, 9, 0);
    world.pass(SECOND);
    assert_eq!(fetched(&world, 1), [6, 9]);
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
        most = most.max(world.nodes[3].handover.fetches.running.len());
    }
    assert_eq!(most, 2);
}

/// Starts as many actions at node 1 as it has slots, and queues more. Returns the world once some are named to it.
fn busy(slots: usize, actions: u32) -> World {
    let mut world = World::new(&[0, slots], LATENCY, 3);
    world.duration = ten_seconds;
    for action in 0..actions {
        world.submit(0, 3 * action, 0);
    }
    world.pass(SECOND);
    world
}

/// Delivers a frame of the entry node to node 1.
fn deliver(world: &mut World, frame: Content) {
    let entry = world.nodes[0].generation.clone();
    world.with(1, |handover, now, host| {
        handover.frame(&entry, frame, now, host);
    });
}

#[test]
fn a_busy_node_fetches_as_many_actions_ahead_as_it_has_slots() {
    let mut world = busy(3, 20);
    assert_eq!(running(&world, 1), [0, 3, 6]);
    assert_eq!(fetched(&world, 1), [9, 12, 15]);
    world.pass(10 * SECOND);
    assert_eq!(running(&world, 1), [9, 12, 15]);
    assert_eq!(fetched(&world, 1), [9, 12, 15, 18, 21, 24]);
}

#[test]
fn a_node_fetches_for_entry_nodes_in_equal_shares() {
    let mut world = World::new(&[0, 0, 4], Duration::ZERO, 3);
    world.duration = ten_seconds;
    for action in 0..20 {
        world.submit(0, 3 * action, 0);
    }
    world.pass(SECOND);
    assert_eq!(fetched(&world, 2).len(), 4);
    for action in 20..40 {
        world.submit(1, 3 * action, 0);
    }
    world.pass(SECOND);
    let of_second = |action: &&u32| **action >= 60;
    assert_eq!(fetched(&world, 2).iter().filter(of_second).count(), 2);
}

#[test]
fn actions_that_a_node_did_not_ask_for_are_not_fetched() {
    let mut world = busy(2, 20);
    assert_eq!(fetched(&world, 1), [6, 9]);
    for action in 90_u8..100 {
        let hash = DigestFunction::Sha256.digest(&u32::from(action).to_le_bytes());
        let prefetch = Prefetch {
            hash: hash.hash().to_vec().into(),
            ..Prefetch::default()
        };
        deliver(&mut world, Content::Prefetch(prefetch));
    }
    world.pass(SECOND);
    assert_eq!(fetched(&world, 1), [6, 9]);
}

#[test]
fn fetches_that_have_not_begun_are_dropped_once_their_entry_node_has_no_actions() {
    let mut world = World::new(&[0, 5], LATENCY, 3);
    world.duration = ten_seconds;
    for action in 0..20 {
        world.submit(0, 3 * action, 0);
    }
    while world.nodes[1].handover.fetches.waiting.is_empty() {
        assert!(world.step());
    }
    deliver(&mut world, Content::Queued(Queued::default()));
    assert!(world.nodes[1].handover.fetches.waiting.is_empty());
    // Those that were on their way are not fetched, either.
    world.pass(SECOND);
    assert_eq!(fetched(&world, 1), [15, 18]);
}
