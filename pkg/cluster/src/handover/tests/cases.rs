//! Single promises of the hand-over. Node 0 is the entry node, and has no slot unless a test says so.

use std::time::Duration;

use super::world::{MIB, Submitted, World};
use crate::handover::Member;

const LATENCY: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

/// Starts nodes, and an action of `time` at the first. It runs at another one afterwards.
fn start(slots: &[usize], time: fn(u32) -> Duration) -> World {
    let mut world = World::new(slots, LATENCY, 3);
    world.duration = time;
    world.submit(0, 1, 0);
    world.pass(SECOND / 10);
    assert_eq!(world.begun, 1);
    assert!(world.nodes[0].running.is_empty());
    world
}

fn minute(_: u32) -> Duration {
    MINUTE
}

fn ten_seconds(_: u32) -> Duration {
    10 * SECOND
}

/// Returns the time until the actions have ended, with their results unless failures are expected.
fn end(world: &mut World) -> Duration {
    let begin = world.now;
    while !world.is_done() {
        assert!(world.step());
    }
    let mut operations = world.operations.values();
    assert!(world.failures_are_expected || operations.all(Submitted::is_answered));
    world.now.saturating_sub(begin)
}

fn runs_at(world: &World) -> Vec<usize> {
    let nodes = world.nodes.iter().enumerate();
    let running = nodes.filter(|(_, node)| node.is_alive && !node.running.is_empty());
    running.map(|(at, _)| at).collect()
}

#[test]
fn an_action_starts_within_three_messages_of_a_known_peer() {
    let mut world = start(&[0, 1], ten_seconds);
    end(&mut world);
    world.submit(0, 2, 0);
    // Queued, Claim, Grant.
    world.pass(3 * LATENCY);
    assert_eq!(runs_at(&world), [1]);
}

#[test]
fn a_free_slot_takes_the_next_action_without_a_new_offer() {
    let mut world = start(&[0, 1], ten_seconds);
    world.submit(0, 2, 0);
    world.pass(10 * SECOND);
    assert_eq!(world.begun, 2);
    assert!(end(&mut world) < 11 * SECOND);
}

#[test]
fn a_link_that_is_replaced_within_a_second_loses_no_attempt() {
    let mut world = start(&[0, 1], ten_seconds);
    for _ in 0..5 {
        world.break_link(0, 1);
        world.pass(SECOND);
    }
    end(&mut world);
    assert_eq!(world.begun, 1);
}

#[test]
fn an_end_during_a_break_is_delivered_afterwards() {
    let mut world = start(&[0, 1], ten_seconds);
    world.pass(9 * SECOND + SECOND / 2);
    world.partitions.insert((0, 1));
    world.break_link(0, 1);
    world.pass(20 * SECOND);
    assert!(!world.is_done());
    world.partitions.clear();
    assert!(end(&mut world) < 3 * SECOND);
    assert_eq!(world.begun, 1);
}

#[test]
fn the_actions_of_a_killed_node_run_elsewhere_within_a_second() {
    let mut world = start(&[0, 1, 1], ten_seconds);
    let [at] = runs_at(&world)[..] else {
        panic!("runs nowhere");
    };
    world.crash(at);
    world.pass(SECOND);
    assert_eq!(runs_at(&world), [3 - at]);
}

#[test]
fn the_actions_of_a_silent_node_run_elsewhere_after_their_lease() {
    let mut world = start(&[0, 1, 1], ten_seconds);
    let [at] = runs_at(&world)[..] else {
        panic!("runs nowhere");
    };
    world.nodes[at].is_alive = false;
    world.pass(3 * SECOND);
    assert!(runs_at(&world).is_empty());
    world.pass(2 * SECOND);
    assert_eq!(runs_at(&world), [3 - at]);
}

#[test]
fn a_node_that_stops_for_two_seconds_keeps_its_actions_and_for_five_loses_them() {
    for (seconds, attempts) in [(2, 1), (5, 2)] {
        let mut world = start(&[0, 1], ten_seconds);
        world.pause(1, seconds * SECOND);
        // The older attempt ends first, and its outcome is used.
        assert!(end(&mut world) < 11 * SECOND);
        assert!(world.begun <= attempts);
        let retries = world.nodes[0].scheduler.totals().ends.retries;
        assert_eq!(retries, attempts - 1);
        world.pass(MINUTE);
        assert_eq!(world.nodes[1].scheduler.totals().running, 0);
    }
}

#[test]
fn an_action_goes_on_for_thirty_seconds_without_its_entry_node() {
    let mut world = start(&[0, 1], minute);
    world.crash(0);
    world.pass(29 * SECOND);
    assert_eq!(runs_at(&world), [1]);
    world.pass(3 * SECOND);
    assert!(runs_at(&world).is_empty());
    world.pass(SECOND);
    assert_eq!(world.nodes[1].handover.deadline(), None);
}

#[test]
fn the_result_of_an_action_without_its_entry_node_is_left_to_the_taker() {
    let mut world = start(&[0, 1], ten_seconds);
    world.crash(0);
    world.pass(20 * SECOND);
    assert_eq!(world.nodes[1].orphans, 1);
    world.restart(0);
    world.pass(20 * SECOND);
    assert_eq!(world.nodes[1].handover.deadline(), None);
}

#[test]
fn a_cancelled_action_stops_at_its_peer() {
    let mut world = start(&[0, 1], minute);
    world.cancel(0);
    world.pass(2 * LATENCY);
    assert!(runs_at(&world).is_empty());
    world.pass(SECOND);
    assert_eq!(world.nodes[0].scheduler.totals().elsewhere, 0);
    // It is cancelled later as well, when the link is broken meanwhile.
    let mut world = start(&[0, 1], minute);
    world.break_link(0, 1);
    world.cancel(0);
    world.pass(2 * SECOND);
    assert!(runs_at(&world).is_empty());
}

