//! Clients that break the protocol.

use std::io;

use crate::common::{
    frames::{DATA, END_STREAM, Frames, GOAWAY, PREFACE},
    raw::{RawClient, announce, finish, framed, send},
    *,
};
use bytes::Bytes;
use gorego_limits::Budget;
use gorego_server::Options;
use gorego_tls::{ClientAuth, ServerFiles};
use http::HeaderMap;
use reapi::bytestream::byte_stream_client::ByteStreamClient;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::Instant,
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const READ: &str = "/google.bytestream.ByteStream/Read";
const CAPABILITIES: &str = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities";
/// A frame without flags.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

async fn assert_serves(server: &Server) {
    let digest = server.has(b"content").await;
    let found = read(&mut server.bytes().await, &format!("blobs/{digest}"), 0, 0).await;
    assert_eq!(found.unwrap(), b"content");
}

/// Waits until the server disconnects.
async fn hung_up(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let end = tokio::time::timeout(LONG, stream.read_to_end(&mut rest)).await;
    match end.expect("the server hangs up") {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
}

#[tokio::test]
async fn a_client_of_another_protocol_is_disconnected() {
    let server = Server::start().await;
    let garbage = noise(10_000, 1);
    let frames = [PREFACE, &garbage].concat();
    for sent in [
        b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n".as_slice(),
        b"\x16\x03\x01\x02\x00",
        &garbage,
        &frames,
        // A frame that is longer than accepted.
        &[PREFACE, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
    ] {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        hung_up(&mut stream).await;
    }
    assert_serves(&server).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_finish_the_handshake_is_disconnected() {
    let server = Server::start().await;
    for sent in [b"".as_slice(), &PREFACE[..10]] {
        let start = Instant::now();
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"");
        assert_eq!(start.elapsed().as_secs(), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_no_pings_is_disconnected() {
    let server = Server::start().await;
    let start = Instant::now();
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    stream
        .write_all(&[PREFACE, SETTINGS].concat())
        .await
        .unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 30 + 20);
}

#[tokio::test]
async fn many_broken_connections_do_not_stop_the_server() {
    let server = Server::limited(|options| options.transport.limits.max_connections = 8).await;
    for round in 0..200 {
        let mut stream = TcpStream::connect(&server.address).await.unwrap();
        let sent = [PREFACE, &noise(round, 1)].concat();
        stream
            .write_all(&sent[..round.min(sent.len())])
            .await
            .unwrap();
    }
    assert_serves(&server).await;
}

#[tokio::test]
async fn a_connection_without_a_call_makes_room_for_another() {
    let server = Server::limited(|options| options.transport.limits.max_connections = 1).await;
    let digest = server.has(b"content").await;
    let name = format!("blobs/{digest}");
    // One that never answers either.
    let mut idle = TcpStream::connect(&server.address).await.unwrap();
    idle.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
    idle.read_u8().await.unwrap();
    let mut second = server.bytes().await;
    let found = tokio::time::timeout(LONG, read(&mut second, &name, 0, 0)).await;
    assert_eq!(found.expect("an answer").unwrap(), b"content");
    hung_up(&mut idle).await;
    // A client that knows gRPC notices nothing.
    let mut third = server.bytes().await;
    for client in [&mut third, &mut second] {
        let found = tokio::time::timeout(LONG, read(client, &name, 0, 0)).await;
        assert_eq!(found.expect("an answer").unwrap(), b"content");
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_while_all_others_have_calls() {
    let server = Server::limited(|options| options.transport.limits.max_connections = 1).await;
    let digest = server.has(b"content").await;
    let name = format!("blobs/{digest}");
    let channel = server.connect().await;
    let mut first = ByteStreamClient::new(channel.clone());
    let watch = HealthClient::new(channel)
        .watch(HealthCheckRequest::default())
        .await
        .unwrap();
    assert_eq!(read(&mut first, &name, 0, 0).await.unwrap(), b"content");

    let mut tasks = tokio::task::JoinSet::new();
    let (mut second, second_name) = (TcpStream::connect(&server.address).await, name.clone());
    let stream = second.as_mut().unwrap();
    // The server does not serve it: nothing comes back.
    stream.write_all(PREFACE).await.unwrap();
    for _ in 0..50 {
        assert_eq!(
            read(&mut first, &second_name, 0, 0).await.unwrap(),
            b"content"
        );
        let nothing = stream.try_read(&mut [0; 10]);
        assert_eq!(nothing.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
    drop((first, watch));
    let mut second = second.unwrap();
    tasks.spawn(async move { second.read_u8().await.map(|_| ()) });
    let greeted = tokio::time::timeout(LONG, tasks.join_next()).await;
    greeted.unwrap().unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn requests_other_than_grpc_get_an_http_status() {
    let server = Server::start().await;
    let mut client = RawClient::connect(&server, 65_535).await;
    for kind in [
        "text/html",
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/grpc+json",
    ] {
        let (response, mut request) = client.open_as(READ, kind, HeaderMap::new());
        request.send_data(Bytes::new(), true).unwrap();
        assert_eq!(finish(response).await.http_status, 415, "{kind}");
    }
    for kind in ["application/grpc", "application/grpc+proto"] {
        let (response, mut request) = client.open_as(READ, kind, HeaderMap::new());
        request.send_data(framed(b""), true).unwrap();
        let code = finish(response).await.code;
        assert_eq!(code, Some(Code::InvalidArgument), "{kind}");
    }
}

#[tokio::test]
async fn encoded_messages_are_refused() {
    let server = Server::start().await;
    let mut client = RawClient::connect(&server, 65_535).await;
    let headers = HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-encoding"),
        http::HeaderValue::from_static("gzip"),
    )]);
    let (response, mut request) = client.open_as(READ, "application/grpc", headers);
    request.send_data(framed(b""), true).unwrap();
    assert_eq!(finish(response).await.code, Some(Code::Unimplemented));
    let response = client.call(READ, Bytes::from_static(b"\x01\0\0\0\0")).await;
    assert_eq!(response.code, Some(Code::Unimplemented));
}

#[tokio::test]
async fn unknown_methods_are_unimplemented() {
    let server = Server::start().await;
    let mut client = RawClient::connect(&server, 65_535).await;
    for path in [
        "/",
        "/no.such.Service/Method",
        "/google.bytestream.ByteStream/NoSuchMethod",
        "/google.bytestream.ByteStream",
        "/google.bytestream.ByteStream/Read/more",
        "/build.bazel.remote.execution.v2.Execution/Execute",
    ] {
        let response = client.call(path, framed(b"")).await;
        assert_eq!(response.code, Some(Code::Unimplemented), "{path}");
    }
}

#[tokio::test]
async fn requests_that_are_not_one_message_are_refused() {
    let server = Server::start().await;
    let mut client = RawClient::connect(&server, 65_535).await;
    let find = "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs";
    for (what, body) in [
        ("nothing", Bytes::new()),
        ("half a header", Bytes::from_static(b"\0\0\0")),
        ("half a message", framed(b"12345").slice(..7)),
        ("two messages", [framed(b""), framed(b"")].concat().into()),
        (
            "a message and a half",
            [framed(b""), framed(b"12").slice(..3)].concat().into(),
        ),
        ("an unknown flag", Bytes::from_static(b"\x07\0\0\0\0")),
        ("no protobuf", framed(b"\xff\xff\xff\xff")),
    ] {
        let response = client.call(find, body).await;
        assert_eq!(response.code, Some(Code::InvalidArgument), "{what}");
    }
}

#[tokio::test]
async fn a_message_announced_as_too_large_is_refused_before_it_arrives() {
    let server = Server::start().await;
    let mut client = RawClient::connect(&server, 65_535).await;
    // Its limit is that of a batch, whose code the protocol names.
    let batch = "build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs";
    for method in [
        batch,
        "build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs",
        "build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs",
        "build.bazel.remote.execution.v2.ContentAddressableStorage/GetTree",
        "build.bazel.remote.execution.v2.ActionCache/GetActionResult",
        "build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
        "build.bazel.remote.execution.v2.Capabilities/GetCapabilities",
        "google.bytestream.ByteStream/Read",
        "google.bytestream.ByteStream/QueryWriteStatus",
        "grpc.health.v1.Health/Check",
    ] {
        let (response, mut request) = client.open(&format!("/{method}"));
        let header = Bytes::from_static(b"\0\xff\xff\xff\xff");
        request.send_data(header, false).unwrap();
        let response = finish(response).await;
        let refusal = if method == batch {
            Code::InvalidArgument
        } else {
            Code::ResourceExhausted
        };
        assert_eq!(response.code, Some(refusal), "{method}");
        assert!(response.message.contains("most"), "{}", response.message);
    }
}

#[tokio::test]
async fn requests_beyond_the_memory_for_requests_wait_for_each_other() {
    const UPDATE: &str =
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs";
    const MIB: usize = 1024 * 1024;
    const LEN: usize = 18 * MIB;
    // The most bytes that the server does not read but accepts, with few connections.
    const WINDOW: usize = 4 * MIB;
    const READ: usize = 6 * MIB;
    let mut options = Options::default();
    options.transport.limits.grace = LONG;
    options.transport.memory.windows = Budget::memory("windows", 64 * MIB as u64);
    options.transport.memory.requests = Budget::memory("requests", 2 * LEN as u64);
    let server = Server::with(options).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(RawClient::connect(&server, 65_535).await);
    }
    let [first, second, third] = clients.as_mut_slice() else {
        panic!("three clients");
    };
    let (_first, mut first) = announce(first, UPDATE, LEN, READ).await;
    let _second = announce(second, UPDATE, LEN, READ).await;
    // Memory suffices for two requests; nothing of the third is read.
    let (_third, mut third) = announce(third, UPDATE, LEN, WINDOW - 5).await;
    let mut more = Box::pin(send(&mut third, 1));
    tokio::select! {
        biased;
        () = &mut more => panic!("the third request was read"),
        () = send(&mut first, READ) => {}
    }
    first.send_reset(h2::Reason::CANCEL);
    tokio::time::timeout(LONG, more).await.unwrap();
}

#[tokio::test]
async fn too_many_headers_cost_no_other_call_on_the_connection() {
    let server = Server::start().await;
    let mut client = RawClient::connect(&server, 65_535).await;
    let (other, mut request) = client.open(READ);
    for (bytes, status) in [(17_000, 200), (60_000, 200), (100_000, 431)] {
        let mut headers = HeaderMap::new();
        headers.insert("x-large", "x".repeat(bytes).parse().unwrap());
        let (response, _request) = client.open_as(READ, "application/grpc", headers);
        let refused = finish(response).await;
        assert_eq!(refused.http_status, status, "{bytes}");
        if status == 200 {
            assert_eq!(refused.code, Some(Code::ResourceExhausted), "{bytes}");
            assert!(refused.message.contains("16384"), "{refused:?}");
        }
    }
    request.send_data(framed(b""), true).unwrap();
    assert_eq!(finish(other).await.code, Some(Code::InvalidArgument));
}

#[tokio::test]
async fn calls_cancelled_in_a_burst_cost_no_other_call_on_the_connection() {
    let server = Server::start().await;
    let mut client = Frames::connect(&server).await;
    let other = client.open(CAPABILITIES);
    assert!(client.sync().await);
    for _ in 0..1000 {
        let cancelled = client.open(READ);
        client.reset(cancelled);
    }
    client.add(DATA, END_STREAM, other, &framed(b""));
    client.send().await;
    loop {
        let frame = client.next().await.expect("an open connection");
        assert_ne!(frame.kind, GOAWAY, "{frame:?}");
        if frame.kind == DATA && frame.stream == other {
            return;
        }
    }
}

#[tokio::test]
async fn a_client_that_cancels_all_its_calls_is_disconnected() {
    let server = Server::start().await;
    let mut client = Frames::connect(&server).await;
    for _ in 0..100 {
        let calls: Vec<_> = (0..100).map(|_| client.open(READ)).collect();
        // Each is being answered when it is cancelled.
        if !client.sync().await {
            assert_serves(&server).await;
            return;
        }
        for call in calls {
            client.reset(call);
        }
    }
    panic!("10,000 calls were cancelled on one connection");
}

#[tokio::test]
async fn connections_in_their_handshake_make_room_before_active_ones() {
    let server = Server::limited(|options| options.transport.limits.max_connections = 2).await;
    let mut mute = TcpStream::connect(&server.address).await.unwrap();
    let mut client = RawClient::connect(&server, 65_535).await;
    let before = client.call(READ, framed(b"")).await;
    assert_eq!(before.code, Some(Code::InvalidArgument), "{before:?}");
    assert_serves(&server).await;
    hung_up(&mut mute).await;
    let after = client.call(READ, framed(b"")).await;
    assert_eq!(after.code, Some(Code::InvalidArgument), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_finish_the_tls_handshake_is_disconnected() {
    let folder = tempfile::tempdir().unwrap();
    let identity = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    std::fs::write(&certificate, identity.cert.pem()).unwrap();
    std::fs::write(&key, identity.signing_key.serialize_pem()).unwrap();
    let files = ServerFiles {
        cert_file: certificate,
        key_file: key,
        client_auth: ClientAuth::None,
    };
    let tls = watch::channel(files.load().unwrap()).1;
    let server = Server::limited(|options| options.transport.tls = Some(tls)).await;
    let start = Instant::now();
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    // The beginning of a client's hello, and no more.
    stream.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 10);
}
