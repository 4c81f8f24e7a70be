//! Connections to a peer, made when they are first needed.

use std::{fmt, sync::Arc, time::Duration};

use gorego_tls::ClientTls;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    sync::{Notify, watch},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Request,
    codegen::http::{HeaderMap, HeaderName, HeaderValue, Uri, uri::InvalidUri},
    transport::{Channel, Endpoint},
};
use tower::{BoxError, Service, ServiceExt as _};

use super::{RemoteAddress, RemoteError, RemoteOptions, canary::watched};
use gorego_storage::Chain;

/// What a stream may have under way. Peers are told to go on when half of it has come, so that it
/// takes twice what the network holds to keep them going: 1 Gbit/s over 30 ms there and back.
pub(super) const STREAM_WINDOW: u32 = 8 << 20;
/// As large as HTTP/2 allows: streams that nobody reads must not stop the others. Together they are
/// bounded by who starts them.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Fewer, larger frames are less work.
const MAX_FRAME: u32 = 256 << 10;
/// The limit of an answer's headers and trailers. A status may have a long message and details; a
/// larger one fails the call. The default of h2 is 16 KiB, which some proxies exceed.
const MAX_HEADERS: u32 = 64 << 10;
/// The number of calls remembered on a connection after they ended early. Until the peer learns of
/// the end, its data for such a call is ignored. For calls beyond this number h2 answers with a
/// reset, and after 1024 resets it closes the connection with all other calls on it.
const ENDED_EARLY: usize = 4096;
const ENDED_EARLY_FOR: Duration = Duration::from_secs(30);
/// How often a quiet connection is checked, by TCP, and after how long a host that confirms nothing
/// is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const HOST_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a peer is asked, over HTTP/2, whether it is still there while calls are under way. gRPC's
/// servers close connections on which that happens more often than every 5 minutes.
const PING: Duration = Duration::from_mins(6);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Headers that each request carries. Their values are secrets, and never shown.
#[derive(Clone, Default)]
pub struct RemoteHeaders(Arc<HeaderMap>);

impl RemoteHeaders {
    /// Checks names and values. The error names a header that cannot be sent.
    pub fn parse(headers: &[(String, String)]) -> Result<Self, RemoteError> {
        let mut parsed = HeaderMap::new();
        for (name, value) in headers {
            let error = |why| RemoteError::Header {
                name: name.clone(),
                why,
            };
            let lower = name.to_ascii_lowercase();
            if lower.ends_with("-bin") {
                return Err(error("ends with -bin, which gRPC keeps for binary values"));
            }
            if lower.starts_with("grpc-") || RESERVED.contains(&lower.as_str()) {
                return Err(error("is one that gRPC sets itself"));
            }
            let name = HeaderName::from_bytes(lower.as_bytes())
                .map_err(|_| error("is no name of an HTTP header"))?;
            let mut value = HeaderValue::from_str(value)
                .map_err(|_| error("its value holds more than visible ASCII characters"))?;
            value.set_sensitive(true);
            parsed.append(name, value);
        }
        Ok(Self(Arc::new(parsed)))
    }
}

impl fmt::Debug for RemoteHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

const RESERVED: [&str; 5] = ["te", "content-type", "user-agent", "host", "content-length"];

/// Returns the headers of one call: those configured, the instances of gorego that the request passed,
/// and the time limit that the peer is told.
pub(super) fn headers(
    configured: &RemoteHeaders,
    chain: &Chain,
    timeout: Option<Duration>,
) -> HeaderMap {
    let mut request = Request::new(());
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    let mut headers = request.into_parts().0.into_headers();
    if let Ok(chain) = chain.header().parse() {
        headers.insert(Chain::HEADER, chain);
    }
    for (name, value) in &*configured.0 {
        headers.append(name, value.clone());
    }
    headers
}

