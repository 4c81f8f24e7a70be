//! What a remote store is made of.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use super::Chain;

use gorego_limits::Budget;

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

/// Whom to trust, and as whom to appear.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RemoteTls {
    /// The authorities' certificates in PEM form; the system's when there is none.
    pub ca_pem: Option<Vec<u8>>,
    /// The client's certificate chain and its key, both in PEM form.
    pub identity_pem: Option<(Vec<u8>, Vec<u8>)>,
}

impl fmt::Debug for RemoteTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteTls")
            .field("own_authorities", &self.ca_pem.is_some())
            .field("identity", &self.identity_pem.is_some())
            .finish()
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
    /// TLS, or plain text without.
    pub tls: Option<RemoteTls>,
    /// The instance to name in each request. When this is empty, the caller's own for action results,
    /// and none for blobs.
    pub instance_name: String,
    /// Sent with each request, and never logged.
    pub headers: Vec<(String, String)>,
    /// What each request names, so that a loop is noticed: the chain of the server that this store is of.
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
    /// Receive windows of downloads, which a peer may fill while their readers are slow.
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
            headers: Vec::new(),
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
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("RemoteOptions")
            .field("address", &self.address)
            .field("tls", &self.tls)
            .field("instance_name", &self.instance_name)
            .field("header_names", &names)
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
    Instance(#[from] crate::InstanceNameError),
    /// A header that HTTP does not allow, or that gRPC keeps for itself.
    #[error("header {name:?}: {why}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Certificates or a key that are none.
    #[error("{what}: {why}")]
    Tls {
        /// Which of the PEM texts.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Connections need a Tokio runtime to run on.
    #[error("a remote store is made within a Tokio runtime")]
    NoRuntime,
}
