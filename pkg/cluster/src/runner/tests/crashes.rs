//! Nodes that crash at each step, on a network that loses, delays and refuses, in virtual time.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use fastrand::Rng;
use tokio::{task::JoinSet, time::sleep};
use turmoil::Sim;

use super::{
    dialects::Dialect,
    nodes::{MEETING, Plan, World, execute, value},
};
use crate::{
    discovery::{Discovery, Lookup, LookupError, Places},
    link::tests::simulated::{Listener, Simulated},
    membership::MembershipOptions,
};

pub(super) const PORT: u16 = 7946;
const NAMES: [&str; 3] = ["a", "b", "c"];
pub(super) const TICK: Duration = Duration::from_millis(10);
/// The actions whose clients are at the first node.
const ACTIONS: u32 = 20;
/// The interval of their requests.
const INTERVAL: Duration = Duration::from_millis(40);
/// The attempts that fail at one node; after three in a row, it rests.
const FAILURES: u32 = 4;
/// The longest wait for a condition, in virtual time.
const PATIENCE: Duration = Duration::from_mins(2);
/// The most attempts of an operation: `max_losses`, and the one that succeeds.
const MAX_ATTEMPTS: u32 = 6;

/// The names of hosts.
pub(super) struct Hosts;

#[async_trait]
impl Lookup for Hosts {
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, LookupError> {
        Ok(vec![turmoil::lookup(host)])
    }

    async fn services(&self, _name: &str) -> Result<Vec<(String, u16)>, LookupError> {
        Ok(Vec::new())
    }
}

/// Runs a node until its host crashes. Clients whose operation was lost with it execute anew.
async fn run(name: &'static str, generation: u64, world: World) {
    let places = NAMES.map(|name| format!("{name}:{PORT}"));
    let plan = Plan {
        name,
        generation,
        address: format!("{name}:{PORT}"),
        connect: Arc::new(Simulated),
        discovery: Discovery::with_lookup(Places::List(places.into()), Arc::new(Hosts)),
        nodes: NAMES.len(),
        membership: MembershipOptions::default(),
        dialect: Dialect::Own,
    };
    let node = plan.start(Listener::bind(PORT).await, &world);
    let mut clients = JoinSet::new();
    let answered = |action: &u32| world.lock().answers.contains_key(action);
    if name == NAMES[0] {
        for action in (0..ACTIONS).filter(|action| !answered(action)) {
            let (runner, world) = (node.runner.clone(), Arc::clone(&world));
            clients.spawn(async move {
                sleep(INTERVAL * action).await;
                execute(runner, action, world).await;
            });
        }
    }
    let mut meets = false;
    loop {
        sleep(TICK).await;
        let unfinished_foreign = node.cluster.unfinished_foreign().await;
        world
            .lock()
            .unfinished_foreign
            .insert(name, unfinished_foreign);
        world.lock().totals.insert(name, node.runner.totals());
        world.lock().knows_failing |= !node.runner.failing().is_empty();
        if name == NAMES[0] && !meets && world.lock().meets {
            meets = true;
            for number in 0..3 {
                let world = Arc::clone(&world);
                clients.spawn(execute(node.runner.clone(), MEETING + number, world));
            }
        }
    }
}

/// Returns a network without hosts.
pub(super) fn network(seed: u64) -> Sim<'static> {
    fastrand::seed(seed);
    turmoil::Builder::new()
        .simulation_duration(Duration::from_hours(1))
        .tick_duration(TICK)
        .max_message_latency(Duration::from_millis(5))
        .rng_seed(seed)
        .build()
}

fn simulate(seed: u64) -> (Sim<'static>, World) {
    let mut sim = network(seed);
    let (world, runs) = (World::default(), Arc::new(AtomicU64::new(1)));
    for name in NAMES {
        let (world, runs) = (Arc::clone(&world), Arc::clone(&runs));
        sim.host(name, move || {
            let generation = runs.fetch_add(1, Ordering::Relaxed);
            let world = Arc::clone(&world);
            async move {
                run(name, generation, world).await;
                Ok(())
            }
        });
    }
    (sim, world)
}

pub(super) fn steps(sim: &mut Sim<'_>, steps: u128) {
    for _ in 0..steps {
        sim.step().unwrap();
    }
}

/// Steps until all these actions are answered.
fn wait_for_answers(sim: &mut Sim<'_>, world: &World, mut actions: std::ops::Range<u32>) {
    let mut left = PATIENCE.as_millis() / TICK.as_millis();
    while !actions
        .clone()
        .all(|action| world.lock().answers.contains_key(&action))
    {
        assert!(left > 0, "{:?}: {:?}", actions.next(), world.lock());
        left -= 1;
        steps(sim, 1);
    }
}

