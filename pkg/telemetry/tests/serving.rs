//! Tests of the HTTP server: its answers, and its limits against slow and greedy clients.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{net::SocketAddr, time::Duration};

use gorego_storage::BreakerState;
use gorego_telemetry::{
    Calls, Metrics, Sources,
    web::{Components, Health, Site, Ui, serve},
};
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
/// The longest wait of the server for the head of a request.
const LIFETIME: Duration = Duration::from_secs(10);

/// A server on a port of its own.
struct Running {
    address: SocketAddr,
    shutdown: CancellationToken,
    served: JoinSet<()>,
}

impl Running {
    async fn start() -> Self {
        Self::with(Ui::Local, Health::default()).await
    }

    async fn with(ui: Ui, health: Health) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_, breaker) = watch::channel(BreakerState::Open);
        let metrics = Metrics::new(Sources {
            breaker: Some(breaker),
            ..Sources::new("1.2.3")
        });
        let shutdown = CancellationToken::new();
        let mut served = JoinSet::new();
        let site = Site {
            version: "1.2.3",
            metrics,
            ui,
            pprof: true,
            health,
            components: Box::new(Components::default),
            calls: Calls::default(),
            actions: None,
            peers: None,
            builds: None,
            tiers: Vec::new(),
        };
        served.spawn(serve(listener, site, shutdown.clone()));
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
        self.request_with(line, "host: localhost\r\n").await
    }

    /// Sends a request with these headers over a connection of its own.
    async fn request_with(&self, line: &str, headers: &str) -> String {
        let request = format!("{line} HTTP/1.1\r\nconnection: close\r\n{headers}\r\n");
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
async fn metrics_are_served_in_the_format_of_prometheus() {
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
    let all = running.request("GET /page.css").await;
    let (_, content) = all.split_once("\r\n\r\n").unwrap();
    let head = running.request("HEAD /page.css").await;
    let length = format!("content-length: {}\r\n", content.len());
    assert!(head.contains(&length), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn errors_for_other_paths_and_methods_name_the_accepted_ones() {
    let running = Running::start().await;
    for path in ["/metrics/", "/favicon.ico", "/nowhere?a=b"] {
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

#[tokio::test]
async fn errors_are_pages_in_a_browser_and_text_elsewhere() {
    let running = Running::start().await;
    let local = "host: localhost\r\naccept: text/html,*/*;q=0.8\r\n";
    let foreign = "host: cache.example\r\naccept: text/html\r\n";
    for (path, headers, status, shown) in [
        ("/nowhere", local, "404", "<p>not found; the page is at /,"),
        ("/builds?from=x", local, "400", "<p>Failed to deserialize"),
        (
            "/builds",
            foreign,
            "403",
            "<p>the page is served as localhost",
        ),
    ] {
        let response = running.request_with(&format!("GET {path}"), headers).await;
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{response}"
        );
        assert!(response.contains("content-type: text/html"), "{response}");
        assert!(
            response.contains(shown) && response.ends_with("</html>"),
            "{response}"
        );
        // Its client may load nothing else.
        assert_eq!(response.contains("href"), status != "403", "{response}");
    }
    let response = running.request_with("GET /api/v1/nothing", local).await;
    assert!(response.contains("content-type: text/plain"), "{response}");
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

#[tokio::test]
async fn connections_without_a_complete_request_give_way_to_new_ones() {
    let running = Running::start().await;
    for begun in ["", "GET /met", "GET /metrics HTTP/1.1\r\nhost: here\r\n"] {
        let mut begun_requests = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            begun_requests.push(running.send(begun).await);
        }
        let healthy = running.request("GET /healthz").await;
        assert!(healthy.starts_with("HTTP/1.1 200 "), "{healthy}");
        // The newest are still served.
        let mut last = begun_requests.pop().unwrap();
        let rest = "GET /metrics HTTP/1.1\r\nhost: here\r\n\r\n".strip_prefix(begun);
        last.write_all(rest.unwrap().as_bytes()).await.unwrap();
        assert!(response(last).await.starts_with("HTTP/1.1 200 "));
    }
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

#[tokio::test]
async fn a_connection_serves_one_request() {
    let running = Running::start().await;
    let request = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let response = response(running.send(&request.repeat(2)).await).await;
    assert!(response.contains("connection: close\r\n"), "{response}");
    assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{response}");
}

#[tokio::test]
async fn a_request_with_content_is_refused() {
    let running = Running::start().await;
    for (headers, body) in [
        ("content-length: 3\r\n", "abc"),
        ("transfer-encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"),
    ] {
        let request = format!(
            "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n{body}"
        );
        let response = response(running.send(&request).await).await;
        assert!(response.starts_with("HTTP/1.1 413 "), "{response}");
    }
}

/// The paths with their content types if they are served.
const PAGES: [(&str, &str); 7] = [
    ("/", "text/html; charset=utf-8"),
    ("/statusz", "application/json"),
    ("/api/v1/status", "application/json"),
    ("/page.css", "text/css; charset=utf-8"),
    ("/page.js", "text/javascript; charset=utf-8"),
    ("/icon.svg", "image/svg+xml"),
    ("/events", "text/event-stream"),
];

#[tokio::test]
async fn the_page_is_served_to_the_clients_that_its_setting_allows() {
    for (ui, host, status) in [
        (Ui::Local, "localhost", 200),
        (Ui::Local, "[::1]:9090", 200),
        (Ui::Local, "evil.example", 403),
        (Ui::Local, "localhost\r\nx-forwarded-for: 10.0.0.1", 403),
        (Ui::On, "evil.example", 200),
        (Ui::Off, "localhost", 403),
    ] {
        let running = Running::with(ui, Health::default()).await;
        let head = |path| format!("HEAD {path}");
        let host = format!("host: {host}\r\n");
        for (path, content_type) in PAGES {
            let response = running.request_with(&head(path), &host).await;
            let expected = format!("HTTP/1.1 {status} ");
            assert!(response.starts_with(&expected), "{path}: {response}");
            let content_type = format!("content-type: {content_type}\r\n");
            assert!(
                status != 200 || response.contains(&content_type),
                "{response}"
            );
            assert!(response.contains("frame-ancestors 'none'"), "{response}");
        }
        for path in ["/metrics", "/healthz", "/readyz"] {
            let response = running.request_with(&head(path), &host).await;
            assert!(response.starts_with("HTTP/1.1 200 "), "{path}: {response}");
        }
        if status == 403 {
            let response = running.request_with("GET /", &host).await;
            assert!(response.contains("telemetry.ui is "), "{response}");
        }
    }
}

#[tokio::test]
async fn programs_of_other_sites_get_nothing() {
    let running = Running::with(Ui::On, Health::default()).await;
    for (path, status) in [
        ("/", 200),
        ("/statusz", 403),
        ("/api/v1/status", 403),
        ("/events", 403),
    ] {
        let headers = "host: here\r\nsec-fetch-site: cross-site\r\n";
        let response = running.request_with(&format!("HEAD {path}"), headers).await;
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{path}: {response}"
        );
    }
}

#[tokio::test]
async fn readiness_follows_the_parts_and_names_them() {
    let (disk, usable) = watch::channel(true);
    let health = Health {
        disk: Some(usable),
        ..Health::default()
    };
    let shutdown = health.shutdown.clone();
    let running = Running::with(Ui::Off, health).await;
    let readyz = async || running.request("GET /readyz").await;
    assert!(
        readyz()
            .await
            .ends_with("\r\n\r\nready\nserver: ok: serving\ndata directory: ok: usable\n")
    );
    disk.send_replace(false);
    let response = readyz().await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert!(
        response.contains("data directory: failed: cannot be written"),
        "{response}"
    );
    disk.send_replace(true);
    assert!(readyz().await.starts_with("HTTP/1.1 200 "));
    shutdown.cancel();
    assert!(readyz().await.contains("\nserver: failed: shutting down\n"));
    assert!(
        running
            .request("GET /healthz")
            .await
            .starts_with("HTTP/1.1 200 ")
    );
}

#[tokio::test]
async fn files_of_the_page_are_sent_again_only_when_they_change() {
    let running = Running::start().await;
    let response = running.request("GET /page.css").await;
    let (_, tag) = response.split_once("etag: ").unwrap();
    let (tag, _) = tag.split_once("\r\n").unwrap();
    for (tag, status) in [(tag, 304), ("\"other\"", 200)] {
        let headers = format!("host: localhost\r\nif-none-match: {tag}\r\n");
        let response = running.request_with("GET /page.css", &headers).await;
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{response}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_page_gets_numbers_each_second() {
    let running = Running::start().await;
    let mut stream = running
        .send("GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await;
    let mut moments = Vec::new();
    let mut received = String::new();
    while moments.len() < 4 {
        let mut part = vec![0; 65_536];
        let length = stream.read(&mut part).await.unwrap();
        assert_ne!(length, 0, "{received}");
        let part = std::str::from_utf8(&part[..length]).unwrap();
        received.push_str(part);
        moments.extend(
            part.matches("data: {\"snapshot\":{")
                .map(|_| Instant::now()),
        );
    }
    for pair in moments.windows(2) {
        assert_eq!((pair[1] - pair[0]).as_secs(), 1);
    }
    assert!(
        received.contains("\"fragments\":[{\"id\":\"state\""),
        "{received}"
    );
}

#[tokio::test]
async fn open_pages_leave_half_of_the_connections_to_others_and_stay_open() {
    let running = Running::start().await;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS / 2 {
        let mut stream = running
            .send("GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .await;
        let mut begun = [0; 15];
        stream.read_exact(&mut begun).await.unwrap();
        assert_eq!(&begun, b"HTTP/1.1 200 OK");
        open.push(stream);
    }
    let response = running.request("GET /events").await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(running.send("").await);
    }
    let response = running.request("GET /metrics").await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    running.stop().await;
    for mut stream in open {
        let mut events = Vec::new();
        stream.read_to_end(&mut events).await.unwrap();
        assert!(events.ends_with(b"0\r\n\r\n"), "closed before its end");
    }
}

#[tokio::test]
async fn open_pages_do_not_delay_the_shutdown() {
    let running = Running::start().await;
    let mut stream = running
        .send("GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await;
    stream.read_u8().await.unwrap();
    running.stop().await;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(b"0\r\n\r\n"));
}

#[tokio::test]
async fn profiles_have_a_limited_length_and_memory_has_no_profile() {
    let running = Running::start().await;
    for (path, answer) in [
        ("profile?seconds=0", "400 Bad Request"),
        ("profile?seconds=121", "400 Bad Request"),
        ("profile?seconds=soon", "400 Bad Request"),
        ("heap", "501 Not Implemented"),
    ] {
        let response = running.request(&format!("GET /debug/pprof/{path}")).await;
        let expected = format!("HTTP/1.1 {answer}\r\n");
        assert!(response.starts_with(&expected), "{path}: {response}");
    }
}

#[tokio::test]
async fn profiles_are_for_this_machine_also_where_the_page_is_for_all() {
    let running = Running::with(Ui::On, Health::default()).await;
    let heap = "GET /debug/pprof/heap";
    for (headers, status) in [
        ("host: localhost\r\n", 501),
        ("host: cache.example\r\n", 403),
        ("host: localhost\r\nx-forwarded-for: 192.0.2.1\r\n", 403),
    ] {
        let response = running.request_with(heap, headers).await;
        let expected = format!("HTTP/1.1 {status} ");
        assert!(response.starts_with(&expected), "{headers}: {response}");
        assert!(
            status == 501 || response.contains("telemetry.ui"),
            "{response}"
        );
    }
}
