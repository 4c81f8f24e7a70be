//! Clusters of real servers on loopback.

mod certs;
mod crowd;
mod wires;

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::Path,
};

use serde_json::Value;

pub use self::{certs::Certs, crowd::Crowd, wires::Wires};
use crate::{
    binary,
    executor::{Executor, ON},
    metrics::Metrics,
    port::Reservation,
    process::{self, Process},
    server::{Disk, Server, User, forget_settings},
    web,
};

/// The words before the address for other nodes in a server's log.
const FOR_NODES: &str = "for other nodes on ";

/// A node of a cluster, and a client of it.
#[derive(Debug)]
pub struct Node {
    /// The server.
    pub server: Server,
    /// The name.
    pub name: String,
    /// A client of it.
    pub executor: Executor,
    /// The address for other nodes.
    pub mesh: SocketAddr,
    port: Reservation,
}

/// The settings of nodes: addresses, names, and the nodes to join.
fn settings(name: &str, port: &Reservation, join: &str) -> Vec<String> {
    let own = [
        "telemetry.metrics_addr=127.0.0.1:0".to_owned(),
        "cluster.enabled=true".to_owned(),
        "cluster.bind_addr=127.0.0.1".to_owned(),
        format!("cluster.bind_port={}", port.address().port()),
        format!("cluster.node_id={name}"),
        format!("cluster.join_peers={join}"),
    ];
    let common = ON.map(str::to_owned);
    common.into_iter().chain(own).collect()
}

impl Node {
    /// Starts a node that joins those at these addresses, separated by commas.
    pub async fn start(name: &str, join: &str, more: &[&str]) -> Self {
        Self::launch(Server::start, name, join, more).await
    }

    /// Starts a node with its own file system, which joins those at these addresses.
    pub async fn start_on(disk: Disk, name: &str, join: &str, more: &[&str]) -> Self {
        let start = |settings: &[&str]| Server::start_on(disk, settings);
        Self::launch(start, name, join, more).await
    }

    /// Starts a node that joins no address, and reads this file as `/etc/resolv.conf`.
    pub async fn start_with_resolver(resolver: &Path, name: &str, more: &[&str]) -> Self {
        let file = "/etc/resolv.conf";
        let start = |settings: &[&str]| Server::start_reading(resolver, file, settings);
        Self::launch(start, name, "", more).await
    }

    /// Starts a node that reads this configuration file, and joins those at these addresses.
    pub async fn start_with_file(file: &Path, name: &str, join: &str, more: &[&str]) -> Self {
        let start = |settings: &[&str]| Server::start_as(User::Own, Some(file), settings);
        Self::launch(start, name, join, more).await
    }

    /// Starts a node whose actions use the programs in the root directory of the build clients.
    pub async fn start_in_root(name: &str, join: &str, more: &[&str]) -> Self {
        Self::launch(Server::start_in_root, name, join, more).await
    }

    async fn launch(
        start: impl Fn(&[&str]) -> Server,
        name: &str,
        join: &str,
        more: &[&str],
    ) -> Self {
        let port = Reservation::any();
        let mut all = settings(name, &port, join);
        all.extend(more.iter().map(|&setting| setting.to_owned()));
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        Self::over(start(&all), name, port).await
    }

    async fn over(server: Server, name: &str, port: Reservation) -> Self {
        let log = server.wait_for_log(FOR_NODES);
        let (_, address) = log.rsplit_once(FOR_NODES).expect("the words are there");
        let line = address.lines().next().unwrap_or_default();
        let mesh = line.split_whitespace().next().unwrap_or_default();
        Self {
            executor: Executor::connect(server.address()).await,
            name: name.to_owned(),
            mesh: mesh.parse().unwrap_or_else(|e| panic!("{e}: {line}")),
            server,
            port,
        }
    }

    /// Starts the node again on the same directory and the same port for other nodes, after killing it if it runs.
    pub async fn restart(self) -> Self {
        self.restart_with(&[]).await
    }

    /// Like [`Self::restart`], with these settings in addition.
    pub async fn restart_with(self, more: &[&str]) -> Self {
        let mut settings = self.server.settings().to_vec();
        settings.extend(more.iter().map(|&setting| setting.to_owned()));
        let settings: Vec<_> = settings.iter().map(String::as_str).collect();
        let server = self.server.restart_with(&settings);
        Self::over(server, &self.name, self.port).await
    }

    /// Starts `gorego drain` for the node, with these arguments in addition.
    pub fn drain(&self, more: &[&str]) -> Process {
        let mut command = process::command(binary::gorego());
        forget_settings(&mut command);
        let dir = format!("local_cache.dir={}", self.server.data().display());
        command.current_dir("/").arg("drain").args(more);
        Process::spawn(command.args(["--set", &dir]))
    }

