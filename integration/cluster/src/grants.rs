//! The rate at which an entry node hands over actions. The nodes are in this process, their links are TCP connections
//! on loopback, and their actions end at once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use gorego_cluster::{
    blobs::Peers as BlobPeers,
    discovery::{Discovery, Places},
    link::{Links, Options as LinkOptions, Tcp},
    membership::MembershipOptions,
    record::Record,
    runner::{Cluster, Components, Options as NodeOptions, Work},
};
use gorego_grpc::{Body, Messages, Options as ServerOptions, Peer, Peers, Service};
use gorego_scheduler::{
    ActionKey, Attempt, AttemptId, Capacity, End, Generation, Grant, OperationId, Options, Outcome,
    Report, Request, Runner, Stage, Watch, Worker, WorkerId,
};
use gorego_storage::{DigestFunction, InstanceName};
use http::HeaderMap;
use reapi::gorego::{
    ResourceUsage,
    cluster::{self as proto, Done, done::End as DoneEnd},
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::report::{Aim, Unit, print};

/// The nodes that take actions, and the slots of each.
const TAKERS: u32 = 3;
const SLOTS: u32 = 64;
const CLUSTER: &str = "benchmark";
/// The memory of a node for actions, in bytes.
const MEMORY: u64 = 1 << 40;

/// A node, and its server for others.
struct Node {
    runner: Runner<u32, u32>,
    cluster: Cluster,
    address: String,
    _server: JoinSet<Result<(), gorego_grpc::Error>>,
}

/// Measures an entry node without slots, whose actions all run at other nodes.
pub(crate) async fn measure(actions: u32) {
    let entry = Node::start("entry", 0, Vec::new()).await;
    let mut takers = Vec::new();
    for number in 0..TAKERS {
        let name = format!("taker-{number}");
        let join = vec![entry.address.clone()];
        takers.push(Node::start(&name, SLOTS, join).await);
    }
    while entry.cluster.view().nodes.len() <= takers.len() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    entry.run(0..actions / 10).await;
    let took = entry.run(actions / 10..actions / 10 + actions).await;
    let rate = f64::from(actions) / took.as_secs_f64();
    print(
        "actions that an entry node hands over",
        Aim::AtLeast(5000.0, Unit::PerSecond),
        rate,
        Unit::PerSecond,
        &format!("{actions} actions that end at once, at {TAKERS} nodes of the same process"),
    );
}

impl Node {
    /// Starts a node that joins those at the addresses `join`.
    async fn start(name: &str, slots: u32, join: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let me = Generation::new(name, 1).expect("a name");
        let record = Record {
            node: me.clone(),
            address: address.clone(),
            slots,
            memory: MEMORY,
            cores: 1,
            platform: [].into(),
            version: String::new(),
            draining: false,
            backing: 0,
        };
        let (links, events) = Links::new(LinkOptions {
            cluster: CLUSTER.to_owned(),
            me,
            record: record.to_proto(),
            tls: None,
            connect: Arc::new(Tcp),
            max_nodes: 16,
        });
        let mut server = JoinSet::new();
        let options = ServerOptions {
            peers: Peers::Nodes,
            ..ServerOptions::default()
        };
        let port = Port(Arc::clone(&links));
        let shutdown = CancellationToken::new();
        server.spawn(gorego_grpc::serve(listener, port, options, shutdown));
        let runner = runner(slots);
        let no_blobs = Box::new(|_: &_| Err("no blobs are read".to_owned()));
        let components = Components {
            links: (links, events),
            discovery: Discovery::new(Places::List(join)),
            scheduler: runner.clone(),
            work: Arc::new(Numbers),
            peers: Arc::new(BlobPeers::new(name, no_blobs)),
        };
        let options = NodeOptions {
            cluster: CLUSTER.to_owned(),
            record,
            membership: MembershipOptions::default(),
            load_period: Duration::from_millis(500),
        };
        let cluster = Cluster::start(options, components).expect("a short record");
        Self {
            runner,
            cluster,
            address,
            _server: server,
        }
    }

    /// Runs the actions of these numbers. Returns the time that they took.
    async fn run(&self, actions: std::ops::Range<u32>) -> Duration {
        let begin = Instant::now();
        let watches: Vec<_> = actions.map(|action| self.submit(action)).collect();
        for (mut watch, action) in watches {
            let mut last = None;
            while let Some(stage) = watch.next().await {
                last = Some(stage);
            }
            let is_own = |stage| match stage {
                Stage::Completed(End::Outcome(value)) => *value == action,
                _ => false,
            };
            assert!(last.is_some_and(is_own), "another result, or none");
        }
        begin.elapsed()
    }

    fn submit(&self, action: u32) -> (Watch<u32, u32>, u32) {
        let request = Request {
            key: key(action),
            do_not_cache: false,
            build: String::new(),
            priority: 0,
            platform: "".into(),
            memory: 1 << 20,
            target: "//some/package:target".to_owned(),
            mnemonic: "Compile".to_owned(),
            job: Arc::new(action),
        };
        let id = OperationId(action.into());
        let watch = self.runner.submit(id, &request);
        (watch.expect("a place in the queue"), action)
    }
}

fn runner(slots: u32) -> Runner<u32, u32> {
    let runner = Runner::new(Options {
        queue_size: 10_000_000,
        abandon_after: Duration::from_hours(1),
        retain_completed: Duration::from_mins(1),
        max_completed: 1000,
        max_completed_bytes: 1 << 20,
        max_retries: 2,
        max_losses: 5,
    });
    if slots > 0 {
        let capacity = Capacity {
            slots: slots as usize,
            memory: MEMORY,
        };
        runner.add_worker(WorkerId::new("local"), capacity, Arc::new(Numbers));
    }
    runner
}

fn key(action: u32) -> ActionKey {
    ActionKey {
        instance: InstanceName::default(),
        action: DigestFunction::Sha256.digest(&action.to_le_bytes()),
    }
}

fn outcome(value: u32) -> Report<u32> {
    Report::Done(Outcome { value, bytes: 4 })
}

/// Runs actions that are numbers, and whose results are the numbers.
struct Numbers;

#[async_trait]
impl Worker<u32, u32> for Numbers {
    fn fits(&self, _platform: &str) -> bool {
        true
    }

    async fn ready(&self) {}

    async fn run(&self, attempt: Attempt<u32>) -> Report<u32> {
        outcome(*attempt.grant.job)
    }
}

#[async_trait]
impl Work<u32, u32> for Numbers {
    fn fits(&self, _node: &Record, _platform: &str) -> bool {
        true
    }

    fn describe(&self, grant: &Grant<u32>) -> proto::Grant {
        proto::Grant {
            hash: grant.key.action.hash().to_vec().into(),
            size: (*grant.job).into(),
            memory: grant.memory,
            alone: grant.alone,
            run: grant.run.into(),
            ..proto::Grant::default()
        }
    }

    async fn prepare(
        &self,
        _entry: &Generation,
        grant: &proto::Grant,
    ) -> Result<Grant<u32>, Report<u32>> {
        let action = u32::try_from(grant.size).map_err(|_| Report::Stopped)?;
        Ok(Grant {
            attempt: gorego_scheduler::AttemptId::new(0, 0),
            key: key(action),
            job: Arc::new(action),
            target: "".into(),
            mnemonic: "".into(),
            memory: grant.memory,
            alone: grant.alone,
            run: u16::try_from(grant.run).unwrap_or_default(),
            waited: Duration::ZERO,
        })
    }

    async fn measure(&self, jobs: &[Arc<u32>]) -> Vec<Option<ResourceUsage>> {
        vec![None; jobs.len()]
    }

    fn record_usage(&self, _job: &u32, _attempt: AttemptId, _usage: Option<ResourceUsage>) {}

    fn starts(&self, _since: Duration) {}

    async fn encode(&self, report: Report<u32>) -> Done {
        let (end, response) = match report {
            Report::Done(outcome) => (DoneEnd::Done, outcome.value.to_le_bytes().to_vec()),
            _ => (DoneEnd::Stopped, Vec::new()),
        };
        Done {
            end: end.into(),
            response: response.into(),
            ..Done::default()
        }
    }

    async fn decode(
        &self,
        _node: &Generation,
        _key: &ActionKey,
        _job: &u32,
        done: Done,
    ) -> Report<u32> {
        let value = done.response[..].try_into().map(u32::from_le_bytes);
        value.map_or(Report::Stopped, outcome)
    }

    async fn adopt(&self, _job: &u32, _done: Done) {}
}

/// The service of a node for others.
struct Port(Arc<Links>);

impl Service for Port {
    const DESCRIPTORS: &'static [u8] = reapi::FILE_DESCRIPTOR_SET;
    type Context = Peer;

    fn names(&self) -> &'static [&'static str] {
        &[Links::NAME]
    }

    fn admit(&self, _: &str, _: &HeaderMap, peer: &Peer) -> Result<Peer, Status> {
        Ok(peer.clone())
    }

    async fn call(&self, _: &str, peer: Peer, requests: Messages) -> Result<Body, Status> {
        self.0.link(&peer, requests).await
    }
}
