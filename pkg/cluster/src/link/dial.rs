//! Links that this node opens.

use std::{
    error::Error,
    future::ready,
    io,
    sync::{Arc, OnceLock},
};

use futures::StreamExt as _;
use gorego_scheduler::Generation;
use gorego_tls::NodeIdentity;
use http::Uri;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use parking_lot::Mutex;
use reapi::gorego::cluster::mesh_client::MeshClient;
use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::{Code, Status, body::Body};

use super::{
    HANDSHAKE, Links, MAX_FRAME, MAX_HANDSHAKES,
    hello::{DUPLICATE, FOREIGN, OWN, SAME_NAME, check},
    outbox::Outbox,
    run::Frames,
    serve::address_of,
    sockets::{Established, Socket},
    table::Link,
};

/// The receive window of a link, in bytes, and the most bytes that leave the queue before the network takes them:
/// gossip does not overtake these.
const WINDOW: u32 = 256 * 1024;
const SEND_BUFFER: usize = 32 * 1024;

/// The error of a link that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// No process listens at the address.
    #[error("connection refused")]
    Refused,
    /// There is no answer, or the connection broke.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// One side does not accept the certificate of the other.
    #[error("TLS: {0}")]
    Tls(String),
    /// It is a node of another cluster, one with another name, or one that speaks other versions of the protocol.
    #[error("{0}")]
    Foreign(String),
    /// It is this node.
    #[error("the address is that of this node")]
    Own,
    /// Another process has the name of this node, or a newer run of it is connected.
    #[error("{0}")]
    SameName(String),
    /// A link to this node is up or being opened.
    #[error("a link to the node is up or being opened")]
    Duplicate,
    /// One of the two nodes has links to `cluster.max_nodes` nodes already.
    #[error("{0}")]
    Full(String),
    /// One of the two nodes takes no link now: it shuts down, or opens too many connections at once.
    #[error("{0}")]
    Busy(String),
    /// The node refuses for another reason.
    #[error("{0}")]
    Rejected(String),
}

/// A dial that ends when this is dropped.
struct Dialing<'a>(&'a Links, u64);

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        self.0.table.lock().dialed(self.1);
    }
}

impl Links {
    /// Opens a link to a node at `host:port`, or returns the one that is up. `node` is its name, if that is known; a
    /// node with another is refused. Takes 5 s at most.
    pub async fn dial(
        self: &Arc<Self>,
        address: &str,
        node: Option<&str>,
    ) -> Result<Generation, DialError> {
        let _dialing = {
            let mut table = self.table.lock();
            if let Some(link) = table.up(node, Some(address)) {
                return Ok(link.peer.clone());
            }
            if table.dialing(node, address).is_some() {
                return Err(DialError::Duplicate);
            }
            if table.dials_in_progress() >= MAX_HANDSHAKES {
                let why = "too many connections are being opened";
                return Err(DialError::Busy(why.to_owned()));
            }
            Dialing(self, table.dials(node, address))
        };
        let dialed = timeout(HANDSHAKE, self.open(address, node)).await;
        let dialed = dialed.unwrap_or_else(|_| {
            let why = format!("no answer within {HANDSHAKE:?}");
            Err(DialError::Unreachable(why))
        });
        match dialed {
            Err(DialError::Duplicate) => self.up(node, address).ok_or(DialError::Duplicate),
            dialed => dialed,
        }
    }

    fn up(&self, node: Option<&str>, address: &str) -> Option<Generation> {
        let table = self.table.lock();
        table.up(node, Some(address)).map(|link| link.peer.clone())
    }

