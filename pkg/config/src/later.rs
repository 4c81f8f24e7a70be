//! The sections of features that this build does not have yet. They are read and checked all the
//! same, so that a configuration file can be shared with a build that has them.

use std::path::PathBuf;
use std::time::Duration;

use crate::choice::DiscoveryMode;
use crate::section::section;

section! {
    /// The execution of actions. Not in this build.
    Execution {
        /// Execute actions for clients.
        enabled: bool = false,
        /// How many actions run at once. 0 for as many as there are processors.
        concurrency: u32 = 0,
        /// Where actions run.
        build_root: PathBuf = PathBuf::new(),
        /// How many actions may wait.
        queue_size: u32 = 1000,
    }
    sections { sandbox: Sandbox, }
}

section! {
    /// The sandbox around an action. Not in this build.
    Sandbox {
        /// Run actions in a sandbox.
        enabled: bool = false,
        /// The program that makes it (Bazel's `linux-sandbox`).
        binary_path: PathBuf = PathBuf::new(),
        /// Keep actions off the network.
        network_isolation: bool = true,
        /// Paths outside that actions may write to.
        writable_paths: Vec<String> = Vec::new(),
        /// How long an action that is out of time may clean up before it is killed.
        kill_delay: Duration = Duration::from_secs(5),
        /// Log what the sandbox does.
        debug: bool = false,
    }
    sections {}
}

section! {
    /// The nodes that share the execution of actions. Not in this build.
    Cluster {
        /// Be one of several nodes.
        enabled: bool = false,
        /// The name of this node. If empty, the host's.
        node_id: String = String::new(),
        /// The port where nodes talk to each other.
        bind_port: u16 = 7946,
        /// The address that others reach this node at. If empty, it is found out.
        advertise_addr: String = String::new(),
        /// How nodes find each other: those in `join_peers`, or the addresses of
        /// `dns_service_name`.
        discovery_mode: DiscoveryMode = DiscoveryMode::List,
        /// Nodes to join, as `host:port`.
        join_peers: Vec<String> = Vec::new(),
        /// The name whose addresses are those of the nodes.
        dns_service_name: String = String::new(),
        /// How often a node tells the others how busy it is.
        broadcast_period: Duration = Duration::from_millis(500),
    }
    sections {}
}
