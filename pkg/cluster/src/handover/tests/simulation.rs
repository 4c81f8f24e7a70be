//! The time that a cluster takes for the actions of one entry node, beside other rules. Prints its figures:
//! `cargo test -p gorego-cluster simulation -- --nocapture`.

use std::time::{Duration, Instant};

use super::{
    rivals::{least_by_news, simulate, two_choices},
    world::{MIB, World},
};

const LATENCY: Duration = Duration::from_micros(500);

/// Actions of 1 s at one entry node.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    pub(super) nodes: usize,
    pub(super) slots: usize,
    pub(super) actions: usize,
    /// The most that the client waits for at once.
    pub(super) jobs: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    pub(super) time: Duration,
    /// The longest wait for a slot.
    pub(super) worst: Duration,
}

impl Setup {
    fn ideal(self) -> f64 {
        let slots = u32::try_from(self.nodes * self.slots).unwrap();
        f64::from(u32::try_from(self.actions).unwrap()) / f64::from(slots)
    }

    fn print(self, rule: &str, figures: Figures) -> f64 {
        let beside = figures.time.as_secs_f64() / self.ideal();
        let (nodes, slots) = (self.nodes, self.slots);
        let worst = figures.worst.as_secs_f64();
        eprintln!(
            "{nodes} x {slots}: {rule}: {beside:.3} of the ideal time, worst wait {worst:.1} s"
        );
        beside
    }
}

/// Runs the real machines. A node is killed in the middle if `kills` is set.
fn hand_over(setup: Setup, kills: bool) -> (Figures, World) {
    let mut world = World::new(&vec![setup.slots; setup.nodes], LATENCY, 1);
    let begin = world.now;
    let mut submitted = 0;
    let mut is_killed = !kills;
    while world.ended < setup.actions {
        while submitted < setup.actions && submitted - world.ended < setup.jobs {
            submitted += 1;
            world.submit(0, u32::try_from(submitted).unwrap(), 0);
        }
        if !is_killed && world.ended >= setup.actions / 2 {
            is_killed = true;
            world.crash(1);
        }
        assert!(world.step(), "the cluster stands still");
    }
    let waits = world.operations.values().filter_map(|o| o.wait);
    let worst = waits.max().unwrap();
    let time = world.now.saturating_sub(begin);
    (Figures { time, worst }, world)
}

fn compare(setup: Setup) -> f64 {
    setup.print("least load by news", simulate(setup, least_by_news));
    setup.print("two choices", simulate(setup, two_choices));
    let (figures, world) = hand_over(setup, false);
    let beside = setup.print("late binding", figures);
    // The idle time of all slots for each action: the wait for an answer to a claim.
    let slots = f64::from(u32::try_from(setup.nodes * setup.slots).unwrap());
    let busy: f64 = world.nodes.iter().map(|n| n.busy.as_secs_f64()).sum();
    let idle = (slots * figures.time.as_secs_f64() - busy) * 1e3;
    let each = idle / f64::from(u32::try_from(setup.actions).unwrap());
    eprintln!("    slots idle for {each:.2} ms for each action; one way is 0.5 ms");
    assert!(
        world
            .operations
            .values()
            .all(|operation| operation.ends == 1)
    );
    beside
}

#[test]
fn simulation_of_three_nodes_with_two_slots_takes_at_most_1_05_of_the_ideal_time() {
    let setup = Setup {
        nodes: 3,
        slots: 2,
        actions: 600,
        jobs: 200,
    };
    assert!(compare(setup) <= 1.05);
}

#[test]
fn simulation_of_ten_nodes_with_eight_slots_takes_at_most_1_15_of_the_ideal_time() {
    let setup = Setup {
        nodes: 10,
        slots: 8,
        actions: 3000,
        jobs: 200,
    };
    assert!(compare(setup) <= 1.15);
}

#[test]
fn simulation_of_forty_nodes_keeps_all_of_them_busy() {
    let setup = Setup {
        nodes: 40,
        slots: 4,
        actions: 3200,
        jobs: 400,
    };
    assert!(compare(setup) <= 1.15);
}

#[test]
fn simulation_of_a_killed_node_loses_no_action_and_answers_none_twice() {
    for (nodes, slots) in [(3, 2), (10, 8)] {
        let setup = Setup {
            nodes,
            slots,
            actions: 600,
            jobs: 200,
        };
        let (figures, world) = hand_over(setup, true);
        setup.print("late binding, one node killed", figures);
        assert_eq!(world.operations.len(), 600);
        assert!(
            world
                .operations
                .values()
                .all(|operation| operation.ends == 1)
        );
    }
}

#[test]
fn simulation_of_twenty_thousand_queued_actions_serves_them_all() {
    const ACTIONS: u32 = 20_000;
    let mut world = World::new(&[0, 16, 16, 16], LATENCY, 1);
    world.duration = |_| Duration::from_millis(10);
    let begin = Instant::now();
    for action in 0..ACTIONS {
        world.submit(0, action, u64::from(action % 50) * MIB);
    }
    let submitted = begin.elapsed();
    while world.ended < 20_000 {
        assert!(world.step());
    }
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(ACTIONS);
    eprintln!(
        "20,000 queued actions: {:.1} us to queue each, {:.1} us to hand over and end each, of all nodes",
        each(submitted),
        each(begin.elapsed().saturating_sub(submitted)),
    );
    assert_eq!(world.begun, 20_000);
}