#[test]
fn a_draining_node_hands_its_queue_over() {
    let mut world = World::new(&[1, 1], LATENCY, 3);
    for action in 0..10 {
        world.submit(0, action, 0);
    }
    world.pass(SECOND / 2);
    let now = world.now;
    world.nodes[0].scheduler.hand_over(now);
    world.pump(0);
    world.pass(SECOND);
    assert_eq!(runs_at(&world), [1]);
    end(&mut world);
}

#[test]
fn an_action_goes_to_nodes_with_enough_memory() {
    let mut world = World::new(&[0, 1, 1], LATENCY, 3);
    let memories = [(1, 100 * MIB), (2, 1024 * MIB)];
    let generations: Vec<_> = world.nodes.iter().map(|n| n.generation.clone()).collect();
    let members = memories.map(|(at, memory)| Member {
        node: generations[at].clone(),
        slots: 1,
        memory,
        draining: false,
    });
    world.with(0, |handover, now, host| {
        handover.members(members, now, host);
    });
    world.submit(0, 1, 500 * MIB);
    world.submit(0, 2, 500 * MIB);
    world.pass(SECOND / 2);
    assert_eq!(runs_at(&world), [2]);
    end(&mut world);
}

#[test]
fn the_only_node_of_many_that_may_run_an_action_is_asked_at_once() {
    let able = 60;
    let mut slots = vec![1; 100];
    slots[0] = 0;
    let mut world = World::new(&slots, LATENCY, 3);
    let members: Vec<_> = world.nodes.iter().enumerate().collect();
    let members = members.into_iter().map(|(at, node)| Member {
        node: node.generation.clone(),
        slots: u32::from(at > 0),
        memory: if at == able { 1024 * MIB } else { 100 * MIB },
        draining: false,
    });
    let members: Vec<_> = members.collect();
    world.with(0, |handover, now, host| {
        handover.members(members, now, host);
    });
    world.submit(0, 1, 500 * MIB);
    world.pass(SECOND / 2);
    assert_eq!(runs_at(&world), [able]);
    end(&mut world);
}

#[test]
fn a_busy_link_is_not_idle() {
    let mut world = start(&[0, 1], ten_seconds);
    let peer = world.nodes[1].generation.clone();
    assert!(world.nodes[0].handover.is_busy(&peer));
    end(&mut world);
    world.pass(SECOND);
    assert!(!world.nodes[0].handover.is_busy(&peer));
}

#[test]
fn a_failed_action_runs_at_another_node_though_the_bad_one_is_free() {
    for bad in 0..3 {
        let mut world = World::new(&[1, 1, 1], LATENCY, 3);
        world.bad.insert(bad);
        // More than fail before the bad node rests. A delivered failure is an error of the world.
        for action in 0..200 {
            world.submit(0, action, 0);
        }
        end(&mut world);
        assert!((203..=230).contains(&world.begun), "{}", world.begun);
    }
}

#[test]
fn a_node_that_failed_runs_an_action_once_the_others_are_gone() {
    let mut world = World::new(&[0, 1, 1], LATENCY, 3);
    world.duration = minute;
    world.bad.insert(1);
    for action in 0..2 {
        world.submit(0, action, 0);
    }
    world.pass(SECOND);
    // One runs at the good node, and the other waits for it, as it failed at the bad one.
    assert_eq!(runs_at(&world), [2]);
    world.bad.clear();
    world.crash(2);
    world.pass(5 * SECOND);
    assert_eq!(runs_at(&world), [1]);
    end(&mut world);
}

#[test]
fn a_node_that_failed_runs_an_action_if_the_other_cannot_be_reached() {
    let mut world = World::new(&[0, 1, 1], LATENCY, 3);
    world.partitions.insert((0, 2));
    world.bad.insert(1);
    world.submit(0, 1, 0);
    // The action ends with the error of its node, since there is no other.
    world.failures_are_expected = true;
    assert!(end(&mut world) < 5 * SECOND);
}

#[test]
fn a_node_that_comes_back_goes_on_with_its_attempt() {
    let mut world = start(&[0, 1], ten_seconds);
    world.partitions.insert((0, 1));
    world.break_link(0, 1);
    world.pass(3 * SECOND);
    let totals = world.nodes[0].scheduler.totals();
    assert_eq!((totals.queued, totals.elsewhere), (1, 0));
    world.partitions.clear();
    world.pass(2 * SECOND);
    let totals = world.nodes[0].scheduler.totals();
    assert_eq!((totals.queued, totals.elsewhere), (0, 1));
    end(&mut world);
    assert_eq!(world.begun, 1);
    // Repeated losses of one attempt are not counted together.
    let mut world = start(&[0, 1], minute);
    for _ in 0..10 {
        world.partitions.insert((0, 1));
        world.break_link(0, 1);
        world.pass(3 * SECOND);
        world.partitions.clear();
        world.pass(2 * SECOND);
    }
    end(&mut world);
    assert_eq!(world.begun, 1);
}

#[test]
fn the_late_end_of_a_paused_node_is_used_and_the_second_attempt_stops() {
    let mut world = start(&[0, 1, 1], ten_seconds);
    let [at] = runs_at(&world)[..] else {
        panic!("runs nowhere");
    };
    world.pass(6 * SECOND);
    world.pause(at, 6 * SECOND);
    world.pass(5 * SECOND);
    assert_eq!(world.begun, 2);
    // The first attempt ends when its node goes on, and the second one would end later.
    assert!(end(&mut world) < 2 * SECOND);
    world.pass(SECOND / 2);
    assert!(runs_at(&world).is_empty());
    assert_eq!(world.nodes[0].scheduler.totals().elsewhere, 0);
}
