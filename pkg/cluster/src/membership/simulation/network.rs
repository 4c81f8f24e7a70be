//! Processes and packets in virtual time.

#![allow(clippy::indexing_slicing)] // Callers number the processes that they started.

mod traffic;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::mem;
use std::time::Duration;

use bytes::Bytes;
use gorego_scheduler::{Generation, Time};

use crate::membership::{Effect, Loss, Membership, MembershipOptions, PacketError};
use crate::record::Record;

/// The time after which a connection is tried again whose first packet was lost.
const HANDSHAKE_AGAIN: Duration = Duration::from_secs(1);

/// A process in the network.
struct Process {
    record: Record,
    membership: Option<Membership>,
    /// Set once the host refuses connections, rather than being silent.
    refuses: bool,
    stopped: bool,
    inbox: Vec<(Record, Bytes)>,
    started: Time,
    /// A step of the node's clock.
    step: Duration,
    wake: Time,
    up: HashSet<Generation>,
    /// The sum of the hashes of the nodes that are up, so that comparing two sets is fast.
    sum: u64,
}

enum Event {
    Wake(usize),
    Discover(usize),
    Packet {
        from: Record,
        to: usize,
        node: Generation,
        packet: Bytes,
    },
    Greet {
        from: Record,
        to: usize,
    },
    Lost {
        at: usize,
        peer: Generation,
        loss: Loss,
    },
}

/// Processes, and the packets between them.
pub struct Network {
    processes: Vec<Process>,
    addresses: HashMap<String, usize>,
    events: BinaryHeap<Reverse<(Time, u64)>>,
    queued: HashMap<u64, Event>,
    count: u64,
    /// The time since the start.
    pub now: Time,
    random: fastrand::Rng,
    /// The share of packets that are lost.
    pub loss: f64,
    options: MembershipOptions,
    /// Pairs of processes that packets do not reach, in this direction.
    pub cut: Box<dyn Fn(usize, usize) -> bool + Send>,
    /// The open links, from both sides.
    links: BTreeSet<(usize, usize)>,
    /// The bytes of all packets so far.
    pub sent: u64,
    /// The live nodes that others declared down, each time by each.
    pub false_downs: usize,
    /// The packets sent, if they are kept.
    pub log: Option<Vec<Bytes>>,
    refused: Vec<PacketError>,
    /// The reports of the processes, with the number of the process.
    pub news: Vec<(usize, Effect)>,
}

impl Network {
    /// Starts `nodes` processes within 100 ms.
    pub fn new(nodes: usize, loss: f64, seed: u64, options: MembershipOptions) -> Self {
        let mut network = Self {
            processes: Vec::new(),
            addresses: HashMap::new(),
            events: BinaryHeap::new(),
            queued: HashMap::new(),
            count: 0,
            now: Time::ZERO,
            random: fastrand::Rng::with_seed(seed),
            loss,
            options,
            cut: Box::new(|_, _| false),
            links: BTreeSet::new(),
            sent: 0,
            false_downs: 0,
            log: None,
            refused: Vec::new(),
            news: Vec::new(),
        };
        for index in 0..nodes {
            network.start(&format!("node-{index}"), 1, &format!("10.0.0.{index}:7946"));
        }
        network
    }

    /// Starts a process, and returns its number.
    pub fn start(&mut self, name: &str, generation: u64, address: &str) -> usize {
        self.start_in("test", name, generation, address)
    }

    /// Starts a process that belongs to `cluster`, and returns its number.
    pub fn start_in(&mut self, cluster: &str, name: &str, generation: u64, address: &str) -> usize {
        let Ok(node) = Generation::new(name, generation) else {
            return usize::MAX;
        };
        let record = Record {
            node,
            address: address.into(),
            slots: 8,
            memory: 1 << 34,
            cores: 8,
            platform: [("OSFamily".into(), "linux".into())].into(),
            version: "0.1.0".into(),
            draining: false,
            backing: 1,
        };
        let index = self.processes.len();
        let seed = self.random.u64(..);
        let membership = Membership::new(
            cluster,
            record.clone(),
            seed,
            self.options.clone(),
            Time::ZERO,
        );
        let delay = Duration::from_micros(self.random.u64(0..100_000));
        self.processes.push(Process {
            record,
            membership: membership.ok(),
            refuses: true,
            stopped: false,
            inbox: Vec::new(),
            started: self.now,
            step: Duration::ZERO,
            wake: Time::MAX,
            up: HashSet::new(),
            sum: 0,
        });
        self.addresses.insert(address.into(), index);
        self.after(delay, Event::Discover(index));
        self.carry_out(index);
        index
    }

    /// Ends a process without a farewell.
    pub fn kill(&mut self, index: usize, refuses: bool) {
        let process = &mut self.processes[index];
        process.membership = None;
        process.refuses = refuses;
        process.up.clear();
        let peer = process.record.node.clone();
        let links = self.links.iter().filter(|(a, _)| *a == index);
        let links: Vec<_> = links.map(|(_, b)| *b).collect();
        for at in links {
            self.cut_link(index, at);
            if refuses {
                let (peer, loss) = (peer.clone(), Loss::Refused);
                let lost = Event::Lost { at, peer, loss };
                self.after(Duration::from_millis(1), lost);
            }
        }
    }