/// Checks that all operations end once with their results or with an error that `may_fail` accepts, after few attempts,
/// and that all slots are free in the end.
fn assert_ends(sim: &mut Sim<'_>, world: &World, may_fail: impl Fn(&str) -> bool) {
    wait_for_answers(sim, world, 0..ACTIONS);
    // They end once links and membership have recovered.
    world.lock().meets = true;
    wait_for_answers(sim, world, MEETING..MEETING + 3);
    steps(sim, 500);
    let state = world.lock();
    for (action, ends) in &state.answers {
        match &ends[..] {
            [Ok(found)] => assert_eq!(*found, value(*action)),
            [Err(why)] if may_fail(why) => {}
            other => panic!("{action}: {other:?}"),
        }
    }
    for (name, totals) in &state.totals {
        let counts = (
            totals.queued,
            totals.running + totals.elsewhere,
            totals.live,
        );
        assert_eq!(counts, (0, 0, 0), "{name}: {state:?}");
        assert_eq!(state.unfinished_foreign[name], 0, "{name}: {state:?}");
    }
}

#[test]
fn an_ended_action_is_unfinished_until_its_entry_node_received_the_end() {
    let (mut sim, world) = simulate(1);
    let left = || world.lock().unfinished_foreign.get("b").copied();
    let mut most = PATIENCE.as_millis() / TICK.as_millis();
    while left() != Some(1) {
        assert!(most > 0, "{:?}", world.lock());
        most -= 1;
        steps(&mut sim, 1);
    }
    sim.hold("a", "b");
    // The action ends, and the link is not yet given up.
    steps(&mut sim, 50);
    assert_eq!(world.lock().totals["b"].running, 0);
    assert_eq!(left(), Some(1));
    sim.release("a", "b");
    wait_for_answers(&mut sim, &world, 0..ACTIONS);
    steps(&mut sim, 100);
    assert_eq!(left(), Some(0));
}

#[test]
fn a_node_forgets_the_actions_of_others_once_these_received_the_ends() {
    let (mut sim, world) = simulate(1);
    wait_for_answers(&mut sim, &world, 0..ACTIONS);
    steps(&mut sim, 100);
    let state = world.lock();
    let foreign = state.jobs.iter().filter(|(name, _)| *name != NAMES[0]);
    let (held, forgotten): (Vec<_>, Vec<_>) = foreign.partition(|(_, job)| job.strong_count() > 0);
    assert!(held.is_empty(), "{held:?}");
    assert!(!forgotten.is_empty(), "{state:?}");
}

/// Crashes a node after this many steps. Some attempts fail at one node. Returns whether a node knew that it kept
/// failing.
fn assert_survives_crash(victim: &'static str, at: u64) -> bool {
    let (mut sim, world) = simulate(at);
    world.lock().to_fail = FAILURES;
    steps(&mut sim, at.into());
    sim.crash(victim);
    // It starts again at once, while its links are opened again, or after the leases of its actions.
    steps(&mut sim, [1, 40, 450][usize::try_from(at % 3).unwrap()]);
    sim.bounce(victim);
    assert_ends(&mut sim, &world, |_| false);
    // A crash of the entry node loses its operations, which its clients begin anew.
    let operations = if victim == NAMES[0] { 2 } else { 1 };
    let state = world.lock();
    for (action, runs) in &state.runs {
        // One attempt is lost, one fails, and one succeeds.
        assert!(
            *runs <= 3 * operations,
            "{action}: {runs}, {victim} at {at}"
        );
    }
    state.knows_failing
}

/// Crashes a node at every second step until all actions have run, each time in a cluster of its own.
fn assert_survives_crashes(victim: &'static str, first: u64) {
    let at = (first..150).step_by(2);
    let rests = at.filter(|at| assert_survives_crash(victim, *at));
    assert!(rests.count() > 0);
}

#[test]
fn operations_end_once_when_a_taker_crashes_at_any_even_step() {
    assert_survives_crashes("b", 0);
}

#[test]
fn operations_end_once_when_a_taker_crashes_at_any_odd_step() {
    assert_survives_crashes("b", 1);
}

#[test]
fn operations_end_once_when_the_entry_node_crashes_at_any_even_step() {
    assert_survives_crashes("a", 0);
}

#[test]
fn operations_end_once_when_the_entry_node_crashes_at_any_odd_step() {
    assert_survives_crashes("a", 1);
}

#[test]
fn operations_end_once_whatever_the_network_does() {
    for seed in 0..6 {
        let (mut sim, world) = simulate(seed);
        let mut rng = Rng::with_seed(seed);
        for _ in 0..20 {
            let one = rng.usize(..NAMES.len());
            let (a, b) = (NAMES[one], NAMES[(one + 1) % NAMES.len()]);
            match rng.u8(..10) {
                0..3 => sim.hold(a, b),
                3..6 => sim.release(a, b),
                6 => sim.partition(a, b),
                7 => sim.bounce(a),
                _ => sim.repair(a, b),
            }
            steps(&mut sim, rng.u64(1..100).into());
        }
        for (a, b) in [("a", "b"), ("b", "c"), ("c", "a")] {
            sim.release(a, b);
            sim.repair(a, b);
        }
        assert_ends(&mut sim, &world, |why| why.starts_with("WorkersLost"));
        let state = world.lock();
        let ends = state.answers.values();
        let results = ends.filter(|ends| ends[0].is_ok()).count();
        assert!(2 * results > state.answers.len(), "seed {seed}: {results}");
        drop(state);
        // The clients at the first node begin anew after each of its crashes.
        let most = world.lock().runs.values().copied().max();
        assert!(most.unwrap_or_default() <= 2 * MAX_ATTEMPTS, "seed {seed}");
    }
}
