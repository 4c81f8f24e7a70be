//! Requests to a collector: OTLP over gRPC or HTTP, on one connection.

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use gorego_tls::ClientTls;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{ACCEPT, CONTENT_TYPE, HOST, TE, USER_AGENT},
    response,
};
use http_body_util::{BodyExt as _, Collected, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::Code;

/// The time limit of a request, with the connection that it may need.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most of an answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// The most of a collector's message that is logged, in characters.
const MAX_MESSAGE: usize = 200;

const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const HTTP_PATH: &str = "/v1/traces";
const GRPC: &str = "application/grpc";
const PROTOBUF: &str = "application/x-protobuf";

const USE_OTLP_PORT: &str = "check telemetry.tracing_endpoint and telemetry.tracing_protocol; by custom, collectors \
                             accept grpc at port 4317 and http at port 4318";
const USE_KEY: &str = "check telemetry.tracing_headers";

/// The protocol of a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// Protobuf over HTTP/1.
    Http,
}

/// The options of a collector.
#[derive(Clone, Debug)]
pub struct CollectorOptions {
    /// `host:port`.
    pub address: String,
    /// The path before that of OTLP, for HTTP.
    pub path: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The TLS settings of new connections, which may change; `None` for plain text.
    pub tls: Option<watch::Receiver<ClientTls>>,
    /// Headers of new requests, which may change.
    pub headers: watch::Receiver<HeaderMap>,
}

/// A collector of traces. It connects when it is first needed.
pub struct Collector {
    options: CollectorOptions,
    uri: Uri,
    host: HeaderValue,
    name: ServerName<'static>,
    connection: Option<Connection>,
}

/// A request that the collector did not accept.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) why: String,
    /// Set if the same request may succeed later.
    pub(super) is_temporary: bool,
}

impl Failure {
    fn temporary(why: impl fmt::Display) -> Self {
        Self {
            why: format!("{why}; {USE_OTLP_PORT}"),
            is_temporary: true,
        }
    }

    fn refused(why: impl fmt::Display, remedy: &str) -> Self {
        Self {
            why: format!("{why}; {remedy}"),
            is_temporary: false,
        }
    }
}

impl Collector {
    /// Creates a collector. The error names an address that cannot be used.
    pub fn new(options: CollectorOptions) -> Result<Self, String> {
        let address = &options.address;
        let (scheme, path) = match options.protocol {
            Protocol::Grpc => ("http", GRPC_PATH.to_owned()),
            Protocol::Http => {
                let base = options.path.strip_suffix(HTTP_PATH);
                let base = base.unwrap_or(&options.path);
                ("http", format!("{base}{HTTP_PATH}"))
            }
        };
        let scheme = if options.tls.is_some() {
            "https"
        } else {
            scheme
        };
        let error = |why: &dyn fmt::Display| format!("{address}: {why}");
        let uri = format!("{scheme}://{address}{path}").parse::<Uri>();
        let uri = uri.map_err(|why| error(&why))?;
        let name = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let name = ServerName::try_from(name.to_owned()).map_err(|why| error(&why))?;
        let host = HeaderValue::try_from(address).map_err(|why| error(&why))?;
        Ok(Self {
            uri,
            host,
            name,
            options,
            connection: None,
        })
    }

    /// Returns the address, for messages.
    pub(super) fn address(&self) -> &str {
        &self.options.address
    }

    /// Sends an encoded `ExportTraceServiceRequest`. Returns the number of spans that the collector refused, with its
    /// reason.
    pub(super) async fn send(&mut self, message: &Bytes) -> Result<(u64, String), Failure> {
        // A connection that was idle may have ended unnoticed.
        if let Some(idle) = self.connection.take()
            && let Ok(answer) = self.exchange(idle, message).await
        {
            return answer;
        }
        let exchange = async {
            let connection = self.connect().await?;
            self.exchange(connection, message).await?
        };
        let late = |_| Err(Failure::temporary(format!("no answer within {TIMEOUT:?}")));
        timeout(TIMEOUT, exchange).await.unwrap_or_else(late)
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let stream = TcpStream::connect(&self.options.address).await;
        let stream = stream.map_err(|why| Failure::temporary(format!("cannot connect: {why}")))?;
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.options.tls else {
            return Connection::open(stream, self.options.protocol).await;
        };
        let mut config = rustls::ClientConfig::clone(&tls.borrow().config);
        if self.options.protocol == Protocol::Http {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
        }
        let connecting = TlsConnector::from(Arc::new(config)).connect(self.name.clone(), stream);
        let stream = connecting.await.map_err(|why| {
            let reason = why.get_ref().and_then(|why| why.downcast_ref());
            let reason = reason.map_or_else(|| why.to_string(), gorego_tls::describe);
            Failure::temporary(format!("no TLS: {reason}; check telemetry.tracing_ca_file"))
        })?;
        Connection::open(stream, self.options.protocol).await
    }

