//! A cluster of three nodes, with a link in front of each and in front of the backing cache.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

use gorego_integration::{
    backing::Backing,
    cluster::Node,
    executor::Executor,
    link::{Link, Settings},
    metrics::Metrics,
};

use crate::{Args, Place};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// The bytes that a node read from other nodes.
const READ: &str = "gorego_cluster_blobs_read_bytes_total";
/// The attempts that a node ran for others.
const TAKEN: &str = "gorego_cluster_taken_actions_total";
/// The time from the claims of these attempts to their starts.
const STARTS: &str = "gorego_cluster_start_seconds_sum";

#[derive(Debug)]
pub(crate) struct Nodes {
    all: Vec<Node>,
    /// The links to the nodes, in the same order.
    links: Vec<Link>,
    backing: Option<(Backing, Link)>,
}

/// The traffic of the cluster since its start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// The bytes of blobs that nodes read from each other.
    read: u64,
    /// The bytes of all kinds between nodes.
    between: u64,
    /// The bytes from the backing cache.
    backing: u64,
    /// The bytes to the backing cache, which are those of requests while no node writes.
    requests: u64,
}

/// The work of nodes since their starts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    /// The bytes of blobs that they read from each other.
    pub(crate) read: u64,
    /// The attempts that they ran for each other.
    pub(crate) taken: u64,
    /// The seconds from the claims of these attempts to their starts.
    pub(crate) start: f64,
    /// The seconds in which attempts fetched their inputs.
    pub(crate) fetch: f64,
    /// The seconds in which their commands ran.
    pub(crate) run: f64,
}

impl Nodes {
    pub(crate) async fn start(args: &Args) -> Self {
        let backing = args.backing.map(|latency| {
            let backing = Backing::gorego(&[]);
            let settings = Settings {
                latency,
                rate: Some(args.rate),
                ..Settings::default()
            };
            let link = Link::with(backing.address(), settings);
            (backing, link)
        });
        let (mut nodes, mut links) = (Vec::<Node>::new(), Vec::<Link>::new());
        for name in NAMES {
            let mesh = free_address();
            let settings = Settings {
                latency: args.latency,
                rate: Some(args.rate),
                ..Settings::default()
            };
            let link = Link::with(mesh, settings);
            let mut all = args.set.clone();
            all.push(format!("execution.concurrency={}", args.slots));
            all.push(format!("cluster.bind_port={}", mesh.port()));
            all.push(format!("cluster.advertise_addr={}", link.address()));
            if let Some((_, link)) = &backing {
                all.push(format!("backing_cache.target={}", link.grpc_url()));
            }
            let all: Vec<_> = all.iter().map(String::as_str).collect();
            let join: Vec<_> = links
                .iter()
                .map(|link| link.address().to_string())
                .collect();
            nodes.push(Node::start(name, &join.join(","), &all).await);
            links.push(link);
        }
        for node in &nodes {
            node.wait_for_members(&NAMES).await;
        }
        Self {
            all: nodes,
            links,
            backing,
        }
    }

    /// Returns the client of the node that the actions are sent to.
    pub(crate) fn entry(&self) -> &Executor {
        let entry = self.all.first().expect("three nodes were started");
        &entry.executor
    }

    /// Returns clients of the nodes, or of the backing cache, to which the inputs are uploaded.
    pub(crate) async fn places(&self, place: Place) -> Vec<Executor> {
        let mut nodes = self.all.iter().map(|node| node.executor.clone());
        match place {
            Place::Entry => nodes.take(1).collect(),
            Place::Peer => nodes.skip(2).collect(),
            Place::All => nodes.by_ref().collect(),
            Place::Backing => {
                let (backing, _) = self.backing.as_ref().expect("--backing is set");
                vec![Executor::connect(backing.address()).await]
            }
        }
    }

    pub(crate) async fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for node in &self.all {
            counts.read += Work::of(node).await.read;
        }
        for link in &self.links {
            counts.between += link.counts().up + link.counts().down;
        }
        if let Some((_, link)) = &self.backing {
            counts.backing = link.counts().down;
            counts.requests = link.counts().up;
        }
        counts
    }
}

impl Counts {
    pub(crate) const fn since(self, before: &Self) -> Self {
        Self {
            read: self.read - before.read,
            between: self.between - before.between,
            backing: self.backing - before.backing,
            requests: self.requests - before.requests,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = [self.read, self.between, self.backing, self.requests].map(|bytes| bytes >> 10);
        write!(
            f,
            "KiB: blobs between nodes {}, all between nodes {}, from backing {}, to backing {}",
            kib[0], kib[1], kib[2], kib[3]
        )
    }
}

impl Work {
    /// Returns the work of a node.
    pub(crate) async fn of(node: &Node) -> Self {
        let metrics = Metrics::of(node.server.metrics()).await;
        let count = |name| metrics.get(name).expect("a metric of every node");
        let stage = |stage: &str| {
            let name = format!("gorego_execution_stage_seconds_sum{{stage=\"{stage}\"}}");
            metrics.seconds(&name).unwrap_or(0.0)
        };
        Self {
            read: count(READ),
            taken: count(TAKEN),
            fetch: stage("fetch"),
            run: stage("run"),
            start: metrics.seconds(STARTS).unwrap_or(0.0),
        }
    }

    /// Returns the work of all nodes.
    pub(crate) async fn of_all(nodes: &[Node]) -> Self {
        let mut all = Self::default();
        for node in nodes {
            let of = Self::of(node).await;
            all.read += of.read;
            all.taken += of.taken;
            all.fetch += of.fetch;
            all.run += of.run;
            all.start += of.start;
        }
        all
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listener = listener.expect("a free port");
    listener.local_addr().expect("a bound address")
}
