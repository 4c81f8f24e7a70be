//! Nodes with a link from each to each other, so that a test can break the connections of two of them.

use std::{fmt::Write as _, fs, net::Ipv4Addr};

use tempfile::TempDir;

use super::Node;
use crate::{
    link::{Link, Settings},
    server::Server,
};

/// Nodes named `a`, `b`, `c` and so on, and the links between them.
#[derive(Debug)]
pub struct Wires<const N: usize> {
    /// The nodes.
    pub nodes: [Node; N],
    /// The link from each node to each other one.
    links: Vec<((usize, usize), Link)>,
    /// Contains a file with the names of hosts for each node.
    _dir: TempDir,
}

/// Returns the host name of a node.
fn host(node: usize) -> String {
    format!("{node}.gorego.test")
}

/// Links on addresses of the network that begins with these bytes.
struct Net([u8; 2]);

impl Net {
    /// Returns the address at which one node reaches another.
    fn address(&self, from: usize, to: usize) -> Ipv4Addr {
        let ends = [from, to].map(|node| u8::try_from(node).expect("few nodes"));
        Ipv4Addr::new(self.0[0], self.0[1], ends[0], ends[1])
    }

    fn link(&self, from: usize, (to, node): (usize, &Node)) -> ((usize, usize), Link) {
        let settings = Settings {
            listen: (self.address(from, to), node.mesh.port()).into(),
            ..Settings::default()
        };
        ((from, to), Link::with(node.mesh, settings))
    }

    /// Returns the content of a node's `/etc/hosts`.
    fn hosts(&self, from: usize, nodes: usize) -> String {
        let mut hosts = String::from("127.0.0.1 localhost\n");
        for to in (0..nodes).filter(|to| *to != from) {
            let line = writeln!(hosts, "{} {}", self.address(from, to), host(to));
            line.expect("a text takes any length");
        }
        hosts
    }
}

impl<const N: usize> Wires<N> {
    /// Starts nodes with these settings, and waits until each knows all.
    pub async fn start(more: &[&str]) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let net = Net([127, fastrand::u8(1..)]);
        let names: Vec<String> = ('a'..).take(N).map(String::from).collect();
        let mut nodes = Vec::<Node>::new();
        let mut links = Vec::new();
        for (number, name) in names.iter().enumerate() {
            links.extend(nodes.iter().enumerate().map(|to| net.link(number, to)));
            let file = dir.path().join(name);
            fs::write(&file, net.hosts(number, N)).expect("writing the hosts");
            let join = nodes.iter().enumerate();
            let join = join.map(|(to, node)| format!("{}:{}", host(to), node.mesh.port()));
            let join = join.collect::<Vec<_>>().join(",");
            let advertised = format!("cluster.advertise_addr={}", host(number));
            let more = [more, &[&advertised]].concat();
            let start = |settings: &[&str]| Server::start_reading(&file, "/etc/hosts", settings);
            let node = Node::launch(start, name, &join, &more).await;
            links.extend((0..number).map(|from| net.link(from, (number, &node))));
            nodes.push(node);
        }
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        for node in &nodes {
            node.wait_for_members(&names).await;
        }
        Self {
            nodes: nodes.try_into().expect("as many as asked for"),
            links,
            _dir: dir,
        }
    }

    /// Returns the links.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().map(|(_, link)| link)
    }

    /// Breaks the connections between nodes of one group and those of the other, and refuses new ones.
    pub fn separate(&self, one: &[usize], other: &[usize]) {
        for ((from, to), link) in &self.links {
            if one.contains(from) && other.contains(to) || other.contains(from) && one.contains(to)
            {
                link.down();
            }
        }
    }

    /// Ends all faults, and waits until each node knows all.
    pub async fn heal(&self) {
        self.links().for_each(Link::restore);
        let names = self.nodes.each_ref().map(|node| node.name.as_str());
        for node in &self.nodes {
            node.wait_for_members(&names).await;
        }
    }
}
