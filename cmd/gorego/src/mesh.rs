//! This node in its cluster: its port for other nodes, its links, and its work for the actions of other nodes.

mod failure;
mod fitting;
mod generation;
mod record;
mod routes;
mod source;
mod thread;
mod work;

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use gorego_cluster::{
    blobs::{Member, Peers},
    discovery::{Discovery, Places},
    link::{Links, Options as LinkOptions, Tcp, follow},
    membership::MembershipOptions,
    record::RecordError,
    runner::{Cluster, Components, Options},
};
use gorego_config::{Config, DiscoveryMode};
use gorego_execution::{Executor, PeerPlatforms};
use gorego_grpc::{Body, CallRuntime, Messages, Peer};
use gorego_limits::Budget;
use gorego_scheduler::{Generation, NameError};
use gorego_server::{self as server, Extension, READ_LOG, read_guest_log};
use gorego_tls::{ClientTls, ClusterFiles, ClusterTls, NodeIdentity};
use tokio::{net::TcpListener, runtime::Handle, sync::watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Status;

pub(crate) use self::source::{Counters, counts, peers};
use self::{failure::or_failed, routes::ClusterRoutes, thread::LinkThread, work::NodeWork};
use crate::{
    backing::given,
    descriptors::Descriptors,
    execution::{LocalExecutor, node},
    listen::listen,
    memory::Parts,
    reload::Reloads,
    tiers::{
        Tiers,
        cluster::{ClusterStores, connect},
    },
};

/// The error of a node that cannot join its cluster.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cluster.bind_addr: cannot listen on {0}: {1}")]
    Listen(String, io::Error),
    #[error("cluster.tls.{0}")]
    Tls(gorego_tls::Error),
    #[error(
        "cluster.advertise_addr: no address of this machine is found: {0}; accepted: one that other nodes reach"
    )]
    Address(io::Error),
    #[error("{key}: {0}", key = key_of(.0))]
    Record(#[from] RecordError),
    #[error("cluster.enabled: {0}; accepted: local_cache.enabled: true")]
    NoExecutor(String),
    #[error("cannot start the thread for links to other nodes: {0}")]
    Thread(io::Error),
    #[error("cluster.bind_addr: the thread for links cannot use the port: {0}")]
    Port(io::Error),
    #[error(
        "a task of the cluster panicked, so that other nodes cannot use this one: restart it, and report the panic"
    )]
    Failed,
    #[error(transparent)]
    Server(#[from] gorego_grpc::Error),
    #[error("cannot write the number of this start to {0}: {1}")]
    Generation(std::path::PathBuf, io::Error),
    #[error("cluster.node_id: {0}")]
    Node(NameError),
}

/// Returns the key whose value makes a record invalid.
const fn key_of(error: &RecordError) -> &'static str {
    match error {
        RecordError::Address(_) => "cluster.advertise_addr",
        _ => "execution.platform",
    }
}

/// The time in which calls of other nodes may end after those of clients have ended. The nodes find blobs elsewhere.
const LAST_CALLS: Duration = Duration::from_secs(1);

/// The port of a node for others, before it has joined.
pub(crate) struct Mesh {
    listener: TcpListener,
    thread: LinkThread,
    tls: Option<watch::Receiver<ClusterTls>>,
    name: String,
    tasks: TaskTracker,
    /// The memory for receive windows of calls to other nodes.
    windows: Budget,
    /// The memory for messages of other nodes on their way to clients.
    responses: Budget,
    peers: Arc<Peers>,
    counters: Counters,
    /// The cluster, once this node has joined.
    joined: Arc<OnceLock<Arc<Cluster>>>,
}

/// A node that has joined.
pub(crate) struct Joined {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) counters: Counters,
    pub(crate) routes: Arc<dyn server::Routes>,
    links: Arc<Links>,
    listener: TcpListener,
    thread: LinkThread,
    tls: Option<watch::Receiver<ClusterTls>>,
    tasks: TaskTracker,
    /// The memory for calls of other nodes.
    memory: Parts,
    /// The most connections from other nodes.
    max_connections: usize,
}

