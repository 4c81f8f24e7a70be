//! The sections of features that are not implemented yet. They are read and checked, so that a
//! configuration file can be shared with a later version.

use std::time::Duration;

use crate::choice::DiscoveryMode;
use crate::section::section;

section! {
    /// The nodes that share the execution of actions. Not implemented yet.
    Cluster {
        /// Joins a cluster of nodes.
        enabled: bool = false,
        /// The name of this node. If empty, the host name.
        node_id: String = String::new(),
        /// The port for messages between nodes.
        bind_port: u16 = 7946,
        /// The address at which other nodes reach this one. If empty, it is detected.
        advertise_addr: String = String::new(),
        /// The source of other nodes' addresses: `join_peers` (`list`) or `dns_service_name` (`dns`).
        discovery_mode: DiscoveryMode = DiscoveryMode::List,
        /// Nodes to join, as `host:port`.
        join_peers: Vec<String> = Vec::new(),
        /// The DNS name that resolves to the addresses of the nodes.
        dns_service_name: String = String::new(),
        /// The interval at which a node broadcasts its load.
        broadcast_period: Duration = Duration::from_millis(500),
    }
}