    fn cut_link(&mut self, a: usize, b: usize) {
        self.links.remove(&(a, b));
        self.links.remove(&(b, a));
    }

    /// Stops a process, or continues it.
    pub fn stop(&mut self, index: usize, stopped: bool) {
        let process = &mut self.processes[index];
        process.stopped = stopped;
        if !stopped {
            self.act(index, Membership::tick);
            for (from, packet) in mem::take(&mut self.processes[index].inbox) {
                self.deliver(&from, index, &packet);
            }
        }
    }

    /// Sets the clock of a process forward.
    pub fn step_clock(&mut self, index: usize, step: Duration) {
        self.processes[index].step += step;
        self.act(index, Membership::tick);
    }

    /// Opens a link between two processes, unless there is one. Two nodes with one name meet each time: they refuse the
    /// link.
    pub fn introduce(&mut self, a: usize, b: usize) {
        let name = |index: usize| self.processes[index].record.node.node();
        if name(a) != name(b) {
            if !self.links.insert((a, b)) {
                return;
            }
            self.links.insert((b, a));
        }
        let mut latency = self.latency();
        // A lost packet of the handshake is sent again.
        if self.random.f64() < self.loss {
            latency += HANDSHAKE_AGAIN;
        }
        for (from, to) in [(a, b), (b, a)] {
            let from = self.processes[from].record.clone();
            self.after(latency, Event::Greet { from, to });
        }
    }

    /// Returns the reasons for which packets were refused.
    pub fn refused(&self) -> &[PacketError] {
        &self.refused
    }

    /// Returns the membership of a process; `None` after its end.
    pub fn membership(&mut self, index: usize) -> Option<&mut Membership> {
        self.processes[index].membership.as_mut()
    }

    /// Lets a process act, and carries out its effects.
    pub fn act<T>(
        &mut self,
        index: usize,
        act: impl FnOnce(&mut Membership, Time) -> T,
    ) -> Option<T> {
        let process = &mut self.processes[index];
        let now = self.now.saturating_sub(process.started) + process.step;
        let result = act(process.membership.as_mut()?, now);
        self.carry_out(index);
        Some(result)
    }

    /// Returns whether each process knows exactly the others.
    pub fn agrees(&self) -> bool {
        let live = || self.processes.iter().filter(|it| it.membership.is_some());
        let own = |it: &Process| hash(&it.record.node);
        let sum = live().map(own).fold(0, u64::wrapping_add);
        let count = live().count();
        live().all(|it| it.up.len() + 1 == count && it.sum.wrapping_add(own(it)) == sum)
    }

    /// Returns the active members that a process knows.
    pub fn members_of(&self, index: usize) -> Vec<String> {
        self.processes[index]
            .up
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// Returns the members that each process misses or has too many, for messages.
    pub fn describe(&self) -> String {
        let live = || {
            self.processes
                .iter()
                .enumerate()
                .filter(|(_, it)| it.membership.is_some())
        };
        let nodes: BTreeSet<_> = live().map(|(_, it)| it.record.node.to_string()).collect();
        let differing = live().filter_map(|(index, it)| {
            let known: BTreeSet<_> = self
                .members_of(index)
                .into_iter()
                .chain([it.record.node.to_string()])
                .collect();
            (known != nodes).then(|| {
                let missing: Vec<_> = nodes.difference(&known).take(5).collect();
                let gone: Vec<_> = known.difference(&nodes).take(5).collect();
                format!("{} misses {missing:?} and has {gone:?}", it.record.node)
            })
        });
        differing.take(8).collect::<Vec<_>>().join("; ")
    }

    /// Runs for `time`.
    pub fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Runs until `end`, which is asked every 20 ms, and returns the time that it took; `None` after `limit`.
    pub fn run_until(&mut self, limit: Duration, end: impl Fn(&Self) -> bool) -> Option<Duration> {
        let start = self.now;
        let mut check = start;
        while let Some(Reverse((at, id))) = self.events.peek().copied() {
            while check <= at {
                self.now = check;
                if end(self) {
                    return Some(check.saturating_sub(start));
                }
                if check >= start + limit {
                    return None;
                }
                check += Duration::from_millis(20);
            }
            self.events.pop();
            self.now = at;
            if let Some(event) = self.queued.remove(&id) {
                self.handle(event);
            }
        }
        None
    }

    fn after(&mut self, time: Duration, event: Event) {
        self.count += 1;
        self.events.push(Reverse((self.now + time, self.count)));
        self.queued.insert(self.count, event);
    }

    fn latency(&mut self) -> Duration {
        Duration::from_micros(self.random.u64(200..2000))
    }
}

fn hash(node: &Generation) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(node)
}
