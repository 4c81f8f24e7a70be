//! Random orders of events.

use std::{collections::BTreeMap, time::Duration};

use gorego_scheduler::End;
use proptest::prelude::*;

use super::world::{MIB, World};

/// The most attempts of an operation: `max_losses`, and the one that succeeds.
const MAX_ATTEMPTS: usize = 6;

#[derive(Clone, Debug)]
enum Step {
    Submit(usize, u32, u64),
    Pass(u64),
    Break(usize, usize),
    Partition(usize, usize),
    Heal,
    Crash(usize),
    Restart(usize),
    Cancel(usize),
    Pause(usize, u64),
    Flap(usize, usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0_usize..4;
    prop_oneof![
        12 => (node(), 0_u32..1000, 0_u64..900).prop_map(|(n, a, m)| Step::Submit(n, a, m)),
        8 => (0_u64..1500).prop_map(Step::Pass),
        2 => (node(), node()).prop_map(|(a, b)| Step::Break(a, b)),
        1 => (node(), node()).prop_map(|(a, b)| Step::Partition(a, b)),
        1 => Just(Step::Heal),
        1 => node().prop_map(Step::Crash),
        2 => node().prop_map(Step::Restart),
        1 => any::<u16>().prop_map(|at| Step::Cancel(at.into())),
        1 => (node(), 0_u64..8000).prop_map(|(n, ms)| Step::Pause(n, ms)),
        1 => (node(), node(), 0_u64..5000).prop_map(|(a, b, ms)| Step::Flap(a, b, ms)),
    ]
}

fn apply(world: &mut World, step: &Step) {
    let count = world.nodes.len();
    let pair = |a: usize, b: usize| (a.min(b) % count, a.max(b) % count);
    match *step {
        Step::Submit(node, action, memory) => {
            let node = node % count;
            if world.is_awake(node) {
                world.submit(node, action, memory * MIB);
            }
        }
        Step::Pass(ms) => world.pass(Duration::from_millis(ms)),
        Step::Break(a, b) => {
            let (a, b) = pair(a, b);
            world.break_link(a, b);
        }
        Step::Partition(a, b) => {
            let (a, b) = pair(a, b);
            world.partitions.insert((a.min(b), a.max(b)));
            world.break_link(a, b);
        }
        Step::Flap(a, b, ms) => {
            let (a, b) = pair(a, b);
            let is_new = world.partitions.insert((a.min(b), a.max(b)));
            world.break_link(a, b);
            world.pass(Duration::from_millis(ms));
            if is_new {
                world.partitions.remove(&(a.min(b), a.max(b)));
            }
        }
        Step::Heal => world.partitions.clear(),
        Step::Crash(node) => world.crash(node % count),
        Step::Restart(node) => world.restart(node % count),
        Step::Pause(node, ms) => world.pause(node % count, Duration::from_millis(ms)),
        Step::Cancel(at) => {
            if !world.operations.is_empty() {
                world.cancel(at);
            }
        }
    }
}

/// Lets everything end without further failures.
fn settle(world: &mut World) {
    world.partitions.clear();
    for node in 0..world.nodes.len() {
        world.restart(node);
    }
    for _ in 0..100 {
        world.pass(Duration::from_secs(5));
        if world.is_done() {
            break;
        }
    }
    assert!(world.is_done(), "an operation waits for ever");
    // Orphans end after 30 s, and nothing is left to do.
    world.pass(Duration::from_mins(1));
    for node in &world.nodes {
        let totals = node.scheduler.totals();
        assert_eq!(
            (
                totals.queued,
                totals.running + totals.elsewhere,
                totals.live
            ),
            (0, 0, 0)
        );
        assert_eq!(node.handover.deadline(), None);
        let fetches = &node.handover.fetches;
        assert!(fetches.running.is_empty() && fetches.waiting.is_empty());
    }
    assert_ends(world);
}

/// Checks that each operation ended with its result or for a reason that the test gave, after few attempts.
fn assert_ends(world: &World) {
    let mut most = BTreeMap::<u32, usize>::new();
    for (id, operation) in &world.operations {
        *most.entry(operation.action).or_default() += MAX_ATTEMPTS;
        let is_right = match &operation.end {
            None => operation.is_lost,
            Some(End::Cancelled) => operation.is_cancelled,
            Some(End::WorkersLost(workers)) => workers.len() == MAX_ATTEMPTS,
            Some(_) => operation.is_answered(),
        };
        assert!(is_right, "{id}: {operation:?}");
    }
    for (action, runs) in &world.runs {
        assert!(*runs <= most[action], "{action}: {runs} attempts");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_the_order_of_events_every_operation_ends_once_and_no_slot_leaks(
        slots in prop::collection::vec(0_usize..4, 2..=4),
        steps in prop::collection::vec(step(), 1..120),
        latency in 1_u64..200,
        reads in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut slots = slots;
        // An action that no node can run would wait forever.
        slots[0] += 1;
        let mut world = World::new(&slots, Duration::from_millis(latency), seed);
        world.reads = reads;
        world.duration = |action| Duration::from_millis(u64::from(action) * 8);
        for step in &steps {
            apply(&mut world, step);
            for node in &world.nodes {
                let fetches = &node.handover.fetches;
                prop_assert!(fetches.running.len() <= 2);
                // At most as many as a node has slots for each of the others.
                prop_assert!(fetches.waiting.len() <= 4 * 3);
            }
        }
        settle(&mut world);
    }
}
