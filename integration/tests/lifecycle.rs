//! Tests of the start, refused starts and the shutdown of the server.
#![cfg(test)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use gorego_integration::{
    client::Client,
    content::{blob, digest_of, uuid},
    process::{Process, describe},
    server::{self, Descriptors, Server},
};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use tempfile::TempDir;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

const SIZE: usize = 2 * 1024 * 1024;

/// The preface of an HTTP/2 client and a SETTINGS frame.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Opens idle HTTP/2 connections.
fn idle_connections(server: &Server, count: usize) -> Vec<TcpStream> {
    let connect = |_| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        // The server may already have closed it for another.
        let _ = stream.write_all(GREETING);
        stream
    };
    (0..count).map(connect).collect()
}

async fn assert_serves(client: &Client, seed: u64) {
    let content = blob(seed, 100_000);
    client.upload_whole(&content).await.unwrap();
    let digest = digest_of(&content);
    assert!(client.download(&digest).await.unwrap() == content);
}

/// Checks that the start was refused with status 2 and one line that names the cause.
fn assert_refused((status, log): (ExitStatus, String), cause: &str) {
    assert_eq!(status.code(), Some(2), "{}\n{log}", describe(status));
    assert_eq!(log.lines().count(), 1, "one line, not:\n{log}");
    assert!(log.contains(cause), "{cause} is not named in: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_a_running_upload_complete_and_exits_0() {
    let mut server = Server::start(&["limits.drain_timeout=1m"]);
    let client = Client::connect(server.address()).await;
    let content = blob(1, SIZE);
    let digest = digest_of(&content);
    let name = uuid(&mut fastrand::Rng::with_seed(1));
    let mut health = HealthClient::new(client.channel());
    let watch = health.watch(HealthCheckRequest::default()).await;
    let mut watch = watch.expect("the health service").into_inner();
    let first = watch.message().await.unwrap().expect("a first status");
    assert_eq!(first.status(), ServingStatus::Serving);

    let mut upload = client.begin_upload(&name, &digest);
    upload.send(&content.slice(..SIZE / 2)).await;
    client.wait_until_committed(&name, &digest, SIZE / 2).await;
    server.ask_to_stop();
    let next = watch.message().await.unwrap().expect("a second status");
    assert_eq!(next.status(), ServingStatus::NotServing);
    upload.send_last(&content.slice(SIZE / 2..)).await;
    let response = upload.response().await.expect("the upload completes");
    assert_eq!(response.committed_size, digest.size_bytes);
    drop((watch, health, client));

    let status = server.wait();
    assert_eq!(status.code(), Some(0), "{}", describe(status));
    let server = server.restart();
    let client = Client::connect(server.address()).await;
    assert!(client.download(&digest).await.unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_server_during_an_upload() {
    for (signal, status) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut server = Server::start(&["limits.drain_timeout=1h", "limits.idle_timeout=1h"]);
        let client = Client::connect(server.address()).await;
        let digest = digest_of(&blob(1, SIZE));
        let name = uuid(&mut fastrand::Rng::with_seed(1));
        let mut health = HealthClient::new(client.channel());
        let watch = health.watch(HealthCheckRequest::default()).await;
        let mut watch = watch.expect("the health service").into_inner();
        watch.message().await.unwrap().expect("a first status");
        let mut upload = client.begin_upload(&name, &digest);
        upload.send(&blob(1, SIZE).slice(..SIZE / 2)).await;
        client.wait_until_committed(&name, &digest, SIZE / 2).await;

        server.signal(signal);
        let next = watch.message().await.unwrap().expect("a second status");
        assert_eq!(next.status(), ServingStatus::NotServing);
        server.signal(signal);
        let ended = server.wait();
        assert_eq!(ended.code(), Some(status), "{}", describe(ended));
    }
}

#[test]
fn sigint_shuts_an_idle_server_down_in_order() {
    let mut server = Server::start(&[]);
    server.signal(Signal::INT);
    let ended = server.wait();
    assert_eq!(ended.code(), Some(0), "{}", describe(ended));
    let state = fs::read_to_string(server.data().join("state")).unwrap();
    assert!(state.contains("clean=1"), "{state}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_saves_the_state_before_calls_drain() {
    let mut server = Server::start(&["limits.drain_timeout=1h", "limits.idle_timeout=1h"]);
    let client = Client::connect(server.address()).await;
    let state = server.data().join("state");
    let read = || fs::read_to_string(&state).unwrap_or_default();
    let before = read();
    let digest = digest_of(&blob(1, SIZE));
    let name = uuid(&mut fastrand::Rng::with_seed(1));
    let mut upload = client.begin_upload(&name, &digest);
    upload.send(&blob(1, SIZE).slice(..SIZE / 2)).await;
    client.wait_until_committed(&name, &digest, SIZE / 2).await;
    server.ask_to_stop();
    // Without a signal the state is written once a minute.
    let saved = async {
        while read() == before {
            tokio::task::yield_now().await;
        }
    };
    let saved = tokio::time::timeout(Duration::from_mins(1), saved).await;
    saved.expect("the state is saved during the upload");
    server.kill();
    assert!(read().contains("clean=0"), "{}", read());
}

#[test]
fn sigterm_shuts_the_server_down_if_the_log_is_closed() {
    let dir = TempDir::new().unwrap();
    let none: [&str; 0] = [];
    let mut command = server::command(&dir.path().join("data"), &none);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process = Process::spawn(&mut command);
    let log = BufReader::new(process.child_mut().stderr.take().unwrap());
    let mut lines = log.lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("listening on")));
    drop(lines);
    process.signal(Signal::TERM);
    let status = process.wait_within(Duration::from_mins(1));
    assert_eq!(status.code(), Some(0), "{}", describe(status));
}

#[test]
fn output_that_cannot_be_written_does_not_change_the_status() {
    let dir = TempDir::new().unwrap();
    let full = || fs::File::create("/dev/full").unwrap();
    let none: [&str; 0] = [];
    let mut print = server::command(dir.path(), &none);
    print.arg("config").stdout(full()).stderr(full());
    let printed = Process::spawn(&mut print).wait_within(Duration::from_mins(1));
    assert_eq!(printed.code(), Some(0), "{}", describe(printed));
    let mut refused = server::command(dir.path(), &["local_cache.colour=blue"]);
    refused.stdout(full()).stderr(full());
    let refused = Process::spawn(&mut refused).wait_within(Duration::from_mins(1));
    assert_eq!(refused.code(), Some(2), "{}", describe(refused));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_descriptors_is_raised_to_the_hard_limit() {
    let limit = Descriptors {
        soft: 128,
        hard: 4096,
    };
    let server = Server::start_limited(limit, &["limits.max_connections=1000"]);
    let _idle = idle_connections(&server, 500);
    assert_serves(&Client::connect(server.address()).await, 1).await;
    let log = server.log();
    assert!(!log.contains("max_connections"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_leave_descriptors_for_files_and_new_clients() {
    let limit = Descriptors {
        soft: 256,
        hard: 256,
    };
    let server = Server::start_limited(limit, &[]);
    server.wait_for_log("limits.max_connections = 10000 is reduced to 64");
    let _idle = idle_connections(&server, 300);
    assert_serves(&Client::connect(server.address()).await, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_closed_when_no_descriptor_is_left() {
    let server = Server::start(&[]);
    // Fewer descriptors than the server has divided.
    let limit = Rlimit {
        current: Some(64),
        maximum: Some(64),
    };
    let pid = Pid::from_raw(server.id().try_into().unwrap());
    prlimit(pid, Resource::Nofile, limit).unwrap();
    let served = async {
        // These clients answer pings, so that no timeout closes them.
        let mut idle = Vec::new();
        for _ in 0..60 {
            idle.push(Client::connect(server.address()).await);
        }
        assert_serves(&Client::connect(server.address()).await, 1).await;
    };
    let served = tokio::time::timeout(Duration::from_mins(1), served).await;
    served.expect("idle connections were closed");
}

#[test]
fn a_second_instance_on_the_same_data_directory_is_refused() {
    let server = Server::start(&[]);
    let data = server.data();
    let none: [&str; 0] = [];
    assert_refused(server::refusal(&data, &none), data.to_str().unwrap());
}

#[test]
fn a_busy_port_is_refused() {
    let dir = TempDir::new().unwrap();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let setting = format!("listen_addr={address}");
    assert_refused(server::refusal(dir.path(), &[setting]), &address);
}

#[test]
fn a_data_directory_that_cannot_be_written_is_refused() {
    let dir = TempDir::new().unwrap();
    // Not even root can create a directory below a file.
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let data = file.join("data");
    let none: [&str; 0] = [];
    assert_refused(server::refusal(&data, &none), data.to_str().unwrap());
}

#[test]
fn a_wrong_configuration_is_refused_with_every_problem_in_it() {
    let dir = TempDir::new().unwrap();
    let (status, log) = server::refusal(
        dir.path(),
        &[
            "local_cache.max_size_gb=plenty",
            "limits.max_connections=-1",
            "local_cache.colour=blue",
        ],
    );
    assert_eq!(status.code(), Some(2), "{}\n{log}", describe(status));
    for problem in ["plenty", "limits.max_connections", "local_cache.colour"] {
        assert!(log.contains(problem), "{problem} is not named in:\n{log}");
    }
}

#[test]
fn a_configuration_file_that_is_named_but_missing_is_refused() {
    let dir = TempDir::new().unwrap();
    let none: [&str; 0] = [];
    let mut command = server::command(dir.path(), &none);
    command.args(["--config", "/nonexistent/gorego.yaml"]);
    assert_refused(server::refusal_of(&mut command), "/nonexistent/gorego.yaml");
}

#[tokio::test]
async fn the_reason_of_a_miss_is_logged_at_the_level_debug() {
    for backing in ["", "backing_cache.target=grpc://127.0.0.1:1"] {
        let degrades = "backing_cache.on_outage=degrade";
        let mut settings = vec!["log_level=debug"];
        settings.extend([backing, degrades].iter().filter(|_| !backing.is_empty()));
        let server = Server::start(&settings);
        let client = Client::connect(server.address()).await;
        let action = digest_of(&blob(1, 10));
        client.get_action(&action).await.unwrap_err();
        let log = server.wait_for_log("action cache miss");
        assert!(log.contains("no result of action"), "{log}");
    }
}
