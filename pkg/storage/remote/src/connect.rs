//! Connections to a peer, opened when they are first needed.

use std::{sync::Arc, time::Duration};

use gorego_tls::ClientTls;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    sync::{Notify, watch},
};
use tokio_rustls::TlsConnector;
use tokio_util::io::InspectReader;
use tonic::{
    Request,
    codegen::http::{HeaderMap, Uri, uri::InvalidUri},
    transport::{Channel, Endpoint},
};
use tower::{BoxError, ServiceExt as _};

use super::{RemoteAddress, RemoteError, RemoteOptions};
use gorego_storage::Chain;

/// The receive window of a stream, in bytes. It is extended when half of it arrived, so that it has to be
/// twice what the network holds: 1 Gbit/s over a round trip of 30 ms.
pub(super) const STREAM_WINDOW: u32 = 8 << 20;
/// The largest window that HTTP/2 allows: streams with slow readers must not stop the others. A budget
/// limits their sum.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// The largest frame, in bytes: fewer frames cost less.
const MAX_FRAME: u32 = 256 << 10;
/// The limit of an answer's headers and trailers. A status may have a long message and details; a
/// larger one fails the call. The default of h2 is 16 KiB, which some proxies exceed.
const MAX_HEADERS: u32 = 64 << 10;
/// The number of cancelled calls whose late data is ignored on a connection. Beyond it h2 answers late data with a
/// reset, and after 1024 resets it closes the connection with all other calls on it.
const ENDED_EARLY: usize = 4096;
const ENDED_EARLY_FOR: Duration = Duration::from_secs(30);
/// The idle time after which TCP checks a connection, and the time after which an unresponsive host is
/// given up.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const HOST_TIMEOUT: Duration = Duration::from_secs(30);
/// The interval of HTTP/2 pings while calls are in progress. gRPC servers close connections with more than one
/// ping in 5 minutes.
const PING: Duration = Duration::from_mins(6);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the headers of one call: the configured ones, the instances of gorego that the request passed,
/// the time limit, and those of the current call.
pub(super) fn headers(options: &RemoteOptions, timeout: Option<Duration>) -> HeaderMap {
    let mut request = Request::new(());
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    let mut headers = request.into_parts().0.into_headers();
    if let Ok(chain) = options.chain.header().parse() {
        headers.insert(Chain::HEADER, chain);
    }
    for (name, value) in &*options.headers.borrow().0 {
        headers.append(name, value.clone());
    }
    options.call_headers.add(&mut headers);
    headers
}

/// Creates a connection for calls of services that are not those of a store. It is opened on first use.
pub fn channel(options: &RemoteOptions) -> Result<Channel, RemoteError> {
    let options = RemoteOptions {
        connections: 1,
        ..options.clone()
    };
    let channels = channels(&options, &Arc::default())?;
    channels.into_iter().next().ok_or(RemoteError::NoRuntime)
}

/// Creates channels that connect on first use, and notify `lost` when a connection ends.
pub(super) fn channels(
    options: &RemoteOptions,
    lost: &Arc<Notify>,
) -> Result<Vec<Channel>, RemoteError> {
    let timeout = options.timeout.min(MAX_CONNECT_TIMEOUT);
    let endpoint = endpoint(options)?.connect_timeout(timeout);
    let tls = options.tls.clone();
    let with_name = |tls| server_name(endpoint.uri()).map(|name| (tls, name));
    let tls = tls.map(with_name).transpose()?;
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(timeout));
    tcp.set_keepalive(Some(KEEP_ALIVE));
    tcp.set_keepalive_interval(Some(KEEP_ALIVE_INTERVAL));
    tcp.set_tcp_user_timeout(Some(HOST_TIMEOUT));
    let connector = Arc::new(Connector {
        address: options.address.clone(),
        tcp,
        tls,
        lost: Arc::clone(lost),
    });
    let connect = tower::service_fn(move |uri| Arc::clone(&connector).connect(uri));
    let channels = 0..options.connections.max(1);
    Ok(channels
        .map(|_| endpoint.connect_with_connector_lazy(connect.clone()))
        .collect())
}

fn server_name(uri: &Uri) -> Result<ServerName<'static>, RemoteError> {
    let host = uri.host().unwrap_or_default();
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
    name.map_err(|why| RemoteError::Address {
        address: uri.to_string(),
        why: why.to_string(),
    })
}

/// A connection in plain text or encrypted.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

struct Connector {
    address: RemoteAddress,
    tcp: HttpConnector,
    /// The settings of new connections, and the name that the peer's certificate has to prove.
    tls: Option<(watch::Receiver<ClientTls>, ServerName<'static>)>,
    lost: Arc<Notify>,
}

impl Connector {
    async fn connect(self: Arc<Self>, uri: Uri) -> Result<TokioIo<Box<dyn Stream>>, BoxError> {
        let stream: Box<dyn Stream> = match &self.address {
            RemoteAddress::Tcp(_) => Box::new(self.tcp.clone().oneshot(uri).await?.into_inner()),
            RemoteAddress::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        let stream = watched(stream, Arc::clone(&self.lost));
        let Some((current, name)) = &self.tls else {
            return Ok(TokioIo::new(Box::new(stream)));
        };
        let config = Arc::clone(&current.borrow().config);
        let connecting = TlsConnector::from(config).connect(name.clone(), stream);
        let stream = connecting.await.map_err(|why| {
            let reason = why.get_ref().and_then(|why| why.downcast_ref());
            reason.map_or_else(|| why.to_string(), gorego_tls::describe)
        })?;
        if stream.get_ref().1.alpn_protocol() != Some(gorego_tls::HTTP2) {
            return Err("it supports TLS, but not HTTP/2, which gRPC needs".into());
        }
        Ok(TokioIo::new(Box::new(stream)))
    }
}

/// A connection that notifies `lost` when it ends.
fn watched<S: AsyncRead + AsyncWrite>(
    stream: S,
    lost: Arc<Notify>,
) -> InspectReader<S, impl FnMut(&[u8]) + Send + Unpin> {
    let guard = Guard(lost);
    InspectReader::new(stream, move |_: &[u8]| {
        let _held = &guard;
    })
}

struct Guard(Arc<Notify>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

fn endpoint(options: &RemoteOptions) -> Result<Endpoint, RemoteError> {
    let authority = match &options.address {
        RemoteAddress::Tcp(authority) => authority,
        RemoteAddress::Unix(_) => "localhost",
    };
    let error = |why: String| RemoteError::Address {
        address: authority.to_owned(),
        why,
    };
    let scheme = options.tls.as_ref().map_or("http", |_| "https");
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|why| error(why.to_string()))?;
    let uri = endpoint.uri();
    if let RemoteAddress::Tcp(_) = options.address
        && (uri.port().is_none() || uri.path() != "/" || uri.query().is_some())
    {
        return Err(error("a host, a colon and a port are expected".to_owned()));
    }
    let endpoint = endpoint
        .user_agent(concat!("gorego/", env!("CARGO_PKG_VERSION")))
        .map_err(|why| error(why.to_string()))?
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_max_concurrent_reset_streams(ENDED_EARLY)
        .http2_reset_stream_duration(ENDED_EARLY_FOR)
        // This limit protects servers from clients. The backing cache is trusted.
        .http2_max_local_error_reset_streams(None);
    // The connector encrypts, and tonic does not know of it.
    let origin = format!("{scheme}://{authority}").parse();
    Ok(endpoint.origin(origin.map_err(|why: InvalidUri| error(why.to_string()))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_are_rarer_than_grpc_servers_tolerate_by_default() {
        assert!(PING > Duration::from_mins(5));
    }
}
