//! What a remote store is made of.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use gorego_limits::Budget;
use gorego_tls::ClientTls;
use tokio::sync::watch;

use super::RemoteHeaders;
use gorego_storage::Chain;

/// Where a peer listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteAddress {
    /// `host:port`.
    Tcp(String),
    /// A socket's path.
    Unix(PathBuf),
}

impl fmt::Display for RemoteAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host) => f.write_str(host),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// When to stop asking a peer that does not answer, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerOptions {
    /// How many failures one after another open the breaker.
    pub failures: u32,
    /// How long it stays open the first time.
    pub cool_down: Duration,
    /// How long it stays open at most, after doubling each time.
    pub max_cool_down: Duration,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        Self {
            failures: 5,
            cool_down: Duration::from_secs(1),
            max_cool_down: Duration::from_secs(30),
        }
    }
}

/// Which peer, and how it is spoken to.
#[derive(Clone)]
pub struct RemoteOptions {
    /// Where it listens.
    pub address: RemoteAddress,
    /// TLS settings of new connections, which may change; plain text without.
    pub tls: Option<watch::Receiver<ClientTls>>,
    /// The instance to name in each request. When this is empty, the caller's own for action results,
    /// and none for blobs.
    pub instance_name: String,
    /// Headers of new requests, which may change.
    pub headers: watch::Receiver<RemoteHeaders>,
    /// The chain of the server that this store belongs to. Each request carries it, so that a loop
    /// is noticed.
    pub chain: Arc<Chain>,
    /// Whether large content may be compressed on its way, if the peer can.
    pub zstd: bool,
    /// How often a call is tried again; a download or upload that came further starts counting
    /// anew.
    pub retries: u32,
    /// How many connections are opened.
    pub connections: usize,
    /// How many calls may run at once, and how many downloads and uploads beside them.
    pub max_calls: usize,
    /// Receive windows of downloads, which a peer fills while their readers are slow.
    pub windows: Budget,
    /// How long a call may take, and 1 s more for each MiB that it moves. Of downloads and uploads
    /// in pieces: how long they may stand still.
    pub timeout: Duration,
    /// When to stop asking.
    pub breaker: BreakerOptions,
}

impl RemoteOptions {
    /// A peer in plain text, with the defaults.
    pub fn new(address: RemoteAddress) -> Self {
        Self {
            address,
            tls: None,
            instance_name: String::new(),
            headers: watch::channel(RemoteHeaders::default()).1,
            chain: Arc::default(),
            zstd: false,
            retries: 3,
            connections: 4,
            max_calls: 256,
            windows: Budget::memory("memory for downloads", 64 << 20),
            timeout: Duration::from_mins(1),
            breaker: BreakerOptions::default(),
        }
    }
}

impl fmt::Debug for RemoteOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteOptions")
            .field("address", &self.address)
            .field("tls", &self.tls.is_some())
            .field("instance_name", &self.instance_name)
            .field("headers", &*self.headers.borrow())
            .field("zstd", &self.zstd)
            .field("retries", &self.retries)
            .field("connections", &self.connections)
            .field("max_calls", &self.max_calls)
            .field("timeout", &self.timeout)
            .field("breaker", &self.breaker)
            .finish_non_exhaustive()
    }
}

/// Why there can be no store with these options. Names what is wrong, and never a header's value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// Not where something could listen.
    #[error("address {address:?} is not host:port: {why}")]
    Address {
        /// As it was given.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// Not an instance that resource names could hold.
    #[error(transparent)]
    Instance(#[from] gorego_storage::InstanceNameError),
    /// A header that HTTP does not allow, or that gRPC keeps for itself.
    #[error("header {name:?}: {why}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Connections need a Tokio runtime to run on.
    #[error("a remote store is made within a Tokio runtime")]
    NoRuntime,
}
