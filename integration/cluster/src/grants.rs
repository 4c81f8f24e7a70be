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
    runner::{Cluster, Components, Options as NodeOptions},
    testing::{self, LinkService, Numbers},
};
use gorego_grpc::{Options as ServerOptions, Peers};
use gorego_scheduler::{
    Attempt, Capacity, End, Generation, OperationId, Report, Request, Runner, Stage, Watch, Worker,
    WorkerId,
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

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
        &format!(
            "{actions} actions that end at once, at {TAKERS} nodes of the same process; plain text, without requests and results"
        ),
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
        let port = LinkService(Arc::clone(&links));
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
            do_not_cache: false,
            target: "//some/package:target".to_owned(),
            mnemonic: "Compile".to_owned(),
            ..testing::request(action)
        };
        let id = OperationId(action.into());
        let watch = self.runner.submit(id, &request);
        (watch.expect("a place in the queue"), action)
    }
}

fn runner(slots: u32) -> Runner<u32, u32> {
    let runner = Runner::new(testing::options());
    if slots > 0 {
        let capacity = Capacity {
            slots: slots as usize,
            memory: MEMORY,
        };
        runner.add_worker(WorkerId::new("local"), capacity, Arc::new(Echo));
    }
    runner
}

/// Ends every action at once, with its number as the result.
struct Echo;

#[async_trait]
impl Worker<u32, u32> for Echo {
    fn fits(&self, _platform: &str) -> bool {
        true
    }

    async fn ready(&self) {}

    async fn run(&self, attempt: Attempt<u32>) -> Report<u32> {
        testing::done(*attempt.grant.job)
    }
}