impl Mesh {
    /// Listens for other nodes, if the configuration enables a cluster.
    pub(crate) async fn open(
        config: &Config,
        reloads: &mut Reloads,
        memory: &Parts,
    ) -> Result<Option<Self>, Error> {
        if !config.cluster.enabled {
            return Ok(None);
        }
        let name = node(&config.cluster.node_id);
        let tls = tls(config, &name, reloads)?;
        let address = config.cluster.bind(&config.listen_addr);
        let address = address.unwrap_or_else(|| config.listen_addr.clone());
        let listener = listen(&address).await;
        let listener = listener.map_err(|why| Error::Listen(address.to_string(), why))?;
        let thread = LinkThread::start().await.map_err(Error::Thread)?;
        let tasks = TaskTracker::new();
        let (of_nodes, following) = (tls.clone(), tasks.clone());
        let settings =
            move |member: &Member| Some(settings(of_nodes.as_ref()?, &following, member));
        let counters = Counters::default();
        let connect = connect(&memory.downloads, Arc::clone(&counters.traffic), settings);
        let peers = Peers::new(&name, connect);
        Ok(Some(Self {
            listener,
            thread,
            tls,
            name,
            tasks,
            windows: memory.downloads.clone(),
            responses: memory.transport.responses.clone(),
            peers: Arc::new(peers),
            counters,
            joined: Arc::default(),
        }))
    }

    /// Returns the other nodes as stores.
    pub(crate) fn stores(&self, config: &Config) -> ClusterStores {
        ClusterStores {
            peers: Arc::clone(&self.peers),
            replicas: usize::try_from(config.cluster.replicas).unwrap_or(usize::MAX),
            peer_reads: config.cluster.peer_reads,
        }
    }

    /// Returns the settings of TLS between nodes, which change with the files.
    pub(crate) fn tls(&self) -> Option<watch::Receiver<ClusterTls>> {
        self.tls.clone()
    }

    /// Returns this run of the node, whose number is larger than that of any earlier run, and the platforms of other
    /// nodes.
    pub(crate) fn node(&self, config: &Config) -> Result<(Generation, PeerPlatforms), Error> {
        let generation = generation::next(&config.local_cache.dir, &self.name)?;
        let platforms = fitting::platforms(Arc::clone(&self.joined));
        Ok((generation, platforms))
    }

    /// Joins the cluster. Needs no other node.
    pub(crate) fn join(
        self,
        (config, descriptors): (&Config, Descriptors),
        executor: Option<&LocalExecutor>,
        how: &mut Result<Vec<String>, String>,
        tiers: &Tiers,
    ) -> Result<Joined, Error> {
        let executor = match (executor, how) {
            (Some(executor), Ok(how)) => {
                let address = self.listener.local_addr().map_err(Error::Address)?;
                let (node, cluster) = (&self.name, &config.cluster.name);
                how.push(format!(
                    "node {node} of cluster {cluster}, for other nodes on {address}"
                ));
                executor
            }
            (_, how) => return Err(Error::NoExecutor(how.clone().err().unwrap_or_default())),
        };
        let record = record::of(config, executor, &self.listener)?;
        let (links, events) = Links::new(LinkOptions {
            cluster: config.cluster.name.clone(),
            me: record.node.clone(),
            record: record.to_proto(),
            tls: self.tls.clone(),
            connect: Arc::new(Tcp),
            max_nodes: max_nodes(config),
        });
        let executor = Arc::clone(&executor.executor);
        let starts = Arc::clone(&self.counters.starts);
        let work = NodeWork::new(&executor, tiers, starts);
        let components = Components {
            links: (Arc::clone(&links), events),
            discovery: Discovery::new(places(config)),
            scheduler: executor.scheduler(),
            work: Arc::new(work),
            peers: self.peers,
        };
        let options = Options {
            cluster: config.cluster.name.clone(),
            record,
            membership: MembershipOptions {
                max_nodes: max_nodes(config),
                ..MembershipOptions::default()
            },
            load_period: config.cluster.broadcast_period,
        };
        let cluster = {
            let _entered = self.thread.runtime().enter();
            Arc::new(Cluster::start(options, components)?)
        };
        // No other code sets it.
        let _ = self.joined.set(Arc::clone(&cluster));
        let of_nodes = (self.tls.clone(), self.tasks.clone());
        let routes = routes(&cluster, [self.windows, self.responses], of_nodes);
        Ok(Joined {
            routes,
            cluster,
            counters: self.counters,
            links,
            listener: self.listener,
            thread: self.thread,
            tls: self.tls,
            tasks: self.tasks,
            memory: Parts::of_nodes(config.limits.max_batch_bytes.bytes(), descriptors.files),
            max_connections: descriptors.nodes,
        })
    }
}

