//! In front of other caches, whatever they are: what is written is theirs, and what they have is got.
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

/// Far more than it takes.
const PATIENCE: Duration = Duration::from_mins(1);

async fn in_front_of(url: &str) -> (Server, Client) {
    let server = Server::in_front_of(url, &["backing_cache.existence_ttl=0"]);
    let client = Client::connect(server.address()).await;
    (server, client)
}

/// What one machine's proxy was given another machine's proxy has.
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

/// While it is dead, what was read before is there; and once it is back, everything is.
async fn assert_outlived(mut backing: Backing) {
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
    // A start does not need it either.
    let server = server.restart();
    let client = Client::connect(server.address()).await;
    assert!(client.download(&digest_of(&read)).await.unwrap() == read);

    backing.restart();
    // The proxy asks again only now and then.
    let since = Instant::now();
    loop {
        match client.download(&digest_of(&unread)).await {
            Ok(content) => break assert!(content == unread),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
        assert!(since.elapsed() < PATIENCE, "it never comes back");
    }
    client.upload_whole(&late).await.unwrap();
    let direct = Client::connect(backing.address()).await;
    assert!(direct.download(&digest_of(&late)).await.unwrap() == late);
}

/// What is accepted while it is dead, or was before a crash, reaches it when it is back.
async fn assert_brought_up(mut backing: Backing) {
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
        assert!(since.elapsed() < PATIENCE, "it is never brought up");
    }
    for (digest, output) in digests.iter().zip(&outputs) {
        assert!(direct.download(digest).await.unwrap() == output);
    }
}

/// What is on its way while the connection breaks arrives all the same.
async fn assert_goes_on(backing: &Backing) {
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
async fn machines_share_what_bazel_remote_has() {
    assert_shares(&Backing::bazel_remote()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_share_what_casd_has() {
    assert_shares(&Backing::casd()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_share_what_gorego_has() {
    assert_shares(&Backing::gorego(&[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bazel_remote_is_outlived() {
    assert_outlived(Backing::bazel_remote()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn casd_is_outlived() {
    assert_outlived(Backing::casd()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gorego_is_outlived() {
    assert_outlived(Backing::gorego(&[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bazel_remote_gets_what_it_missed() {
    assert_brought_up(Backing::bazel_remote()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn casd_gets_what_it_missed() {
    assert_brought_up(Backing::casd()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gorego_gets_what_it_missed() {
    assert_brought_up(Backing::gorego(&[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_bazel_remote_may_break() {
    assert_goes_on(&Backing::bazel_remote()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_casd_may_break() {
    assert_goes_on(&Backing::casd()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_gorego_may_break() {
    assert_goes_on(&Backing::gorego(&[])).await;
}
