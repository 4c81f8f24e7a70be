//! The time that a cluster takes for the actions of one entry node, beside other rules. Prints its figures:
//! `cargo test -p gorego-cluster simulation -- --nocapture`.

use std::time::{Duration, Instant};

use super::world::{MIB, Submitted, World};
use crate::handover::simulation::{
    Figures, LATENCY, Setup, hand_over, late_binding, least_by_news, two_choices,
};

/// Prints figures, and returns the time beside the ideal one.
fn print(setup: Setup, rule: &str, figures: &Figures) -> f64 {
    let beside = setup.beside_ideal(figures);
    let (nodes, slots) = (setup.nodes, setup.slots);
    let worst = figures.worst.as_secs_f64();
    eprintln!("{nodes} x {slots}: {rule}: {beside:.3} of the ideal time, worst wait {worst:.1} s");
    beside
}

fn compare(setup: Setup) -> f64 {
    let rivals = [
        ("least load by news", least_by_news(setup)),
        ("two choices", two_choices(setup)),
    ];
    let others = rivals.map(|(rule, figures)| (print(setup, rule, &figures), figures.worst));
    let (figures, world) = hand_over(setup, false);
    let beside = print(setup, "late binding", &figures);
    // The idle time of all slots for each action: the wait for an answer to a claim.
    let slots = f64::from(u32::try_from(setup.nodes * setup.slots).unwrap());
    let busy: f64 = world.nodes.iter().map(|n| n.busy.as_secs_f64()).sum();
    let idle = (slots * figures.time.as_secs_f64() - busy) * 1e3;
    let each = idle / f64::from(u32::try_from(setup.actions).unwrap());
    eprintln!("    slots idle for {each:.2} ms for each action; one way is 0.5 ms");
    assert_eq!(figures.wrong, 0);
    for (other, worst) in others {
        // Messages of the other rules take no time, and they leave no action to a node that has fetched its inputs.
        assert!(beside <= other * 1.01, "another rule takes {other}");
        assert!(
            figures.worst <= worst.mul_f64(1.1),
            "the worst wait of another rule is {worst:?}"
        );
    }
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
    for actions in [600, 3000] {
        let setup = Setup {
            nodes: 10,
            slots: 8,
            actions,
            jobs: 200,
        };
        assert!(compare(setup) <= 1.15);
    }
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
        let figures = late_binding(setup, true);
        print(setup, "late binding, one node killed", &figures);
        assert_eq!(figures.wrong, 0);
    }
}

#[test]
fn simulation_of_a_hundred_thousand_queued_actions_serves_them_all() {
    const ACTIONS: u32 = 100_000;
    let mut world = World::new(&[0, 16, 16, 16], LATENCY, 1);
    world.duration = |_| Duration::from_millis(10);
    let begin = Instant::now();
    for action in 0..ACTIONS {
        world.submit(0, action, u64::from(action % 50) * MIB);
    }
    let submitted = begin.elapsed();
    while world.ended < world.operations.len() {
        assert!(world.step());
    }
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(ACTIONS);
    eprintln!(
        "{ACTIONS} queued actions: {:.1} us to queue each, {:.1} us to hand over and end each, of all nodes",
        each(submitted),
        each(begin.elapsed().saturating_sub(submitted)),
    );
    assert_eq!(world.begun, ACTIONS.into());
    let mut operations = world.operations.values();
    assert!(operations.all(Submitted::is_answered));
}
