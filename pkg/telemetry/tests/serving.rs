//! Tests of the HTTP server: its answers, and its limits against slow and greedy clients.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{net::SocketAddr, time::Duration};

use gorego_storage::BreakerState;
use gorego_telemetry::{Calls, Metrics, Sources, serve};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// The number of connections that the server serves at once.
const CONNECTIONS: usize = 64;
/// The longest time that the server keeps a connection open.
const LIFETIME: Duration = Duration::from_secs(10);

/// A server on a port of its own.
struct Running {
    address: SocketAddr,
    shutdown: CancellationToken,
    served: JoinSet<()>,
}

impl Running {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_, breaker) = watch::channel(BreakerState::Open);
        let metrics = Metrics::new(Sources {
            version: "1.2.3",
            breaker: Some(breaker),
            certificates: Box::new(Vec::new),
            journal: None,
            calls: Calls::default(),
        });
        let shutdown = CancellationToken::new();
        let mut served = JoinSet::new();
        served.spawn(serve(listener, metrics, shutdown.clone()));
        Self {
            address,
            shutdown,
            served,
        }
    }

    /// Sends the beginning of a request over a new connection.
    async fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// Sends a request without a body and returns the whole response.
    async fn request(&self, line: &str) -> String {
        let request = format!("{line} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        response(self.send(&request).await).await
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        self.served.join_next().await.unwrap().unwrap();
    }
}

async fn response(mut stream: TcpStream) -> String {
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

#[tokio::test]
async fn a_connection_is_closed_after_the_metrics_are_sent() {
    let running = Running::start().await;
    let response = running.request("GET /metrics").await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    let content_type = "content-type: text/plain; version=0.0.4";
    assert!(response.contains(content_type), "{response}");
    let open = "\ngorego_backing_cache_breaker_state{state=\"open\"} 1\n";
    assert!(response.contains(open), "{response}");
}

#[tokio::test]
async fn head_returns_the_length_without_the_content() {
    let running = Running::start().await;
    let all = running.request("GET /metrics").await;
    let (_, content) = all.split_once("\r\n\r\n").unwrap();
    let head = running.request("HEAD /metrics").await;
    let length = format!("content-length: {}\r\n", content.len());
    assert!(head.contains(&length), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn errors_for_other_paths_and_methods_name_the_accepted_ones() {
    let running = Running::start().await;
    for path in ["/", "/metrics/", "/favicon.ico"] {
        let response = running.request(&format!("GET {path}")).await;
        assert!(response.starts_with("HTTP/1.1 404 "), "{response}");
        assert!(response.contains("at /metrics\n"), "{response}");
    }
    for method in ["POST", "DELETE", "OPTIONS"] {
        let response = running.request(&format!("{method} /metrics")).await;
        assert!(response.starts_with("HTTP/1.1 405 "), "{response}");
        assert!(response.contains("allow: GET, HEAD\r\n"), "{response}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_too_slowly_is_disconnected() {
    let running = Running::start().await;
    for begun in ["", "GET /met", "GET /metrics HTTP/1.1\r\nhost: here\r\n"] {
        let start = Instant::now();
        let mut stream = running.send(begun).await;
        // The connection is reset if the server leaves something unread.
        let _ = stream.read_to_end(&mut Vec::new()).await;
        assert!(start.elapsed() >= LIFETIME, "{begun}");
        assert!(start.elapsed() < 2 * LIFETIME, "{begun}");
    }
}

#[tokio::test]
async fn an_endless_head_of_a_request_is_refused() {
    let running = Running::start().await;
    let mut stream = running.send("GET /metrics HTTP/1.1\r\n").await;
    let line = format!("x: {}\r\n", "y".repeat(1000));
    for _ in 0..10_000 {
        if stream.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
    panic!("10 MB of headers were accepted");
}

#[tokio::test(start_paused = true)]
async fn connections_beyond_the_limit_wait() {
    let running = Running::start().await;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(running.send("").await);
    }
    let start = Instant::now();
    let response = running.request("GET /metrics").await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    // Served only after a silent connection was closed.
    assert!(start.elapsed() > LIFETIME / 2);
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_slow_clients() {
    for begun in ["", "GET /met"] {
        let running = Running::start().await;
        let _held = running.send(begun).await;
        // An answer shows that the earlier connection was accepted, too.
        running.request("GET /metrics").await;
        let (start, address) = (Instant::now(), running.address);
        running.stop().await;
        assert!(start.elapsed() <= Duration::from_secs(2), "{begun}");
        assert!(TcpStream::connect(address).await.is_err());
    }
}
