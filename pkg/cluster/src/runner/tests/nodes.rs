//! Nodes over simulated connections. Their actions sleep or wait for others, and return a number.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use gorego_grpc::{Body, Listen, Messages, Peer, Peers as Clients, Service};
use gorego_scheduler::{
    Attempt, Capacity, End, Generation, OperationId, Outcome, Phase, Report, Runner, Stage, Totals,
    Watch, Worker, WorkerId,
};
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::dialects::Dialect;
use crate::{
    blobs::Peers,
    discovery::Discovery,
    link::{self, Connect, Links},
    membership::MembershipOptions,
    record::Record,
    runner::{Cluster, Components, Options},
    testing::{self, Numbers},
};

/// The first of the actions that end only while such actions run on all nodes at once.
pub(super) const MEETING: u32 = 1000;
/// The node whose attempts may fail.
const FAILING: &str = "b";
/// The interval in which a meeting looks for the others.
const POLL: Duration = Duration::from_millis(10);
/// The period in which nodes send their load while it changes.
pub(super) const LOAD_PERIOD: Duration = Duration::from_millis(500);
/// The memory of each node.
const MEMORY: u64 = 1 << 30;

/// The observations of a test.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The ends of the operations of each action.
    pub(super) answers: BTreeMap<u32, Vec<Result<u32, String>>>,
    /// The number of attempts of each action.
    pub(super) runs: BTreeMap<u32, u32>,
    /// The nodes that run a meeting.
    pub(super) meeting: BTreeSet<&'static str>,
    /// The last counts of each node.
    pub(super) totals: BTreeMap<&'static str, Totals>,
    /// Set when the meetings shall start.
    pub(super) meets: bool,
    /// The number of attempts that have yet to fail at [`FAILING`].
    pub(super) to_fail: u32,
    /// Set once a node has known that a node keeps failing.
    pub(super) knows_failing: bool,
    /// The last number of ends at each node that others have yet to receive.
    pub(super) unfinished_foreign: BTreeMap<&'static str, usize>,
    /// The jobs that ran at each node.
    pub(super) jobs: Vec<(&'static str, Weak<u32>)>,
}

pub(super) type World = Arc<Mutex<State>>;

/// The result of an action.
pub(super) fn value(action: u32) -> u32 {
    action * 7 + 1
}

/// The executor of a node.
struct Script {
    name: &'static str,
    nodes: usize,
    world: World,
}

#[async_trait]
impl Worker<u32, u32> for Script {
    fn fits(&self, _platform: &str) -> bool {
        true
    }

    async fn ready(&self) {}

    async fn run(&self, attempt: Attempt<u32>) -> Report<u32> {
        let action = *attempt.grant.job;
        {
            let mut state = self.world.lock();
            *state.runs.entry(action).or_default() += 1;
            let job = Arc::downgrade(&attempt.grant.job);
            state.jobs.push((self.name, job));
        }
        attempt.begin(Phase::Run);
        let work = async {
            if action < MEETING {
                return sleep(Duration::from_millis(60 + u64::from(action % 5) * 70)).await;
            }
            self.world.lock().meeting.insert(self.name);
            while self.world.lock().meeting.len() < self.nodes {
                sleep(POLL).await;
            }
        };
        match attempt.stop.run_until_cancelled(work).await {
            Some(()) if self.fails(action) => {
                let outcome = Outcome {
                    value: value(action),
                    bytes: 4,
                };
                Report::Failed(outcome)
            }
            Some(()) => testing::done(value(action)),
            None => Report::Stopped,
        }
    }
}

impl Script {
    fn fails(&self, action: u32) -> bool {
        let mut state = self.world.lock();
        let fails = self.name == FAILING && action < MEETING && state.to_fail > 0;
        state.to_fail -= u32::from(fails);
        fails
    }
}

/// The service of the links of one node.
struct Mesh {
    links: Arc<Links>,
    dialect: Dialect,
}

