//! The section `cluster`.

use std::path::PathBuf;
use std::time::Duration;

use crate::address::{ListenAddr, host_and_port};
use crate::choice::{DiscoveryMode, Role};
use crate::section::section;

section! {
    /// The nodes that share the execution of actions, and their blobs. A node with a certificate of the cluster is
    /// fully trusted: it can read all content, run commands and write any action result.
    Cluster {
        /// Joins a cluster of nodes. Needs the local cache, and certificates (`cluster.tls`).
        enabled: bool = false,
        /// The name of the cluster. Nodes of clusters with other names are refused. At most 63 letters, digits, `.`,
        /// `_` and `-`.
        name: String = "gorego".to_owned(),
        /// The name of this node, which no other may have. If empty, the host name. At most 63 letters, digits, `.`,
        /// `_` and `-`.
        node_id: String = String::new(),
        /// The work of this node: `node` accepts actions of clients and executes actions of all nodes, `worker`
        /// executes only those of other nodes and refuses `Execute`. A node with `execution.enabled: false` executes
        /// nothing.
        role: Role = Role::Node,
        /// The host name or address to listen on for other nodes. If empty, that of `listen_addr`.
        bind_addr: String = String::new(),
        /// The port for other nodes. 0 lets the system choose.
        bind_port: u16 = 7946,
        /// The address at which other nodes reach this one, with `bind_port` if it names no port. If empty, it is
        /// detected.
        advertise_addr: String = String::new(),
        /// The source of other nodes' addresses: `join_peers` (`list`) or `dns_service_name` (`dns`).
        discovery_mode: DiscoveryMode = DiscoveryMode::List,
        /// Nodes to join, as `host:port`, or `host` for those with the same `bind_port`. One that is up is enough.
        join_peers: Vec<String> = Vec::new(),
        /// The DNS name that resolves to the addresses of the nodes. Of a name that begins with `_`, such as
        /// `_gorego._tcp.example.com`, the SRV records are used.
        dns_service_name: String = String::new(),
        /// The interval at which a node sends its load while it changes. 50ms to 10s.
        broadcast_period: Duration = Duration::from_millis(500),
        /// Lets nodes talk in plain text to every program that reaches `bind_port`, all of which can then run
        /// commands here. Without it, `bind_addr` has to be a loopback address, or `cluster.tls` to be set.
        insecure: bool = false,
        /// The nodes that have a copy of each blob and result if there is no backing cache. 1 to 8.
        replicas: u32 = 2,
        /// Reads blobs from up to three other nodes before the backing cache. If false, only from the node that handed
        /// over or ran the action.
        peer_reads: bool = true,
        /// The most nodes of the cluster. Others are refused. 1 to 10000.
        max_nodes: u32 = 256,
    }
    sections { tls: ClusterTls, }
}

section! {
    /// TLS between nodes. `gorego cluster certs` makes the files. All three are set, or none.
    ClusterTls {
        /// The certificate of this node, for servers and clients, with the name `URI:gorego://<cluster>/<node>`; followed
        /// by intermediate ones (PEM).
        cert_file: PathBuf = PathBuf::new(),
        /// The private key of the certificate (PEM).
        key_file: PathBuf = PathBuf::new(),
        /// The authorities of the nodes' certificates (PEM). They must not be those of clients (`tls.ca_file`).
        ca_file: PathBuf = PathBuf::new(),
    }
}

impl Cluster {
    /// Returns the address to listen on for other nodes, given `listen_addr`; `None` if `bind_addr` is malformed.
    pub fn bind(&self, listen_addr: &ListenAddr) -> Option<ListenAddr> {
        let host = match self.bind_addr.as_str() {
            "" => listen_addr.host.clone(),
            host => ListenAddr::of_host(host)?.host,
        };
        let port = self.bind_port;
        Some(ListenAddr { host, port })
    }

    /// Returns `host:port` of the node at an address as in `join_peers`; `None` if it is malformed.
    pub fn peer(&self, address: &str) -> Option<String> {
        let bare = || {
            let port = self.bind_port;
            let address = ListenAddr::of_host(address)?;
            Some(ListenAddr { port, ..address }.to_string())
        };
        host_and_port(address, None).or_else(bare)
    }
}
