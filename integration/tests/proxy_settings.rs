//! Tests of the settings of `backing_cache`, and of the capabilities announced to clients.
#![cfg(test)]

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use gorego_integration::{
    client::Client,
    content::{blob, digest_of},
    peer::{Fault, FaultyPeer, Method, Offer, Times},
    server::{self, Server},
};
use reapi::v2::{
    ActionResult, GetCapabilitiesRequest, capabilities_client::CapabilitiesClient, compressor,
    digest_function::Value,
};
use tempfile::TempDir;
use tokio::{
    io,
    net::{TcpStream, UnixListener},
    task::JoinSet,
};
use tonic::Code;

const MIB: usize = 1024 * 1024;

/// Forwards connections on a unix socket to the server.
async fn forward(socket: &UnixListener, server: SocketAddr) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        let (mut near, _) = socket.accept().await.expect("a connection");
        connections.spawn(async move {
            let mut far = TcpStream::connect(server).await?;
            io::copy_bidirectional(&mut near, &mut far).await
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backing_cache_is_reached_through_a_unix_socket() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cache");
    let peer = FaultyPeer::start();
    let mut socket = JoinSet::new();
    let (listener, address) = (UnixListener::bind(&path).unwrap(), peer.address());
    socket.spawn(async move { forward(&listener, address).await });
    let server = Server::in_front_of(&format!("unix:{}", path.display()), &[]);
    let client = Client::connect(server.address()).await;
    let content = blob(1, 1000);
    client
        .batch_upload(std::slice::from_ref(&content))
        .await
        .unwrap();
    assert_eq!(peer.blob(&digest_of(&content)), Some(content));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_to_the_backing_cache_have_the_configured_instance_name() {
    let peer = FaultyPeer::start();
    let server = Server::in_front_of(&peer.grpc_url(), &["backing_cache.instance_name=team/one"]);
    let client = Client::connect(server.address()).await;
    let action = digest_of(b"action");
    let result = ActionResult {
        exit_code: 7,
        ..ActionResult::default()
    };
    peer.put_action("team/one", &action, result.clone());
    assert_eq!(client.get_action(&action).await.unwrap(), result);
    client.find_missing(vec![digest_of(b"x")]).await.unwrap();
    let asked = peer.calls(Method::FindMissingBlobs);
    assert!(
        asked.iter().all(|call| call.instance == "team/one"),
        "{asked:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_are_compressed_if_the_backing_cache_supports_it() {
    let peer = FaultyPeer::with(Offer {
        compressors: vec![compressor::Value::Zstd],
        ..Offer::default()
    });
    let content = Bytes::from(vec![7; 3 * MIB]);
    let zstd = ["backing_cache.compression=zstd"];
    let here = Server::in_front_of(&peer.grpc_url(), &zstd);
    let client = Client::connect(here.address()).await;
    client.upload("a-b", &content).await.unwrap();
    assert!(
        peer.blob(&digest_of(&content))
            .is_some_and(|there| there == content)
    );
    assert!(
        peer.bytes_written() < MIB as u64,
        "{}",
        peer.bytes_written()
    );

    let there = Server::in_front_of(&peer.grpc_url(), &zstd);
    let client = Client::connect(there.address()).await;
    assert!(client.download(&digest_of(&content)).await.unwrap() == content);
    assert!(peer.bytes_read() < MIB as u64, "{}", peer.bytes_read());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_and_password_of_a_target_are_sent_and_never_logged() {
    let peer = FaultyPeer::start();
    let target = format!("grpc://user:let%2Dmein@{}", peer.address());
    let server = Server::in_front_of(&target, &[]);
    let client = Client::connect(server.address()).await;
    client.find_missing(vec![digest_of(b"x")]).await.unwrap();
    let asked = peer.calls(Method::FindMissingBlobs);
    // `user:let-mein` in Base64.
    let basic = Some("Basic dXNlcjpsZXQtbWVpbg==");
    assert_eq!(asked[0].header("authorization"), basic);
    peer.inject_everywhere(Times::Always, Fault::Answer(Code::PermissionDenied));
    let refused = client.find_missing(vec![digest_of(b"y")]).await;
    let log = server.wait_for_log("in plain text");
    let messages = format!("{:?}{log}", refused.unwrap_err());
    assert!(
        !messages.contains("mein") && !messages.contains("dXNlcj"),
        "{messages}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backing_cache_that_is_the_server_itself_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cache");
    let socket = UnixListener::bind(&path).unwrap();
    for settings in [&[][..], &["backing_cache.on_outage=degrade"]] {
        let server = Server::in_front_of(&format!("unix:{}", path.display()), settings);
        let itself = forward(&socket, server.address());
        let calls = async {
            let client = Client::connect(server.address()).await;
            let content = blob(1, MIB);
            let digest = digest_of(&content);
            let found = client.find_missing(vec![digest.clone()]).await;
            let read = client.download(&digest).await;
            let written = client.upload_whole(&content).await;
            [found.map(drop), read.map(drop), written]
        };
        let refused = tokio::select! {
            refused = calls => refused,
            never = itself => match never {},
        };
        for refused in refused {
            let refused = refused.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
            assert!(
                refused.message().contains("backing_cache.target"),
                "{refused}"
            );
        }
        let warning = "leads back to this server";
        let log = server.wait_for_log(warning);
        assert_eq!(log.matches(warning).count(), 1, "{log}");
    }
}

#[test]
fn missing_files_are_reported_with_their_keys() {
    let dir = TempDir::new().unwrap();
    for keys in [["ca_file", "ca_file"], ["cert_file", "key_file"]] {
        let mut settings = vec!["backing_cache.target=grpcs://localhost:1".to_owned()];
        settings.extend(keys.map(|key| format!("backing_cache.tls.{key}=/nowhere/{key}")));
        let (status, stderr) = server::refusal(&dir.path().join("data"), &settings);
        assert!(!status.success());
        let named = format!("backing_cache.tls.{} = /nowhere/{0}", keys[0]);
        assert!(stderr.contains(&named), "{stderr}");
    }
}

async fn functions(server: &Server) -> Vec<i32> {
    let client = Client::connect(server.address()).await;
    let mut client = CapabilitiesClient::new(client.channel());
    let capabilities = client
        .get_capabilities(GetCapabilitiesRequest::default())
        .await;
    let capabilities = capabilities.unwrap().into_inner();
    let cache = capabilities.cache_capabilities.expect("cache capabilities");
    let execution = capabilities
        .execution_capabilities
        .expect("execution capabilities");
    assert_eq!(cache.digest_functions, execution.digest_functions);
    cache.digest_functions
}

#[tokio::test(flavor = "multi_thread")]
async fn the_digest_functions_of_the_backing_cache_are_announced_to_clients() {
    let peer = FaultyPeer::with(Offer {
        functions: vec![Value::Sha256],
        ..Offer::default()
    });
    for settings in [
        &[][..],
        &["local_cache.enabled=false"],
        &["backing_cache.read_only=true"],
    ] {
        let server = Server::in_front_of(&peer.grpc_url(), settings);
        assert_eq!(functions(&server).await, [Value::Sha256 as i32]);
    }
    // While it is unavailable, all functions are announced.
    peer.inject(
        Method::GetCapabilities,
        Times::Always,
        Fault::Answer(Code::Unavailable),
    );
    let settings = ["backing_cache.put_retry_count=0"];
    let server = Server::in_front_of(&peer.grpc_url(), &settings);
    assert!(functions(&server).await.contains(&(Value::Blake3 as i32)));
}
