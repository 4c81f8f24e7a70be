//! Tests with real backing caches: bazel-remote, casd and gorego.
#![cfg(test)]

use std::time::{Duration, Instant};

use gorego_integration::{
    backing::Backing,
    client::Client,
    content::{blob, digest_of, result_of},
    link::{Direction, Link},
    server::Server,
};
use tonic::Code;

const MIB: usize = 1024 * 1024;

/// The longest wait for a condition; far more than it needs.
const PATIENCE: Duration = Duration::from_mins(1);

async fn in_front_of(url: &str) -> (Server, Client) {
    let server = Server::in_front_of(url, &["backing_cache.existence_ttl=0"]);
    let client = Client::connect(server.address()).await;
    (server, client)
}

/// Checks that one proxy serves blobs and results that another stored.
async fn assert_shares(backing: &Backing) {
    let outputs = [blob(1, 1000), blob(2, 300_000), blob(3, 20 * MIB)];
    let digests: Vec<_> = outputs.iter().map(|output| digest_of(output)).collect();
    let action = digest_of(b"action");

    let (_here, client) = in_front_of(&backing.grpc_url()).await;
    assert_eq!(client.find_missing(digests.clone()).await.unwrap(), digests);
    client.batch_upload(&outputs[..2]).await.unwrap();
    client.upload_whole(&outputs[2]).await.unwrap();
    client
        .put_action(&action, result_of(digests.clone()))
        .await
        .unwrap();

    let direct = Client::connect(backing.address()).await;
    assert_eq!(direct.find_missing(digests.clone()).await.unwrap(), []);

    let (_there, client) = in_front_of(&backing.grpc_url()).await;
    assert_eq!(
        client.get_action(&action).await.unwrap().output_files,
        result_of(digests.clone()).output_files
    );
    assert_eq!(client.find_missing(digests.clone()).await.unwrap(), []);
    for (digest, output) in digests.iter().zip(&outputs) {
        assert!(client.download(digest).await.unwrap() == output);
    }
}

/// Checks that local content is served while the cache is dead, and everything after its restart.
async fn assert_served_during_outage(mut backing: Backing) {
    let (read, unread, late) = (blob(1, 3 * MIB), blob(2, 3 * MIB), blob(4, 3 * MIB));
    let (server, client) = in_front_of(&backing.grpc_url()).await;
    client.upload_whole(&read).await.unwrap();
    Client::connect(backing.address())
        .await
        .upload_whole(&unread)
        .await
        .unwrap();
    backing.kill();

    assert!(client.download(&digest_of(&read)).await.unwrap() == read);
    for failed in [
        client.download(&digest_of(&unread)).await.map(drop),
        client.upload_whole(&late).await,
    ] {
        assert_eq!(failed.unwrap_err().code(), Code::Unavailable);
    }
    // The proxy can start without the cache, too.
    let server = server.restart();
    let client = Client::connect(server.address()).await;
    assert!(client.download(&digest_of(&read)).await.unwrap() == read);

    backing.restart();
    // The proxy retries only now and then.
    let since = Instant::now();
    loop {
        match client.download(&digest_of(&unread)).await {
            Ok(content) => break assert!(content == unread),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
        assert!(
            since.elapsed() < PATIENCE,
            "the proxy does not reach the cache"
        );
    }
    client.upload_whole(&late).await.unwrap();
    let direct = Client::connect(backing.address()).await;
    assert!(direct.download(&digest_of(&late)).await.unwrap() == late);
}

/// Checks that writes accepted while the cache is dead, and before a crash, reach it after its restart.
async fn assert_pending_writes_uploaded(mut backing: Backing) {
    let outputs = [blob(1, 1000), blob(2, 3 * MIB)];
    let digests: Vec<_> = outputs.iter().map(|output| digest_of(output)).collect();
    let action = digest_of(b"action");
    let settings = ["backing_cache.on_outage=degrade"];
    let server = Server::in_front_of(&backing.grpc_url(), &settings);
    let client = Client::connect(server.address()).await;
    backing.kill();

    let missed = client.get_action(&action).await.unwrap_err();
    assert_eq!(missed.code(), Code::NotFound, "{missed}");
    client.batch_upload(&outputs[..1]).await.unwrap();
    client.upload_whole(&outputs[1]).await.unwrap();
    client
        .put_action(&action, result_of(digests.clone()))
        .await
        .unwrap();
    let server = server.restart();
    let client = Client::connect(server.address()).await;
    assert_eq!(
        client.get_action(&action).await.unwrap(),
        result_of(digests.clone())
    );

    backing.restart();
    let direct = Client::connect(backing.address()).await;
    let since = Instant::now();
    while direct.get_action(&action).await.is_err() {
        assert!(since.elapsed() < PATIENCE, "the write is not uploaded");
    }
    for (digest, output) in digests.iter().zip(&outputs) {
        assert!(direct.download(digest).await.unwrap() == output);
    }
}

/// Checks that transfers complete although the connection breaks.
async fn assert_survives_broken_connection(backing: &Backing) {
    let link = Link::to(backing.address());
    let (up, down) = (blob(1, 20 * MIB), blob(2, 20 * MIB));
    Client::connect(backing.address())
        .await
        .upload_whole(&down)
        .await
        .unwrap();
    let (_server, client) = in_front_of(&link.grpc_url()).await;

    link.cut_after(Direction::Down, 6 * MIB as u64);
    assert!(client.download(&digest_of(&down)).await.unwrap() == down);
    link.restore();

    let far = link.counts().up + 6 * MIB as u64;
    let cut = async {
        link.wait_for(|counts| counts.up > far).await;
        link.cut();
    };
    let (uploaded, ()) = tokio::join!(client.upload_whole(&up), cut);
    uploaded.unwrap();
    let direct = Client::connect(backing.address()).await;
    assert!(direct.download(&digest_of(&up)).await.unwrap() == up);
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_share_the_content_of_bazel_remote() {
    assert_shares(&Backing::bazel_remote()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_share_the_content_of_casd() {
    assert_shares(&Backing::casd()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_share_the_content_of_gorego() {
    assert_shares(&Backing::gorego(&[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_content_is_served_while_bazel_remote_is_dead() {
    assert_served_during_outage(Backing::bazel_remote()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_content_is_served_while_casd_is_dead() {
    assert_served_during_outage(Backing::casd()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_content_is_served_while_gorego_is_dead() {
    assert_served_during_outage(Backing::gorego(&[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_writes_reach_bazel_remote_after_an_outage() {
    assert_pending_writes_uploaded(Backing::bazel_remote()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_writes_reach_casd_after_an_outage() {
    assert_pending_writes_uploaded(Backing::casd()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_writes_reach_gorego_after_an_outage() {
    assert_pending_writes_uploaded(Backing::gorego(&[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_survive_a_broken_connection_to_bazel_remote() {
    assert_survives_broken_connection(&Backing::bazel_remote()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_survive_a_broken_connection_to_casd() {
    assert_survives_broken_connection(&Backing::casd()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_survive_a_broken_connection_to_gorego() {
    assert_survives_broken_connection(&Backing::gorego(&[])).await;
}
