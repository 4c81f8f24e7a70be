//! The shutdown of a server.

use std::time::{Duration, Instant};

use crate::common::{
    frames::{DATA, END_STREAM, Frames, PREFACE},
    raw::{RawClient, framed},
    *,
};
use reapi::bytestream::ReadRequest;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

const READ: &str = "/google.bytestream.ByteStream/Read";

/// A server with this drain time-out.
async fn draining_for(drain_timeout: Duration) -> Server {
    Server::limited(|options| options.transport.limits.drain_timeout = drain_timeout).await
}

#[tokio::test]
async fn an_idle_server_shuts_down_at_once() {
    let server = draining_for(LONG * 100).await;
    let _idle = server.connect().await;
    let start = Instant::now();
    server.shutdown.cancel();
    server.ended().await.unwrap();
    assert!(start.elapsed() < LONG);
}

#[tokio::test]
async fn a_disconnected_client_does_not_delay_the_shutdown() {
    let server = draining_for(LONG * 100).await;
    let mut gone = TcpStream::connect(&server.address).await.unwrap();
    let greeting = [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    gone.write_all(&greeting).await.unwrap();
    gone.read_u8().await.unwrap();
    server.shutdown.cancel();
    // It never answers that it has heard of the end.
    server.ended().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_vanished_after_a_call_does_not_delay_the_shutdown() {
    let server = draining_for(LONG * 100).await;
    let mut gone = Frames::connect(&server).await;
    let stream = gone.open(READ);
    gone.add(DATA, END_STREAM, stream, &[]);
    gone.send().await;
    while gone.next().await.expect("a response").stream != stream {}
    let start = tokio::time::Instant::now();
    server.shutdown.cancel();
    server.ended().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn during_the_drain_uploads_finish_and_new_calls_are_unavailable() {
    let server = draining_for(LONG * 100).await;
    let content = noise(100_000, 1);
    let digest = sha256(&content);
    let mut upload = OpenUpload::start(server.bytes().await);
    let mut sent = messages(&upload_name("u", &digest), &content, 60_000).into_iter();
    upload.send(sent.next().unwrap());
    server.has_taken(60_000).await;
    let mut client = RawClient::connect(&server, 65_535).await;
    let before = client.call(READ, framed(b"")).await;
    assert_eq!(before.code, Some(Code::InvalidArgument), "{before:?}");

    server.shutdown.cancel();
    let refused = client.call(READ, framed(b"")).await;
    assert_eq!(refused.code, Some(Code::Unavailable), "{refused:?}");

    upload.send(sent.next().unwrap());
    assert_eq!(upload.answer().await.unwrap(), 100_000);
    assert_eq!(server.stored(&digest).await.unwrap(), content);
    drop(client);
    server.ended().await.unwrap();
}

#[tokio::test]
async fn a_call_that_does_not_end_is_cut_off_after_the_drain_time_out() {
    let server = draining_for(Duration::from_millis(50)).await;
    let content = noise(100_000, 1);
    let name = upload_name("u", &sha256(&content));
    let mut upload = OpenUpload::start(server.bytes().await);
    upload.send(messages(&name, &content, 60_000).swap_remove(0));
    server.has_taken(60_000).await;
    server.shutdown.cancel();
    assert!(upload.answer().await.is_err());
    server.ended().await.unwrap();
}

#[tokio::test]
async fn a_stalled_response_does_not_delay_the_shutdown() {
    let server = draining_for(Duration::from_millis(50)).await;
    let digest = server.has(&monotony(10_000_000)).await;
    let mut client = server.bytes().await;
    let request = ReadRequest {
        resource_name: format!("blobs/{digest}"),
        ..ReadRequest::default()
    };
    let mut response = client.read(request).await.unwrap().into_inner();
    response.message().await.unwrap().unwrap();
    server.shutdown.cancel();
    server.ended().await.unwrap();
}

#[tokio::test]
async fn connections_are_refused_after_the_shutdown() {
    let server = Server::start().await;
    let address = server.address.clone();
    TcpStream::connect(&address).await.unwrap();
    server.shutdown.cancel();
    server.ended().await.unwrap();
    assert!(TcpStream::connect(&address).await.is_err());
}

#[tokio::test]
async fn health_reports_not_serving_while_calls_drain() {
    let server = draining_for(LONG * 100).await;
    let content = noise(100_000, 1);
    let name = upload_name("u", &sha256(&content));
    let channel = server.connect().await;
    let mut health = HealthClient::new(channel.clone());
    let mut watched = health
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    let first = watched.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    let upload = OpenUpload::start(server.bytes().await);
    upload.send(messages(&name, &content, 60_000).swap_remove(0));
    server.has_taken(60_000).await;
    server.shutdown.cancel();
    let second = watched.message().await.unwrap().unwrap();
    assert_eq!(second.status(), ServingStatus::NotServing);
    assert!(watched.message().await.unwrap().is_none());
    drop((upload, channel, health));
    server.ended().await.unwrap();
}