impl Service for Mesh {
    const DESCRIPTORS: &'static [u8] = reapi::FILE_DESCRIPTOR_SET;
    type Context = Peer;

    fn names(&self) -> &'static [&'static str] {
        &[Links::NAME]
    }

    fn admit(&self, _: &str, _: &HeaderMap, peer: &Peer) -> Result<Peer, Status> {
        Ok(peer.clone())
    }

    async fn call(&self, _path: &str, peer: Peer, requests: Messages) -> Result<Body, Status> {
        self.dialect.link(&self.links, &peer, requests).await
    }
}

/// A node. Dropping it ends it without a word.
pub(super) struct Node {
    pub(super) runner: Runner<u32, u32>,
    pub(super) links: Arc<Links>,
    pub(super) address: String,
    pub(super) cluster: Cluster,
    _server: JoinSet<Result<(), gorego_grpc::Error>>,
}

/// A node to start.
pub(super) struct Plan {
    pub(super) name: &'static str,
    pub(super) generation: u64,
    pub(super) address: String,
    pub(super) connect: Arc<dyn Connect>,
    pub(super) discovery: Discovery,
    /// The number of nodes that meet.
    pub(super) nodes: usize,
    pub(super) membership: MembershipOptions,
    pub(super) dialect: Dialect,
}

impl Plan {
    fn record(&self) -> Record {
        Record {
            node: Generation::new(self.name, self.generation).unwrap(),
            address: self.address.clone(),
            slots: 1,
            memory: MEMORY,
            cores: 1,
            platform: BTreeSet::new(),
            version: "test".to_owned(),
            draining: false,
            backing: 0,
        }
    }

    /// Starts the node, with one slot.
    pub(super) fn start(self, listener: impl Listen, world: &World) -> Node {
        let (address, record) = (self.address.clone(), self.record());
        let (links, events) = Links::new(link::Options {
            cluster: "build".to_owned(),
            me: record.node.clone(),
            record: record.to_proto(),
            tls: None,
            connect: self.connect,
            max_nodes: 8,
        });
        let mesh = Mesh {
            links: Arc::clone(&links),
            dialect: self.dialect,
        };
        let options = gorego_grpc::Options {
            peers: Clients::Nodes,
            ..gorego_grpc::Options::default()
        };
        let mut server = JoinSet::new();
        let never = CancellationToken::new();
        server.spawn(gorego_grpc::serve(listener, mesh, options, never));
        let runner = Runner::new(testing::options());
        let capacity = Capacity {
            slots: 1,
            memory: MEMORY,
        };
        let script = Script {
            name: self.name,
            nodes: self.nodes,
            world: Arc::clone(world),
        };
        runner.add_worker(WorkerId::new("local"), capacity, Arc::new(script));
        let stores = Box::new(|_: &_| Err("no stores".to_owned()));
        let components = Components {
            links: (Arc::clone(&links), events),
            discovery: self.discovery,
            scheduler: runner.clone(),
            work: Arc::new(Numbers),
            peers: Arc::new(Peers::new(self.name, stores)),
        };
        let options = Options {
            cluster: "build".to_owned(),
            record,
            membership: self.membership,
            load_period: LOAD_PERIOD,
        };
        Node {
            cluster: Cluster::start(options, components).unwrap(),
            _server: server,
            runner,
            links,
            address,
        }
    }
}

/// Executes an action as a client does, and records the end.
pub(super) async fn execute(runner: Runner<u32, u32>, action: u32, world: World) {
    let request = testing::request(action);
    let id = OperationId(action.into());
    let mut watch: Watch<u32, u32> = runner.submit(id, &request).unwrap();
    while let Some(stage) = watch.next().await {
        if let Stage::Completed(end) = stage {
            let end = match end {
                End::Outcome(value) => Ok(*value),
                end => Err(format!("{end:?}")),
            };
            world.lock().answers.entry(action).or_default().push(end);
        }
    }
}
