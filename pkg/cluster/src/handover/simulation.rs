//! The hand-over in virtual time beside other rules, for tests and measurements.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "nodes are numbered by their callers, and all input comes from the simulation"
)]

mod rivals;
pub(crate) mod world;

use std::time::Duration;

pub use rivals::{least_by_news, two_choices};
use world::World;

/// The time of a frame from one node to another.
pub(crate) const LATENCY: Duration = Duration::from_micros(500);

/// Actions of 1 s that a client sends to one node of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The number of nodes.
    pub nodes: usize,
    /// The actions that each node runs at once.
    pub slots: usize,
    /// The number of actions.
    pub actions: usize,
    /// The most actions that the client waits for at once.
    pub jobs: usize,
}

/// The figures of a simulated run.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// The time until the last action ended.
    pub time: Duration,
    /// The longest wait of an action for a slot.
    pub worst: Duration,
    /// The actions without their result. None is answered twice, which the simulation checks itself.
    pub wrong: usize,
}

impl Setup {
    /// Returns the time of a run, divided by the shortest possible one.
    pub fn beside_ideal(self, figures: &Figures) -> f64 {
        let slots = number(self.nodes * self.slots);
        figures.time.as_secs_f64() / (number(self.actions) / slots)
    }
}

/// Hands over actions by the machines of this crate. Kills a node after half of the actions if `kills` is set.
pub fn late_binding(setup: Setup, kills: bool) -> Figures {
    hand_over(setup, kills).0
}

/// Runs [`late_binding`], and returns the nodes too.
pub(crate) fn hand_over(setup: Setup, kills: bool) -> (Figures, World) {
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
    let operations = || world.operations.values();
    let worst = operations().filter_map(|o| o.wait).max();
    let answered = operations().filter(|o| o.is_answered()).count();
    let figures = Figures {
        time: world.now.saturating_sub(begin),
        worst: worst.unwrap_or_default(),
        wrong: setup.actions - answered,
    };
    (figures, world)
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}