impl Joined {
    /// Serves other nodes until `serving` ends, which serves clients and runs actions, and until the other nodes know
    /// that this node is gone. `options` are the options for clients. Cancels `stop` if a task of
    /// the cluster panics.
    pub(crate) async fn serve(
        self,
        stores: server::Stores,
        executor: &LocalExecutor,
        options: server::Options,
        serving: impl Future<Output = Result<(), gorego_grpc::Error>>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let tls = self
            .tls
            .map(|tls| follow(&self.tasks, tls, ClusterTls::server));
        let Parts {
            transport, server, ..
        } = self.memory;
        let options = server::Options {
            transport: gorego_grpc::Options {
                tls,
                healthy: None,
                peers: gorego_grpc::Peers::Nodes,
                limits: gorego_grpc::Limits {
                    max_connections: self.max_connections,
                    drain_timeout: LAST_CALLS,
                    ..options.transport.limits
                },
                observer: None,
                memory: transport,
                calls: Some(CallRuntime {
                    handle: Handle::current(),
                    except: &[Links::PATH],
                }),
            },
            memory: server,
            ac_updates: true,
            inferred_functions: Vec::new(),
            executor: Some(Arc::clone(&executor.executor)),
            // Calls of other nodes are not passed on, so that there are no loops.
            chain: Arc::default(),
            routes: None,
            takers: Some(self.routes),
            extension: Some(Arc::new(LinkService {
                links: self.links,
                executor: Arc::clone(&executor.executor),
            })),
            ..options
        };
        let (listener, shutdown) = (self.listener.into_std(), CancellationToken::new());
        let listener = listener.map_err(Error::Port)?;
        let (ending, ended) = (shutdown.clone(), CancellationToken::new());
        let ends = ended.clone().drop_guard();
        let meshed = self.thread.runtime().spawn(async move {
            let _ends = ends;
            let listener = TcpListener::from_std(listener).map_err(Error::Port)?;
            server::serve(listener, stores, options, shutdown).await?;
            Ok(())
        });
        let failed = async {
            tokio::select! {
                () = self.cluster.failed() => {}
                () = ended.cancelled() => {}
            }
        };
        let served = or_failed(serving, failed, stop).await;
        self.cluster.leave().await;
        ending.cancel();
        let meshed = meshed.await.unwrap_or(Err(Error::Failed));
        meshed.and(served)
    }
}

/// Returns the routes of calls to other nodes, with the memory for receive windows and for messages.
fn routes(
    cluster: &Arc<Cluster>,
    memory: [Budget; 2],
    (tls, tasks): (Option<watch::Receiver<ClusterTls>>, TaskTracker),
) -> Arc<ClusterRoutes> {
    let settings = move |member: &Member| Some(settings(tls.as_ref()?, &tasks, member));
    Arc::new(ClusterRoutes::new(Arc::clone(cluster), memory, settings))
}

fn max_nodes(config: &Config) -> usize {
    usize::try_from(config.cluster.max_nodes).unwrap_or(usize::MAX)
}

/// Returns the places where other nodes are discovered.
fn places(config: &Config) -> Places {
    let cluster = &config.cluster;
    match cluster.discovery_mode {
        DiscoveryMode::List => {
            let peers = cluster.join_peers.iter();
            Places::List(peers.filter_map(|peer| cluster.peer(peer)).collect())
        }
        DiscoveryMode::Dns => Places::Dns {
            name: cluster.dns_service_name.clone(),
            port: cluster.bind_port,
        },
    }
}

fn tls(
    config: &Config,
    node: &str,
    reloads: &mut Reloads,
) -> Result<Option<watch::Receiver<ClusterTls>>, Error> {
    let cluster = &config.cluster;
    let Some(cert_file) = given(&cluster.tls.cert_file) else {
        return Ok(None);
    };
    let files = ClusterFiles {
        node: NodeIdentity {
            cluster: cluster.name.clone(),
            node: node.to_owned(),
        },
        cert_file,
        key_file: cluster.tls.key_file.clone(),
        ca_file: cluster.tls.ca_file.clone(),
        clients_ca_file: given(&config.tls.ca_file),
    };
    let tls = reloads.read(files.paths(), move || files.load().map_err(Error::Tls))?;
    Ok(Some(tls))
}

/// Returns the settings of connections to a node, which proves its name.
fn settings(
    tls: &watch::Receiver<ClusterTls>,
    tasks: &TaskTracker,
    member: &Member,
) -> watch::Receiver<ClientTls> {
    let node = member.node.node().to_owned();
    follow(tasks, tls.clone(), move |tls| tls.client_for(Some(&node)))
}

/// The service of links and logs on the port for nodes.
#[derive(Debug)]
struct LinkService {
    links: Arc<Links>,
    executor: Arc<Executor>,
}

#[async_trait]
impl Extension for LinkService {
    fn serves(&self, path: &str) -> bool {
        path == Links::PATH || path == READ_LOG
    }

    async fn call(&self, path: &str, peer: Peer, requests: Messages) -> Result<Body, Status> {
        if path == READ_LOG {
            return read_guest_log(&self.executor, requests).await;
        }
        self.links.link(&peer, requests).await
    }
}
