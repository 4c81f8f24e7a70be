//! Nodes that dial, close and send at random, on a network that loses, delays and refuses, in virtual time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use gorego_scheduler::Generation;
use parking_lot::Mutex;
use reapi::gorego::cluster::frame::Content;
use tokio::{task::JoinSet, time::sleep};

use super::{
    claim,
    node::{Node, generation},
    simulated::{Listener, Simulated},
};
use crate::link::Event;

const PORT: u16 = 7946;
const NAMES: [&str; 3] = ["a", "b", "c"];
const TICK: Duration = Duration::from_millis(10);

/// The peers of each node.
type Peers = Arc<Mutex<BTreeMap<&'static str, BTreeSet<String>>>>;

/// A peer as its node knows it: its run, and the numbers of the next frames from and to it.
struct Known {
    peer: Generation,
    received: u64,
    sent: u64,
}

/// Checks that each event can follow the ones before it.
fn check(known: &mut BTreeMap<String, Known>, event: Event) {
    match event {
        Event::Up { peer, .. } => {
            let (received, sent) = (0, 0);
            let name = peer.node().to_owned();
            let state = Known {
                peer,
                received,
                sent,
            };
            assert!(known.insert(name, state).is_none(), "up twice");
        }
        Event::Frame { peer, frame } => {
            let state = known.get_mut(peer.node()).expect("a peer that is up");
            assert_eq!(state.peer, peer);
            let Some(Content::Claim(claim)) = frame.content else {
                panic!("{frame:?}");
            };
            assert_eq!(claim.claim, state.received, "lost or out of order");
            state.received += 1;
        }
        Event::Down { peer, .. } => {
            let state = known.remove(peer.node()).expect("a peer that was up");
            assert_eq!(state.peer, peer);
        }
    }
}

/// Runs a node until its host crashes.
async fn run(name: &'static str, number: u64, mut rng: Rng, calm: Arc<AtomicU64>, peers: Peers) {
    let (listener, address) = (Listener::bind(PORT).await, format!("{name}:{PORT}"));
    let me = generation(name, number);
    let mut node = Node::on(listener, address, Arc::new(Simulated), "build", &me, None);
    let mut known = BTreeMap::new();
    let mut dials = JoinSet::new();
    loop {
        tokio::select! {
            Some(event) = node.events.recv() => check(&mut known, event),
            () = sleep(Duration::from_millis(rng.u64(1..400))) => {
                let to = NAMES[rng.usize(..NAMES.len())];
                if !known.contains_key(to) {
                    let links = Arc::clone(&node.links);
                    let named = rng.bool();
                    dials.spawn(async move {
                        let _ = links.dial(&format!("{to}:{PORT}"), named.then_some(to)).await;
                    });
                }
                for state in known.values_mut() {
                    if calm.load(Ordering::Relaxed) == 0 && rng.u8(..) < 8 {
                        node.links.close(&state.peer, "at random");
                    }
                    while rng.u8(..) < 200 {
                        if node.links.send(&state.peer, claim(state.sent)).is_ok() {
                            state.sent += 1;
                        }
                    }
                }
            }
        }
        while dials.try_join_next().is_some() {}
        peers.lock().insert(name, known.keys().cloned().collect());
    }
}

fn survives(seed: u64) {
    let mut sim = turmoil::Builder::new()
        .simulation_duration(Duration::from_hours(1))
        .tick_duration(TICK)
        .max_message_latency(Duration::from_millis(50))
        .rng_seed(seed)
        .build();
    let (calm, peers, runs) = (
        Arc::<AtomicU64>::default(),
        Peers::default(),
        Arc::new(AtomicU64::new(1)),
    );
    for name in NAMES {
        let (calm, peers, runs) = (Arc::clone(&calm), Arc::clone(&peers), Arc::clone(&runs));
        sim.host(name, move || {
            let number = runs.fetch_add(1, Ordering::Relaxed);
            let rng = Rng::with_seed(seed * 1000 + number);
            let (calm, peers) = (Arc::clone(&calm), Arc::clone(&peers));
            async move {
                run(name, number, rng, calm, peers).await;
                Ok(())
            }
        });
    }
    let mut rng = Rng::with_seed(seed);
    let steps = |sim: &mut turmoil::Sim<'_>, time: Duration| {
        for _ in 0..time.as_millis() / TICK.as_millis() {
            sim.step().unwrap();
        }
    };
    for _ in 0..40 {
        let one = rng.usize(..NAMES.len());
        let (a, b) = (NAMES[one], NAMES[(one + 1) % NAMES.len()]);
        match rng.u8(..10) {
            0..3 => sim.hold(a, b),
            3..7 => sim.release(a, b),
            7 => sim.partition(a, b),
            8 => sim.bounce(a),
            _ => sim.repair(a, b),
        }
        steps(&mut sim, Duration::from_millis(rng.u64(10..1500)));
    }
    for (a, b) in [("a", "b"), ("b", "c"), ("c", "a")] {
        sim.release(a, b);
        sim.repair(a, b);
    }
    calm.store(1, Ordering::Relaxed);
    steps(&mut sim, Duration::from_secs(20));
    let peers = peers.lock();
    for name in NAMES {
        let found = &peers[name];
        assert!(
            !found.contains(name) && found.len() == 2,
            "{name}: {found:?}, seed {seed}"
        );
    }
}

#[test]
fn links_keep_their_promises_whatever_the_network_does() {
    for seed in 0..3 {
        survives(seed);
    }
}