    /// Begins to drain the node, and interrupts the command after its first line, which it returns.
    pub fn begin_drain(&self) -> String {
        // The path of the socket itself may be too long.
        let folder = File::open(self.server.data().join("control")).expect("the server runs");
        let socket = format!("/proc/self/fd/{}/socket", folder.as_raw_fd());
        let mut command = UnixStream::connect(&socket).expect("the server listens");
        writeln!(command, "drain").expect("the server reads");
        let mut line = String::new();
        let read = BufReader::new(command).read_line(&mut line);
        read.expect("the server answers");
        line
    }

    /// Waits until `/readyz` has this status.
    pub async fn wait_for_readiness(&self, status: u16) {
        let is_met = |response: &web::Response| response.status == status;
        web::wait_for(self.server.metrics(), "/readyz", is_met).await;
    }

    /// Returns the nodes that this one knows.
    pub async fn peers(&self) -> Vec<Value> {
        let peers = web::get(self.server.metrics(), "/api/v1/peers").await;
        nodes(&peers)
    }

    /// Waits until this node knows the node of this name to be in this state.
    pub async fn wait_for_state(&self, name: &str, state: &str) {
        let is_met = |response: &web::Response| {
            let mut nodes = nodes(response).into_iter();
            nodes.any(|node| node["name"] == name && node["state"] == state)
        };
        web::wait_for(self.server.metrics(), "/api/v1/peers", is_met).await;
    }

    /// Waits until this node knows the nodes of exactly these names as alive, itself included, and suspects none.
    pub async fn wait_for_members(&self, names: &[&str]) {
        let is_met = |response: &web::Response| {
            let members = nodes(response).into_iter().filter(|node| {
                let state = node["state"].as_str().expect("a state");
                !["draining", "down"].contains(&state)
            });
            let members: Vec<_> = members.collect();
            let is_suspect = |node: &Value| node["state"] == "suspect";
            let names_of = members.iter().map(|node| node["name"].clone());
            !members.iter().any(is_suspect) && names_of.collect::<Vec<_>>() == names
        };
        web::wait_for(self.server.metrics(), "/api/v1/peers", is_met).await;
    }

    /// Waits until this node has run this many actions of others.
    pub async fn wait_for_taken(&self, actions: u64) {
        let is_met = |metrics: &Metrics| {
            let taken = metrics.get("gorego_cluster_taken_actions_total");
            taken.is_some_and(|taken| taken >= actions)
        };
        Metrics::wait_for(self.server.metrics(), is_met).await;
    }

    /// Returns how many actions of this node were queued again because the node that ran them did not answer for seconds,
    /// as may happen on a busy machine. They may have started twice.
    pub async fn lost_actions(&self) -> usize {
        let metrics = Metrics::of(self.server.metrics()).await;
        let lost = ["lease", "node_lost"].map(|cause| {
            let name = format!(r#"gorego_cluster_requeued_actions_total{{cause="{cause}"}}"#);
            usize::try_from(metrics.get(&name).expect("a count")).expect("a small count")
        });
        lost.into_iter().sum()
    }

    /// Waits until the metrics of the cluster have these values. Their names are without `gorego_cluster_`.
    pub async fn wait_for_metrics(&self, values: &[(&str, u64)]) {
        let has = |metrics: &Metrics, name: &str| metrics.get(&format!("gorego_cluster_{name}"));
        let is_met = |metrics: &Metrics| {
            values
                .iter()
                .all(|(name, value)| has(metrics, name) == Some(*value))
        };
        Metrics::wait_for(self.server.metrics(), is_met).await;
    }

    /// Returns the names of the nodes that run the actions of this one now, sorted.
    pub async fn places(&self) -> Vec<String> {
        let actions = web::get(self.server.metrics(), "/api/v1/actions").await;
        let actions = actions.json();
        let current = actions["current"].as_array().expect("a list").iter();
        let places = current.map(|action| action["node"].as_str().expect("a name").to_owned());
        let mut places: Vec<_> = places.filter(|node| !node.is_empty()).collect();
        places.sort();
        places
    }
}

fn nodes(response: &web::Response) -> Vec<Value> {
    let json = response.json();
    json["nodes"].as_array().expect("a list").clone()
}

/// A function that starts a server with these settings.
type Start = fn(&[&str]) -> Server;

/// Starts nodes named `a`, `b`, `c` and so on with these settings, and waits until each knows all.
pub async fn start<const N: usize>(more: &[&str]) -> [Node; N] {
    start_by(Server::start, more).await
}

/// Starts nodes whose actions use the programs in the root directory of the build clients.
pub async fn start_in_root<const N: usize>(more: &[&str]) -> [Node; N] {
    start_by(Server::start_in_root, more).await
}

async fn start_by<const N: usize>(start: Start, more: &[&str]) -> [Node; N] {
    let names: Vec<String> = ('a'..).take(N).map(String::from).collect();
    let mut nodes = Vec::<Node>::new();
    for name in &names {
        let join: Vec<_> = nodes.iter().map(|node| node.mesh.to_string()).collect();
        nodes.push(Node::launch(start, name, &join.join(","), more).await);
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    for node in &nodes {
        node.wait_for_members(&names).await;
    }
    nodes.try_into().expect("as many as asked for")
}