/// Channels that connect when they are first used, and notify `lost` when a connection ends.
pub(super) fn channels(
    options: &RemoteOptions,
    lost: &Arc<Notify>,
) -> Result<Vec<Channel>, RemoteError> {
    let endpoint = endpoint(options)?;
    let tls = match &options.tls {
        Some(current) => Some(Secure::new(current.clone(), endpoint.uri())?),
        None => None,
    };
    let open = || match &options.address {
        RemoteAddress::Tcp(_) => {
            let connect = tcp(connect_timeout(options)).map_err(BoxError::from);
            lazily(&endpoint, tls.clone(), lost, connect)
        }
        RemoteAddress::Unix(path) => {
            let path = Arc::new(path.clone());
            let connect = tower::service_fn(move |_| {
                let path = Arc::clone(&path);
                async move { Ok(TokioIo::new(UnixStream::connect(&*path).await?)) }
            });
            lazily(&endpoint, tls.clone(), lost, connect)
        }
    };
    Ok((0..options.connections.max(1)).map(|_| open()).collect())
}

/// A channel over the connections of `connector`, encrypted where `tls` is given.
fn lazily<C, S>(
    endpoint: &Endpoint,
    tls: Option<Secure>,
    lost: &Arc<Notify>,
    connector: C,
) -> Channel
where
    C: Service<Uri, Response = TokioIo<S>, Error = BoxError> + Clone + Send + 'static,
    C::Future: Send,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let lost = Arc::clone(lost);
    let connector = connector
        .map_response(move |stream| TokioIo::new(watched(stream.into_inner(), Arc::clone(&lost))));
    let Some(tls) = tls else {
        return endpoint.connect_with_connector_lazy(connector);
    };
    let encrypted = tower::service_fn(move |uri| {
        let (connecting, tls) = (connector.clone().oneshot(uri), tls.clone());
        async move {
            let stream = connecting.await?;
            tls.handshake(stream.into_inner()).await
        }
    });
    endpoint.connect_with_connector_lazy(encrypted)
}

fn connect_timeout(options: &RemoteOptions) -> Duration {
    options.timeout.min(MAX_CONNECT_TIMEOUT)
}

fn tcp(connect_timeout: Duration) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(connect_timeout));
    connector.set_keepalive(Some(KEEP_ALIVE));
    connector.set_keepalive_interval(Some(KEEP_ALIVE_INTERVAL));
    connector.set_tcp_user_timeout(Some(HOST_TIMEOUT));
    connector
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
    let scheme = if options.tls.is_some() {
        "https"
    } else {
        "http"
    };
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
        .connect_timeout(connect_timeout(options))
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_max_concurrent_reset_streams(ENDED_EARLY)
        .http2_reset_stream_duration(ENDED_EARLY_FOR)
        // That protects servers from clients. The backing cache is trusted not to attack its own.
        .http2_max_local_error_reset_streams(None);
    // The connector encrypts, and tonic does not know of it.
    let origin = format!("{scheme}://{authority}").parse();
    Ok(endpoint.origin(origin.map_err(|why: InvalidUri| error(why.to_string()))?))
}

/// TLS with the peer, as it is set when a connection is made.
#[derive(Clone)]
struct Secure {
    current: watch::Receiver<ClientTls>,
    name: ServerName<'static>,
}

impl Secure {
    fn new(current: watch::Receiver<ClientTls>, uri: &Uri) -> Result<Self, RemoteError> {
        let host = uri.host().unwrap_or_default();
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
        let name = name.map_err(|why| RemoteError::Address {
            address: uri.to_string(),
            why: why.to_string(),
        })?;
        Ok(Self { current, name })
    }

    async fn handshake<S>(self, stream: S) -> Result<TokioIo<TlsStream<S>>, BoxError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = Arc::clone(&self.current.borrow().config);
        let connecting = TlsConnector::from(config).connect(self.name, stream);
        let stream = connecting.await.map_err(|why| {
            let reason = why.get_ref().and_then(|why| why.downcast_ref());
            reason.map_or_else(|| why.to_string(), gorego_tls::describe)
        })?;
        if stream.get_ref().1.alpn_protocol() != Some(gorego_tls::HTTP2) {
            return Err("it speaks TLS, but not HTTP/2, which gRPC needs".into());
        }
        Ok(TokioIo::new(stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_server_is_pinged_more_often_than_it_takes_by_default() {
        assert!(PING > Duration::from_mins(5));
    }
}
