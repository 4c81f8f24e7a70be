//! The options of a remote store.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use gorego_limits::Budget;
use gorego_tls::ClientTls;
use tokio::sync::watch;
use tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue};

use gorego_storage::Chain;

/// The address of a peer.
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

/// The headers of each request. Their values are secrets, and never shown.
#[derive(Clone, Debug, Default)]
pub struct RemoteHeaders(pub(super) Arc<HeaderMap>);

impl RemoteHeaders {
    /// Returns the headers. Their values are marked as sensitive.
    pub fn map(&self) -> &HeaderMap {
        &self.0
    }

    /// Parses names and values. The error names a header that cannot be sent.
    pub fn parse(headers: &[(String, String)]) -> Result<Self, RemoteError> {
        let mut parsed = HeaderMap::new();
        for (name, value) in headers {
            let error = |why| RemoteError::Header {
                name: name.clone(),
                why,
            };
            let lower = name.to_ascii_lowercase();
            if lower.ends_with("-bin") {
                return Err(error(
                    "ends with -bin, which gRPC reserves for binary values",
                ));
            }
            if lower.starts_with("grpc-") || RESERVED.contains(&lower.as_str()) {
                return Err(error("is set by gRPC itself"));
            }
            if OF_CONNECTION.contains(&lower.as_str()) {
                return Err(error(
                    "describes a connection of HTTP/1.1, and cannot be sent over HTTP/2",
                ));
            }
            let name = HeaderName::from_bytes(lower.as_bytes())
                .map_err(|_| error("is no valid name of an HTTP header"))?;
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| error("its value has other than visible ASCII characters"))?;
            value.set_sensitive(true);
            parsed.append(name, value);
        }
        Ok(Self(Arc::new(parsed)))
    }
}

const RESERVED: [&str; 5] = ["te", "content-type", "user-agent", "host", "content-length"];

/// The headers that make a request of HTTP/2 malformed (RFC 9113, section 8.2.2), and those of hop-by-hop
/// authentication, which a peer behind a proxy would never see.
const OF_CONNECTION: [&str; 9] = [
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The options of the breaker, which suspends calls to a peer that does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerOptions {
    /// The number of consecutive failures that open the breaker.
    pub failures: u32,
    /// The time that it stays open at first.
    pub cool_down: Duration,
    /// The time that it stays open at most, after doubling each time.
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

/// A function that adds headers of the current call to a request, such as those of its trace.
#[derive(Clone)]
pub struct CallHeaders(Arc<dyn Fn(&mut HeaderMap) + Send + Sync>);

impl CallHeaders {
    /// Wraps a function, which is called in the task of the call.
    pub fn new(add: impl Fn(&mut HeaderMap) + Send + Sync + 'static) -> Self {
        Self(Arc::new(add))
    }

    pub(super) fn add(&self, headers: &mut HeaderMap) {
        (self.0)(headers);
    }
}

impl Default for CallHeaders {
    fn default() -> Self {
        Self::new(|_| ())
    }
}

impl fmt::Debug for CallHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallHeaders").finish_non_exhaustive()
    }
}

/// The options of a store behind a peer.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// The address of the peer.
    pub address: RemoteAddress,
    /// The words before the address in errors of a peer that does not answer.
    pub role: &'static str,
    /// The TLS settings of new connections, which may change; `None` for plain text.
    pub tls: Option<watch::Receiver<ClientTls>>,
    /// The instance name of each request. If empty, requests for action results name the caller's
    /// instance, and requests for blobs none.
    pub instance_name: String,
    /// Headers of new requests, which may change.
    pub headers: watch::Receiver<RemoteHeaders>,
    /// Headers of the call that a request is made for.
    pub call_headers: CallHeaders,
    /// The chain of the server that owns this store. Each request carries it, so that a loop is detected.
    pub chain: Arc<Chain>,
    /// Compresses large content on its way, if the peer supports it.
    pub zstd: bool,
    /// The retries of an operation. Progress of a download or upload resets the count.
    pub retries: u32,
    /// The number of connections.
    pub connections: usize,
    /// The number of concurrent calls, and of concurrent downloads and uploads besides.
    pub max_calls: usize,
    /// The budget of the receive windows of downloads, which a peer fills while their readers are slow.
    pub windows: Budget,
    /// The time limit of a call; 1 s is added for each MiB that it moves. Downloads and uploads in
    /// pieces may stall for this long.
    pub timeout: Duration,
    /// The breaker.
    pub breaker: BreakerOptions,
}

impl RemoteOptions {
    /// Creates the options of a peer in plain text, with the defaults.
    pub fn new(address: RemoteAddress) -> Self {
        Self {
            address,
            role: "backing cache",
            tls: None,
            instance_name: String::new(),
            headers: watch::channel(RemoteHeaders::default()).1,
            call_headers: CallHeaders::default(),
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

/// An error in the options of a store. It never contains a header's value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// The address is no host with a port.
    #[error("address {address:?} is not host:port: {why}")]
    Address {
        /// The address as it was given.
        address: String,
        /// The cause.
        why: String,
    },
    /// The instance name cannot be part of a resource name.
    #[error(transparent)]
    Instance(#[from] gorego_storage::InstanceNameError),
    /// A header that HTTP does not allow, or that gRPC reserves.
    #[error("header {name:?}: {why}")]
    Header {
        /// The name of the header.
        name: String,
        /// The cause.
        why: &'static str,
    },
    /// Connections need a Tokio runtime to run on.
    #[error("a remote store needs a Tokio runtime")]
    NoRuntime,
}
