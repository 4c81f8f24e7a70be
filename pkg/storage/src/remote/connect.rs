//! Connections to a peer, made when they are first needed.

use std::{sync::Arc, time::Duration};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::{
    Chain, RemoteAddress, RemoteError, RemoteOptions, RemoteTls, answers::Answers, pool::Lease,
};

/// What a stream may have under way. Peers are told to go on when half of it has come, so that it
/// takes twice what the network holds to keep them going: 1 Gbit/s over 30 ms there and back.
pub(super) const STREAM_WINDOW: u32 = 8 << 20;
/// As large as HTTP/2 allows: streams that nobody reads must not stop the others. Together they are
/// bounded by who starts them.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Fewer, larger frames are less work.
const MAX_FRAME: u32 = 256 << 10;
/// What the headers and trailers of an answer may take. A status may have a long message and details; what
/// is larger breaks the call. h2 takes 16 KiB by itself, which some proxies exceed.
const MAX_HEADERS: u32 = 64 << 10;
/// How many calls that ended early are remembered on a connection, and for how long: until their peer has
/// heard of it, what it still sends for them is passed over. Beyond that it is answered with a reset, and
/// h2 closes a connection after 1024 of these, by itself, with all other calls on it.
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

/// A connection that adds what each request carries.
pub(super) type Link = InterceptedService<Answers, Headers>;

/// What each request carries.
#[derive(Clone)]
pub(super) struct Headers {
    metadata: Arc<MetadataMap>,
    /// The instances of gorego that the request passed.
    chain: Option<AsciiMetadataValue>,
    /// What the peer is told of how long it has.
    timeout: Option<Duration>,
    /// Of the connection that they go over.
    _lease: Option<Arc<Lease>>,
}

impl Headers {
    pub(super) fn parse(headers: &[(String, String)]) -> Result<Self, RemoteError> {
        let mut metadata = MetadataMap::new();
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
            let key = AsciiMetadataKey::from_bytes(lower.as_bytes())
                .map_err(|_| error("is no name of an HTTP header"))?;
            let mut value: AsciiMetadataValue = value
                .parse()
                .map_err(|_| error("its value holds more than visible ASCII characters"))?;
            value.set_sensitive(true);
            metadata.append(key, value);
        }
        Ok(Self {
            metadata: Arc::new(metadata),
            chain: None,
            timeout: None,
            _lease: None,
        })
    }

    /// As these, for one call, which may have a time limit.
    pub(super) fn of(&self, lease: Lease, chain: &Chain, timeout: Option<Duration>) -> Self {
        Self {
            metadata: Arc::clone(&self.metadata),
            chain: chain.header().parse().ok(),
            timeout,
            _lease: Some(Arc::new(lease)),
        }
    }
}

const RESERVED: [&str; 5] = ["te", "content-type", "user-agent", "host", "content-length"];

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        if let Some(chain) = &self.chain {
            request.metadata_mut().insert(Chain::HEADER, chain.clone());
        }
        for header in self.metadata.iter() {
            if let tonic::metadata::KeyAndValueRef::Ascii(key, value) = header {
                request.metadata_mut().append(key.clone(), value.clone());
            }
        }
        Ok(request)
    }
}

/// Channels that connect when they are first used.
pub(super) fn channels(options: &RemoteOptions) -> Result<Vec<Channel>, RemoteError> {
    let endpoint = endpoint(options)?;
    let open = || match &options.address {
        RemoteAddress::Tcp(_) => {
            endpoint.connect_with_connector_lazy(tcp(connect_timeout(options)))
        }
        RemoteAddress::Unix(path) => {
            let path = Arc::new(path.clone());
            endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
                let path = Arc::clone(&path);
                async move { UnixStream::connect(&*path).await.map(TokioIo::new) }
            }))
        }
    };
    Ok((0..options.connections.max(1)).map(|_| open()).collect())
}

fn connect_timeout(options: &RemoteOptions) -> Duration {
    options.timeout.min(MAX_CONNECT_TIMEOUT)
}

fn tcp(connect_timeout: Duration) -> HttpConnector {
    let mut connector = HttpConnector::new();
    // TLS comes on top.
    connector.enforce_http(false);
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
    let endpoint = Endpoint::from_shared(format!("{scheme}://{authority}"))
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
    match &options.tls {
        Some(tls) => with_tls(endpoint, tls),
        None => Ok(endpoint),
    }
}

fn with_tls(endpoint: Endpoint, tls: &RemoteTls) -> Result<Endpoint, RemoteError> {
    let mut config = ClientTlsConfig::new();
    config = match &tls.ca_pem {
        Some(pem) => {
            check_certificates("certificates of authorities", pem)?;
            config.ca_certificate(Certificate::from_pem(pem))
        }
        None => config.with_native_roots(),
    };
    if let Some((certificate, key)) = &tls.identity_pem {
        check_certificates("client certificate", certificate)?;
        PrivateKeyDer::from_pem_slice(key)
            .map_err(|why| tls_error("client key", why.to_string()))?;
        config = config.identity(Identity::from_pem(certificate, key));
    }
    endpoint.tls_config(config).map_err(|why| {
        let why = match std::error::Error::source(&why) {
            Some(source) => source.to_string(),
            None => why.to_string(),
        };
        tls_error("TLS", why)
    })
}

fn check_certificates(what: &'static str, pem: &[u8]) -> Result<(), RemoteError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|why| tls_error(what, why.to_string()))?;
    if certificates.is_empty() {
        return Err(tls_error(what, "there is none".to_owned()));
    }
    Ok(())
}

const fn tls_error(what: &'static str, why: String) -> RemoteError {
    RemoteError::Tls { what, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_server_is_pinged_more_often_than_it_takes_by_default() {
        assert!(PING > Duration::from_mins(5));
    }
}
