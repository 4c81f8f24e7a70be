//! Limits of the hand-over: the nodes that become free for an action, and the links that are opened. Node 0 is the entry
//! node, and has no slot unless a test says so.

use std::time::Duration;

use gorego_scheduler::{Need, Report};
use reapi::gorego::cluster::{Done, Load, done::End as DoneEnd, frame::Content};

use super::world::{Submitted, World};
use crate::handover::Down;

const LATENCY: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);

fn minute(_: u32) -> Duration {
    Duration::from_mins(1)
}

/// Ends an action at a node, which has no memory left for it.
fn run_out_of_memory(world: &mut World, at: usize) {
    let node = &mut world.nodes[at];
    let (slot, _) = node.running.pop_first().unwrap();
    let now = world.now;
    node.scheduler.report(slot, Report::Stopped, now);
    let done = Done {
        end: DoneEnd::OutOfMemory.into(),
        response: vec![0; 4].into(),
        ..Done::default()
    };
    world.with(at, |handover, _, host| handover.ended(slot, done, host));
}

/// Returns the nodes that run as many actions as they can.
fn full(world: &World, slots: usize) -> usize {
    let nodes = world.nodes.iter();
    nodes.filter(|node| node.running.len() == slots).count()
}

#[test]
fn one_node_becomes_free_for_an_action_that_ran_out_of_memory() {
    for own in [0, 2] {
        let mut world = World::new(&[own, 2, 2, 2], LATENCY, 3);
        // Each action ends at another time.
        world.duration = |action| SECOND * (10 + action);
        for action in 0..60 {
            world.submit(0, action, 0);
        }
        world.pass(SECOND);
        let nodes = 3 + own / 2;
        assert_eq!(full(&world, 2), nodes);
        run_out_of_memory(&mut world, 1);
        // The actions that ran have ended, and the next ones have not.
        world.pass(15 * SECOND + SECOND / 2);
        assert!(full(&world, 2) >= nodes - 1);
        world.pass(3600 * SECOND);
        assert!(world.is_done());
    }
}

#[test]
fn a_peer_becomes_free_for_an_action_for_which_this_node_is_busy_too_long() {
    let mut world = World::new(&[1, 2], LATENCY, 3);
    // The first one runs at the entry node.
    world.duration = |action| match action {
        0 => SECOND * 3600,
        _ => SECOND * (10 + action % 7),
    };
    world.submit(0, 0, 0);
    world.pass(SECOND);
    for action in 1..400 {
        world.submit(0, action, 0);
    }
    world.pass(SECOND);
    run_out_of_memory(&mut world, 1);
    world.pass(SECOND * 120);
    let alone = world.nodes[0].scheduler.peers_to_free();
    assert!(!alone.contains_key(&Need::Alone), "{alone:?}");
}

#[test]
fn a_queue_that_is_handed_over_outlives_a_link_that_breaks_for_a_moment() {
    // Either node may be the first to notice.
    for seed in 0..10 {
        let mut world = World::new(&[1, 1], LATENCY, seed);
        world.duration = minute;
        for action in 0..10 {
            world.submit(0, action, 0);
        }
        world.pass(SECOND);
        let now = world.now;
        world.nodes[0].scheduler.hand_over(now);
        world.pump(0);
        world.pass(SECOND);
        world.break_link(0, 1);
        world.pass(3600 * SECOND);
        assert!(world.operations.values().all(Submitted::is_answered));
    }
}

#[test]
fn an_action_that_needs_more_memory_than_any_node_has_is_handed_over() {
    let mut world = World::new(&[1, 1], LATENCY, 3);
    world.duration = minute;
    for node in 0..2 {
        world.submit(node, 0, 0);
    }
    world.pass(SECOND);
    world.submit(0, 1, u64::MAX);
    world.pass(SECOND);
    let now = world.now;
    world.nodes[0].scheduler.hand_over(now);
    world.pump(0);
    world.pass(90 * SECOND);
    assert_eq!((world.begun, world.nodes[1].running.len()), (3, 1));
    world.pass(60 * SECOND);
    assert!(world.operations.values().all(Submitted::is_answered));
}

#[test]
fn a_peer_that_refuses_links_is_tried_once_a_second() {
    let mut world = World::new(&[0, 1], Duration::from_micros(1), 3);
    world.nodes[1].is_alive = false;
    for action in 0..1000 {
        world.submit(0, action, 0);
        world.pass(SECOND / 100);
    }
    assert!((5..=11).contains(&world.connects), "{}", world.connects);
}

#[test]
fn a_burst_is_offered_to_all_nodes_at_once() {
    let mut world = World::new(&[&[0][..], &[1; 20]].concat(), LATENCY, 3);
    world.duration = minute;
    world.submit(0, 0, 0);
    world.pass(SECOND / 4);
    for action in 1..20 {
        world.submit(0, action, 0);
    }
    // Before more nodes are chosen anyway.
    world.pass(SECOND / 2);
    assert_eq!(world.begun, 20);
}

#[test]
fn an_entry_node_that_was_stopped_reads_the_news_before_it_ends_leases() {
    let mut world = World::new(&[1, 1], LATENCY, 3);
    world.duration = |action| SECOND * action;
    // The first one leaves the slot of the entry node.
    for action in [3, 60] {
        world.submit(0, action, 0);
    }
    world.pass(5 * SECOND + SECOND / 2);
    world.pause(0, 10 * SECOND);
    world.pass(20 * SECOND);
    assert_eq!(world.begun, 2);
}

#[test]
fn the_load_of_a_peer_is_unknown_without_a_link() {
    let mut world = World::new(&[0, 1], LATENCY, 3);
    world.submit(0, 1, 0);
    world.pass(SECOND / 10);
    let peer = world.nodes[1].generation.clone();
    let load = Load::default();
    world.with(0, |handover, now, host| {
        handover.frame(&peer, Content::Load(load), now, host);
    });
    let known = |world: &World| world.nodes[0].handover.peers[&peer].load;
    assert_eq!(known(&world), Some(load));
    world.with(0, |handover, now, host| {
        handover.link_down(&peer, Down::Broken, now, host);
    });
    assert_eq!(known(&world), None);
}
