//! A collector of traces (OTLP) that records what it is sent.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::span::{Event, SpanKind},
};
use prost::Message as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

/// The longest wait for spans; far more than they need.
const PATIENCE: Duration = Duration::from_mins(1);

/// The protocol of a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollectorProtocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP/1.
    Http,
    /// HTTP/1, with a page for every request.
    Pages,
}

/// A span as it arrived.
#[derive(Clone, Debug)]
pub struct Span {
    /// The name.
    pub name: String,
    /// The trace id in hex.
    pub trace: String,
    /// The span id in hex.
    pub id: String,
    /// The parent's span id in hex, or nothing.
    pub parent: String,
    /// The kind.
    pub kind: SpanKind,
    /// The attributes of the span, and those of its resource.
    pub attributes: BTreeMap<String, String>,
    /// The messages of the events.
    pub events: Vec<String>,
}

impl Span {
    /// Returns an attribute, or nothing.
    pub fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

/// The requests that arrived.
#[derive(Clone, Debug, Default)]
pub struct ReceivedRequests {
    /// The spans, in order of arrival.
    pub spans: Vec<Span>,
    /// The headers of the last request.
    pub headers: BTreeMap<String, String>,
    /// The path of the last request.
    pub path: String,
}

/// A running collector.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    arrived: watch::Receiver<ReceivedRequests>,
    _serving: JoinSet<()>,
}

impl Collector {
    /// Starts a collector on a free loopback port.
    pub async fn start(protocol: CollectorProtocol) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (sender, arrived) = watch::channel(ReceivedRequests::default());
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let arrived = sender.clone();
                connections.spawn(async move {
                    match protocol {
                        CollectorProtocol::Grpc => grpc(stream, &arrived).await,
                        CollectorProtocol::Http => http1(stream, Some(&arrived)).await,
                        CollectorProtocol::Pages => http1(stream, None).await,
                    }
                });
            }
        });
        Self {
            address,
            arrived,
            _serving: serving,
        }
    }

    /// Returns the setting that sends traces to this collector.
    pub fn setting(&self) -> String {
        format!("telemetry.tracing_endpoint={}", self.address)
    }

    /// Returns the address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns what has arrived by now.
    pub fn arrived(&self) -> ReceivedRequests {
        self.arrived.borrow().clone()
    }

    /// Waits until spans that fulfill the condition have arrived. Returns all.
    pub async fn wait_for(&self, condition: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let mut arrived = self.arrived.clone();
        let fulfilled = timeout(PATIENCE, arrived.wait_for(|now| condition(&now.spans))).await;
        let Ok(fulfilled) = fulfilled else {
            panic!("only these spans arrived: {:#?}", self.arrived().spans);
        };
        fulfilled.expect("the collector runs").spans.clone()
    }
}

fn record(
    arrived: &watch::Sender<ReceivedRequests>,
    path: &str,
    headers: &HeaderMap,
    message: &[u8],
) {
    let request = ExportTraceServiceRequest::decode(message).expect("an export request");
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = headers.iter();
    let headers = headers.map(|(name, value)| (name.to_string(), text(value)));
    arrived.send_modify(|arrived| {
        path.clone_into(&mut arrived.path);
        arrived.headers = headers.collect();
        for group in request.resource_spans {
            let resource = group.resource.unwrap_or_default().attributes;
            let spans = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
            arrived.spans.extend(spans.map(|span| {
                Span {
                    kind: span.kind(),
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    attributes: attributes(&resource)
                        .chain(attributes(&span.attributes))
                        .collect(),
                    events: span.events.iter().map(event).collect(),
                }
            }));
        }
    });
}

fn event(event: &Event) -> String {
    let attributes = attributes(&event.attributes);
    let attributes: Vec<_> = attributes
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    format!("{} {}", event.name, attributes.join(" "))
}

fn attributes(pairs: &[KeyValue]) -> impl Iterator<Item = (String, String)> {
    pairs.iter().map(|pair| {
        let value = pair.value.clone().unwrap_or(AnyValue { value: None });
        let value = match value.value {
            Some(Value::StringValue(text)) => text,
            Some(Value::IntValue(number)) => number.to_string(),
            other => format!("{other:?}"),
        };
        (pair.key.clone(), value)
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

async fn grpc(stream: TcpStream, arrived: &watch::Sender<ReceivedRequests>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    let mut calls = JoinSet::new();
    while let Some(Ok((request, mut answer))) = connection.accept().await {
        let arrived = arrived.clone();
        calls.spawn(async move {
            let (head, mut body) = request.into_parts();
            let mut message = BytesMut::new();
            while let Some(Ok(piece)) = body.data().await {
                let _ = body.flow_control().release_capacity(piece.len());
                message.extend_from_slice(&piece);
            }
            record(&arrived, head.uri.path(), &head.headers, &message[5..]);
            let response = Response::builder().header("content-type", "application/grpc");
            let response = response.body(()).expect("a response");
            let mut body = answer
                .send_response(response, false)
                .expect("an open stream");
            let _ = body.send_data(Bytes::from_static(&[0; 5]), false);
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().expect("a value"));
            let _ = body.send_trailers(trailers);
        });
    }
}

/// Answers the requests of a connection, with pages if none are recorded.
async fn http1(stream: TcpStream, arrived: Option<&watch::Sender<ReceivedRequests>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match stream.read_line(&mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) if line.trim().is_empty() => break,
                Ok(_) => lines.push(line),
            }
        }
        let pair = |line: &String| {
            let (name, value) = line.split_once(':')?;
            Some((name.trim().parse().ok()?, value.trim().parse().ok()?))
        };
        let headers: HeaderMap = lines.iter().skip(1).filter_map(pair).collect();
        let len = headers
            .get("content-length")
            .and_then(|len| len.to_str().ok());
        let mut body = vec![0; len.and_then(|len| len.parse().ok()).unwrap_or(0)];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let answer = if let Some(arrived) = arrived {
            let path = lines[0].split(' ').nth(1).unwrap_or_default();
            record(arrived, path, &headers, &body);
            "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"
        } else {
            "HTTP/1.1 404 Not Found\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>"
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