    async fn open(
        self: &Arc<Self>,
        address: &str,
        node: Option<&str>,
    ) -> Result<Generation, DialError> {
        let socket = self.connect.connect(address).await;
        let socket = socket.map_err(|why| match why.kind() {
            io::ErrorKind::ConnectionRefused => DialError::Refused,
            _ => DialError::Unreachable(why.to_string()),
        })?;
        let (socket, identity) = self.encrypt(socket, address, node).await?;
        if let Some(identity) = &identity
            && let Some(up) = self.up(Some(&identity.node), address)
        {
            return Ok(up);
        }
        let outbox = Outbox::new(self.hello());
        let mut frames = call(socket, &outbox).await?;
        let first = match frames.next().await {
            Some(first) => first.map_err(|status| error_of(&status))?,
            None => {
                return Err(DialError::Unreachable(
                    "it ended without a frame".to_owned(),
                ));
            }
        };
        let checked = check(first, &self.cluster, &self.me, identity.as_ref());
        let (peer, hello) = checked.map_err(|status| error_of(&status))?;
        if let Some(node) = node
            && node != peer.node()
        {
            let why = format!("it is the node {}; expected: {node}", peer.node());
            return Err(DialError::Foreign(why));
        }
        let link = Link::new(peer.clone(), address_of(&hello), true, outbox);
        let adopted = self.table.lock().adopt(&link, &self.me, self.max_nodes);
        let replaced = match adopted {
            Ok(replaced) => replaced,
            Err(status) if status.code() == DUPLICATE => return Ok(peer),
            Err(status) => return Err(error_of(&status)),
        };
        self.start(link, hello, frames, replaced);
        Ok(peer)
    }

    /// Encrypts a connection, and returns the name of the node in its certificate.
    async fn encrypt(
        &self,
        socket: Box<dyn Socket>,
        address: &str,
        node: Option<&str>,
    ) -> Result<(Box<dyn Socket>, Option<NodeIdentity>), DialError> {
        let Some(tls) = &self.tls else {
            return Ok((socket, None));
        };
        let config = tls.borrow().client_for(node).config;
        // Not verified, but balancers may route by it.
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).or_else(|_| ServerName::try_from("node"));
        let name = name.map_err(|why| DialError::Unreachable(why.to_string()))?;
        let connected = TlsConnector::from(config).connect(name, socket).await;
        let socket = connected.map_err(|why| failure(&why))?;
        let shown = socket.get_ref().1.peer_certificates();
        let identity = shown.and_then(|chain| NodeIdentity::of(chain.first()?));
        Ok((Box::new(socket), identity))
    }
}

/// Calls the method on a connection, with the frames of a queue. Returns the frames of the peer once it accepts.
async fn call(socket: Box<dyn Socket>, outbox: &Arc<Outbox>) -> Result<Frames, DialError> {
    let tls_error = Arc::new(OnceLock::new());
    let established = Established {
        socket,
        tls_error: Arc::clone(&tls_error),
    };
    let slot = Arc::new(Mutex::new(Some(TokioIo::new(established))));
    let once = tower::service_fn(move |_: Uri| {
        let socket = slot.lock().take();
        ready(socket.ok_or(io::Error::from(io::ErrorKind::NotConnected)))
    });
    let client: Client<_, Body> = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .http2_initial_stream_window_size(WINDOW)
        .http2_initial_connection_window_size(WINDOW)
        .http2_max_send_buf_size(SEND_BUFFER)
        .retry_canceled_requests(false)
        .build(once);
    let mut mesh = MeshClient::with_origin(client, Uri::from_static("http://node"))
        .max_decoding_message_size(MAX_FRAME);
    let answer = mesh.link(Arc::clone(outbox).frames()).await;
    let answer = answer.map_err(|status| {
        let tls_error = tls_error.get();
        tls_error.map_or_else(|| error_of(&status), |why| failure(why))
    })?;
    Ok(answer.into_inner().boxed())
}

/// Returns the error of a call that failed, by the refusal of the peer or with the connection.
fn error_of(status: &Status) -> DialError {
    if let Some(cause) = status.source() {
        return failure(cause);
    }
    let why = status.message().to_owned();
    match status.code() {
        FOREIGN => DialError::Foreign(why),
        OWN => DialError::Own,
        SAME_NAME => DialError::SameName(why),
        DUPLICATE => DialError::Duplicate,
        Code::ResourceExhausted => DialError::Full(why),
        Code::Unavailable => DialError::Busy(why),
        _ => DialError::Rejected(why),
    }
}

/// Returns the error of a connection, which may be one of TLS.
fn failure(error: &(dyn Error + 'static)) -> DialError {
    let mut texts = Vec::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let inner = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        let tls = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(tls) = tls.or_else(|| cause.downcast_ref()) {
            let why = gorego_tls::describe(tls);
            return if gorego_tls::is_wrong_node(tls) {
                DialError::Foreign(why)
            } else {
                DialError::Tls(why)
            };
        }
        texts.push(cause.to_string());
        next = cause.source();
    }
    texts.dedup();
    DialError::Unreachable(texts.join(": "))
}