    /// Sends a request and reads its answer. The outer error is that of the connection.
    async fn exchange(
        &mut self,
        mut connection: Connection,
        message: &Bytes,
    ) -> Result<Result<(u64, String), Failure>, Failure> {
        let request = self.request(message);
        let exchange = async {
            let answer = connection.send(request).await.map_err(broken)?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            Ok((head, body.map_err(broken)?))
        };
        let exchanged = timeout(TIMEOUT, exchange).await;
        let late = |_| Err(Failure::temporary(format!("no answer within {TIMEOUT:?}")));
        let (head, body) = exchanged.unwrap_or_else(late)?;
        self.connection = Some(connection);
        Ok(match self.options.protocol {
            Protocol::Grpc => judge_grpc(&head, body),
            Protocol::Http => judge_http(&head, &body.to_bytes()),
        })
    }

    fn request(&self, message: &Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(message.clone()));
        *request.method_mut() = Method::POST;
        *request.headers_mut() = self.options.headers.borrow().clone();
        let agent = HeaderValue::from_static(concat!("gorego/", env!("CARGO_PKG_VERSION")));
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, agent);
        match self.options.protocol {
            Protocol::Grpc => {
                headers.insert(TE, HeaderValue::from_static("trailers"));
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
                let mut framed = BytesMut::with_capacity(5 + message.len());
                framed.put_u8(0);
                framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
                framed.put_slice(message);
                *request.version_mut() = Version::HTTP_2;
                *request.uri_mut() = self.uri.clone();
                *request.body_mut() = Full::new(framed.freeze());
            }
            Protocol::Http => {
                headers.insert(HOST, self.host.clone());
                headers.insert(ACCEPT, HeaderValue::from_static(PROTOBUF));
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
                *request.uri_mut() = Uri::from_static(HTTP_PATH);
                if let Some(path) = self.uri.path_and_query() {
                    *request.uri_mut() = path.clone().into();
                }
            }
        }
        request
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Collector").field(&self.address()).finish()
    }
}

fn broken(why: impl fmt::Display) -> Failure {
    Failure::temporary(format!("its answer was cut off: {why}"))
}

enum Sender {
    Grpc(http2::SendRequest<Full<Bytes>>),
    Http(http1::SendRequest<Full<Bytes>>),
}

/// A connection, and the task that drives it.
struct Connection(Sender, JoinSet<()>);

impl Connection {
    async fn open<S>(stream: S, protocol: Protocol) -> Result<Self, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, mut driving) = (TokioIo::new(stream), JoinSet::new());
        let sender = match protocol {
            Protocol::Grpc => {
                let opened = http2::handshake(TokioExecutor::new(), stream).await;
                let (sender, driver) = opened.map_err(broken)?;
                driving.spawn(async { drop(driver.await) });
                Sender::Grpc(sender)
            }
            Protocol::Http => {
                let (sender, driver) = http1::handshake(stream).await.map_err(broken)?;
                driving.spawn(async { drop(driver.await) });
                Sender::Http(sender)
            }
        };
        Ok(Self(sender, driving))
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        debug_assert_eq!(
            self.1.len(),
            1,
            "the connection is driven until this is dropped"
        );
        match &mut self.0 {
            Sender::Grpc(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::Http(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

fn judge_http(head: &response::Parts, body: &[u8]) -> Result<(u64, String), Failure> {
    let kind = content_type(head);
    match head.status {
        StatusCode::OK if kind.starts_with(PROTOBUF) || body.is_empty() => Ok(refused(body)),
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            Err(Failure::temporary(format!("it answers {}", head.status)))
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Failure::refused(
            format!("it answers {}", head.status),
            USE_KEY,
        )),
        status => {
            let why = format!("it answers {status} ({kind:?}), which is not OTLP");
            Err(Failure::refused(why, USE_OTLP_PORT))
        }
    }
}

fn judge_grpc(head: &response::Parts, body: Collected<Bytes>) -> Result<(u64, String), Failure> {
    let trailers = body.trailers().cloned().unwrap_or_default();
    let status = tonic::Status::from_header_map(&without_details(trailers))
        .or_else(|| tonic::Status::from_header_map(&without_details(head.headers.clone())));
    let Some(status) = status.filter(|_| content_type(head).starts_with(GRPC)) else {
        // As of a web server or a balancer.
        return judge_http(head, b"no gRPC");
    };
    let message: String = status.message().chars().take(MAX_MESSAGE).collect();
    let why = format!("{:?}: {message:?}", status.code());
    match status.code() {
        Code::Ok => {
            let mut body = body.to_bytes();
            body.advance(body.len().min(5));
            Ok(refused(&body))
        }
        Code::Unauthenticated | Code::PermissionDenied => Err(Failure::refused(why, USE_KEY)),
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Err(Failure::temporary(why)),
        _ => Err(Failure::refused(why, USE_OTLP_PORT)),
    }
}

/// Removes details, on which tonic panics if they are not Base64.
fn without_details(mut headers: HeaderMap) -> HeaderMap {
    headers.remove(tonic::Status::GRPC_STATUS_DETAILS);
    headers
}

fn content_type(head: &response::Parts) -> &str {
    let kind = head.headers.get(CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.get(..kind.len().min(60)).unwrap_or_default()
}

/// Returns the number of spans that the collector refused, and its reason.
fn refused(body: &[u8]) -> (u64, String) {
    let answer = ExportTraceServiceResponse::decode(body).unwrap_or_default();
    let partial = answer.partial_success.unwrap_or_default();
    let reason = partial.error_message.chars().take(MAX_MESSAGE).collect();
    (u64::try_from(partial.rejected_spans).unwrap_or(0), reason)
}
