//! The sections of features that are not implemented yet. They are read and checked, so that a
//! configuration file can be shared with a later version.

use std::path::PathBuf;
use std::time::Duration;

use crate::choice::DiscoveryMode;
use crate::section::section;

section! {
    /// The execution of actions. Not implemented yet.
    Execution {
        /// Executes actions for clients.
        enabled: bool = false,
        /// The number of actions that run at once. 0 for the number of processors.
        concurrency: u32 = 0,
        /// The directory in which actions run.
        build_root: PathBuf = PathBuf::new(),
        /// The most actions that may wait.
        queue_size: u32 = 1000,
    }
    sections { sandbox: Sandbox, }
}

section! {
    /// The sandbox around an action. Not implemented yet.
    Sandbox {
        /// Runs actions in a sandbox.
        enabled: bool = false,
        /// The program that creates the sandbox (Bazel's `linux-sandbox`).
        binary_path: PathBuf = PathBuf::new(),
        /// Keeps actions off the network.
        network_isolation: bool = true,
        /// Paths outside the sandbox that actions may write to.
        writable_paths: Vec<String> = Vec::new(),
        /// The time to clean up that an action gets after its timeout, before it is killed.
        kill_delay: Duration = Duration::from_secs(5),
        /// Logs the actions of the sandbox.
        debug: bool = false,
    }
}

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
