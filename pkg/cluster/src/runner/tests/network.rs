//! Tests of whole clusters on a simulated network. They check loads, partitions, and idle links.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use reapi::gorego::cluster::Load;
use tokio::{task::JoinSet, time::sleep};
use turmoil::Sim;

use super::{
    crashes::{Hosts, PORT, TICK, network, steps},
    dialects::Dialect,
    nodes::{LOAD_PERIOD, MEETING, Plan, World, execute, value},
};
use crate::{
    discovery::{Discovery, Places},
    link::{
        Connect, Socket,
        tests::simulated::{Listener, Simulated},
    },
    membership::MembershipOptions,
    runner::{IDLE, NodeView, UPKEEP, View},
};

/// The longest wait for a condition.
const PATIENCE: Duration = Duration::from_mins(1);

/// A cluster, and what its nodes know.
struct Cluster {
    sim: Sim<'static>,
    board: Arc<Mutex<Board>>,
}

#[derive(Debug, Default)]
struct Board {
    /// The last view of each node.
    views: BTreeMap<&'static str, View>,
    /// The actions that clients are about to send to each node.
    requests: BTreeMap<&'static str, Vec<u32>>,
    /// The connections that each node opened to each address.
    dials: BTreeMap<(&'static str, String), usize>,
}

/// Opens connections of a node, and counts them.
#[derive(Debug)]
struct Counted(&'static str, Arc<Mutex<Board>>);

#[async_trait]
impl Connect for Counted {
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Socket>> {
        let dial = (self.0, address.to_owned());
        *self.1.lock().dials.entry(dial).or_default() += 1;
        Simulated.connect(address).await
    }
}

/// A node to start.
struct Place {
    name: &'static str,
    world: World,
    /// The number of nodes that meet.
    meet: usize,
}

impl Cluster {
    /// Starts nodes, and waits until all know all.
    fn start(places: Vec<Place>, membership: &MembershipOptions) -> Self {
        let mut sim = network(1);
        let board = Arc::<Mutex<Board>>::default();
        let names: Vec<_> = places.iter().map(|place| place.name).collect();
        let addresses: Vec<_> = names.iter().map(|name| format!("{name}:{PORT}")).collect();
        for (number, place) in places.into_iter().enumerate() {
            let (world, name) = (place.world, place.name);
            let (board, addresses) = (Arc::clone(&board), addresses.clone());
            let membership = membership.clone();
            sim.host(name, move || {
                let addresses = Places::List(addresses.clone());
                let plan = Plan {
                    name,
                    generation: 1,
                    // Discovery finds IP addresses, and some nodes give themselves host names.
                    address: if number % 2 == 0 {
                        format!("{name}:{PORT}")
                    } else {
                        address_of(name)
                    },
                    connect: Arc::new(Counted(name, Arc::clone(&board))),
                    discovery: Discovery::with_lookup(addresses, Arc::new(Hosts)),
                    nodes: place.meet,
                    membership: membership.clone(),
                    dialect: Dialect::Own,
                };
                let (board, world) = (Arc::clone(&board), Arc::clone(&world));
                async move {
                    run(plan, board, world).await;
                    Ok(())
                }
            });
        }
        let mut cluster = Self { sim, board };
        cluster.wait(PATIENCE, |board| board.agree(&names));
        cluster
    }

    fn request(&self, node: &'static str, actions: &[u32]) {
        let requests = &mut self.board.lock().requests;
        requests.entry(node).or_default().extend(actions);
    }

    /// Steps until the condition holds.
    fn wait(&mut self, limit: Duration, mut is_met: impl FnMut(&Board) -> bool) {
        let mut left = limit.as_millis() / TICK.as_millis();
        while !is_met(&self.board.lock()) {
            assert!(left > 0, "{:#?}", self.board.lock().views);
            left -= 1;
            steps(&mut self.sim, 1);
        }
    }
}

impl Board {
    /// Returns a node as another one knows it.
    fn seen(&self, by: &str, node: &str) -> Option<&NodeView> {
        let mut nodes = self.views.get(by)?.nodes.iter();
        nodes.find(|it| it.record.node.node() == node)
    }

    /// Returns whether each of these nodes knows that all of them are alive, and no others.
    fn agree(&self, names: &[&'static str]) -> bool {
        names.iter().all(|name| {
            let nodes = self.views.get(name).map(|view| view.nodes.iter());
            let up = nodes.into_iter().flatten().filter(|it| it.state != "down");
            let known: Vec<_> = up
                .map(|it| {
                    (
                        it.record.node.node(),
                        it.state == "alive" || it.state == "self",
                    )
                })
                .collect();
            let all: Vec<_> = names.iter().map(|name| (*name, true)).collect();
            known == all
        })
    }

    /// Returns the number of links of a node.
    fn links_of(&self, name: &str) -> usize {
        let nodes = self.views[name].nodes.iter();
        nodes.filter(|node| node.has_link).count()
    }
}

/// Returns the address that discovery finds for a node.
fn address_of(name: &str) -> String {
    format!("{}:{PORT}", turmoil::lookup(name))
}

/// Runs a node, and the requests of its clients.
async fn run(plan: Plan, board: Arc<Mutex<Board>>, world: World) {
    let name = plan.name;
    let node = plan.start(Listener::bind(PORT).await, &world);
    let mut clients = JoinSet::new();
    loop {
        sleep(TICK).await;
        let mut board = board.lock();
        board.views.insert(name, node.cluster.view());
        for action in board.requests.remove(name).unwrap_or_default() {
            let (runner, world) = (node.runner.clone(), Arc::clone(&world));
            clients.spawn(execute(runner, action, world));
        }
    }
}

#[test]
fn the_load_of_a_node_is_known_to_others_within_a_period_and_unknown_without_a_link() {
    let world = World::default();
    let place = |name| Place {
        name,
        world: Arc::clone(&world),
        // Its actions wait for ever.
        meet: 3,
    };
    let mut cluster = Cluster::start(vec![place("a"), place("b")], &MembershipOptions::default());
    // One runs at each node, and the others are queued.
    for (first, queued) in [(MEETING, 2), (MEETING + 4, 6)] {
        cluster.request("b", &[first, first + 1, first + 2, first + 3]);
        // The actions are handed over at once.
        steps(&mut cluster.sim, 5);
        cluster.wait(LOAD_PERIOD + UPKEEP, |board| {
            let load = |running, queued| Some(Load { running, queued });
            let of = |by, node| board.seen(by, node).and_then(|node| node.load);
            of("a", "b") == load(1, queued) && of("b", "a") == load(1, 0)
        });
    }
    cluster.sim.hold("a", "b");
    cluster.wait(Duration::from_secs(6), |board| {
        let node = board.seen("a", "b");
        node.is_none_or(|node| node.load.is_none())
    });
}

#[test]
fn each_side_of_a_partition_executes_the_same_action_and_both_join_again() {
    for is_silent in [false, true] {
        let sides = [World::default(), World::default()];
        let names = ["a", "b", "c", "d"];
        let places = names.iter().enumerate().map(|(at, name)| Place {
            name,
            world: Arc::clone(&sides[at / 2]),
            meet: 2,
        });
        let mut cluster = Cluster::start(places.collect(), &MembershipOptions::default());
        let pairs = [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")];
        for (one, other) in pairs {
            if is_silent {
                cluster.sim.hold(one, other);
            } else {
                cluster.sim.partition(one, other);
            }
        }
        // Two actions of a side end only if each of its nodes runs one.
        let actions = [MEETING, MEETING + 1];
        cluster.request("a", &actions);
        cluster.request("c", &actions);
        cluster.wait(PATIENCE, |board| {
            board.agree(&["a", "b"]) && board.agree(&["c", "d"])
        });
        for side in &sides {
            let state = side.lock();
            for action in actions {
                let answers = &state.answers.get(&action);
                assert_eq!(*answers, Some(&vec![Ok(value(action))]), "{state:?}");
            }
        }
        for (one, other) in pairs {
            cluster.sim.release(one, other);
            cluster.sim.repair(one, other);
        }
        cluster.wait(PATIENCE, |board| board.agree(&names));
        for side in &sides {
            let state = side.lock();
            assert!(state.answers.values().all(|answers| answers.len() == 1));
        }
    }
}

#[test]
fn links_without_work_are_closed_and_no_node_is_missed() {
    let world = World::default();
    let names = ["a", "b", "c", "d", "e", "f"];
    let membership = MembershipOptions {
        partners: 2,
        ..MembershipOptions::default()
    };
    let places = names.map(|name| Place {
        name,
        world: Arc::clone(&world),
        meet: names.len(),
    });
    let mut cluster = Cluster::start(places.into(), &membership);
    for round in 0..2 {
        // They end only while each node runs one.
        let actions: Vec<_> = (0..6).map(|at| MEETING + round * 10 + at).collect();
        cluster.request("a", &actions);
        cluster.wait(PATIENCE, |_| {
            let answers = &world.lock().answers;
            actions.iter().all(|action| answers.contains_key(action))
        });
        world.lock().meeting.clear();
        cluster.wait(PATIENCE, |board| board.links_of("a") > membership.partners);
        // Two nodes that opened links to each other at once break one of them.
        cluster.wait(PATIENCE, |board| board.agree(&names));
        // A node whose visit another one refused, since both were connected already, visits that again later.
        for _ in 0..(5 * IDLE).as_millis() / TICK.as_millis() {
            steps(&mut cluster.sim, 1);
            let board = cluster.board.lock();
            assert!(board.agree(&names), "{:#?}", board.views);
        }
        let board = cluster.board.lock();
        assert!(
            names
                .iter()
                .all(|name| board.links_of(name) == membership.partners)
        );
    }
    let own = |name| cluster.sim.lookup(name);
    let board = cluster.board.lock();
    for name in names {
        let own = format!("{}:{PORT}", own(name));
        let dials = board.dials.get(&(name, own)).copied().unwrap_or_default();
        assert!(dials <= 3, "{name} opens {dials} connections to itself");
    }
}
