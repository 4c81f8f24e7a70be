//! Settings of the transport.

use std::{sync::Arc, time::Duration};

use gorego_limits::Budget;
use gorego_tls::ServerTls;
use tokio::sync::watch;

use crate::{CallRuntime, Observer};

const MIB: u64 = 1024 * 1024;

/// Settings of the transport.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Limits on connections and calls.
    pub limits: Limits,
    /// Budgets for the memory that clients can make the transport hold.
    pub memory: Memory,
    /// TLS settings of new connections, which may change. Without them connections are plain text.
    pub tls: Option<watch::Receiver<ServerTls>>,
    /// The health of the service. Without it, the server reports that it serves until it shuts down.
    pub healthy: Option<watch::Receiver<bool>>,
    /// Observes all calls.
    pub observer: Option<Arc<dyn Observer>>,
    /// The kind of peers, for the advice in the log when one is misconfigured.
    pub peers: Peers,
    /// The runtime of calls. Without it, calls run on the runtime of their connections.
    pub calls: Option<CallRuntime>,
}

/// The kind of peers of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Peers {
    /// Clients, with the settings `tls`.
    #[default]
    Clients,
    /// The nodes of a cluster, with the settings `cluster.tls`.
    Nodes,
}

/// Limits on connections and calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest time in which a client neither sends nor takes any part of a message that is due.
    pub idle_timeout: Duration,
    /// The time for which a connection slower than 64 KiB/s may hold permits that others wait for. Faster
    /// connections save up to thirty times as much.
    pub grace: Duration,
    /// The longest time that calls in progress may take once the server shuts down.
    pub drain_timeout: Duration,
    /// The most connections at once. Beyond it, connections without a call are closed; if there are none, new
    /// connections wait in the listener's queue.
    pub max_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_mins(1),
            grace: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(8),
            max_connections: 10_000,
        }
    }
}

/// The budgets of the transport, in the order in which a call reserves them. No call reserves an earlier one
/// while it holds a later one, so no two calls wait for each other. Clones share the budgets.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Bytes of requests in connections' receive windows.
    pub windows: Budget,
    /// Calls in progress.
    pub calls: Budget,
    /// Encoded requests; at least as much as the largest.
    pub requests: Budget,
    /// Decoded requests.
    pub decoded: Budget,
    /// Responses, until the client has taken them.
    pub responses: Budget,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            windows: Budget::memory("memory for receive windows", 32 * MIB),
            calls: Budget::count("calls in progress", 20_000),
            requests: Budget::memory("memory for large requests", 20 * MIB),
            decoded: Budget::memory("memory for decoded requests", 24 * MIB),
            responses: Budget::memory("memory for large responses", 16 * MIB),
        }
    }
}

/// An error that prevents the server from starting.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptors for gRPC reflection are inconsistent.
    #[error("cannot describe the services: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}
