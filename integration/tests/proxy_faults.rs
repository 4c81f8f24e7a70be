//! In front of a cache that is killed: transfers go on when it is back in time, and end with an error
//! when it is not. Each time a slow link holds the transfer, so that it is in its middle.
#![cfg(test)]

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use gorego_integration::{
    backing::Backing,
    client::Client,
    content::{blob, digest_of, uuid},
    link::{Link, Rate, Settings},
    server::Server,
};
use reapi::{bytestream::ReadResponse, v2::Digest};
use tokio::task::JoinSet;
use tonic::{Code, Status, Streaming};

const MIB: usize = 1024 * 1024;

/// What is on its way.
const SIZE: usize = 20 * MIB;

/// Takes 20 s for that: far more than it takes to do something about it.
const SLOW: Rate = Rate::mbit(8);

/// Far more than it takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// More tries than a restart takes, as many as usual, and hardly any.
const MANY: &str = "backing_cache.put_retry_count=20";
const USUAL: &str = "backing_cache.put_retry_count=3";
const FEW: &str = "backing_cache.put_retry_count=1";

fn peers() -> [Backing; 3] {
    [
        Backing::bazel_remote(),
        Backing::casd(),
        Backing::gorego(&[]),
    ]
}

fn slow(backing: &Backing) -> Link {
    let settings = Settings {
        rate: Some(SLOW),
        ..Settings::default()
    };
    Link::with(backing.address(), settings)
}

async fn in_front_of(link: &Link, retries: &str) -> (Server, Client) {
    let server = Server::in_front_of(&link.grpc_url(), &[retries]);
    let client = Client::connect(server.address()).await;
    (server, client)
}

fn name() -> String {
    uuid(&mut fastrand::Rng::with_seed(1))
}

/// Puts a blob where the proxy has to fetch it from.
async fn put_there(backing: &Backing, content: &Bytes) -> Digest {
    let direct = Client::connect(backing.address()).await;
    direct.upload_whole(content).await.unwrap();
    digest_of(content)
}

/// Fails unless it is whole in the backing cache.
async fn assert_there(backing: &Backing, content: &Bytes) {
    let direct = Client::connect(backing.address()).await;
    direct.compare(&digest_of(content), content).await;
}

/// Asks until the proxy asks the cache again, which is back.
async fn once_back<T>(mut ask: impl AsyncFnMut() -> Result<T, Status>) -> T {
    let since = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
        assert!(since.elapsed() < PATIENCE, "it never comes back");
    }
}

/// A read of which the first piece has come.
async fn begin(client: &Client, digest: &Digest) -> (Streaming<ReadResponse>, BytesMut) {
    let mut stream = client.read(digest).await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    (stream, BytesMut::from(&first.data[..]))
}

/// Takes the rest of it; how it ended.
async fn finish(stream: &mut Streaming<ReadResponse>, got: &mut BytesMut) -> Result<(), Status> {
    while let Some(piece) = stream.message().await? {
        got.extend_from_slice(&piece.data);
    }
    Ok(())
}

/// More failures than it takes for a cache to be left alone for a while.
const UNTIL_LEFT_ALONE: u64 = 6;

/// Waits until it was tried so many times to reach the killed cache again, and in vain.
async fn retried(link: &Link, tries: u64) {
    let due = link.counts().connections + tries;
    link.wait_for(|now| now.connections >= due && now.open == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_goes_on_when_a_killed_cache_is_back() {
    for mut backing in peers() {
        let content = blob(1, SIZE);
        let digest = put_there(&backing, &content).await;
        let link = slow(&backing);
        let (_server, client) = in_front_of(&link, MANY).await;
        let (mut stream, mut got) = begin(&client, &digest).await;
        backing.kill();
        assert!(link.counts().down < SIZE as u64, "too late");
        retried(&link, 1).await;
        link.set_rate(None);
        backing.restart();
        finish(&mut stream, &mut got).await.unwrap();
        assert!(got == content);
        // It is here now, and whole.
        backing.kill();
        client.compare(&digest, &content).await;
    }
}

/// Blobs of a build that is going on: some to be fetched, and some that it makes.
fn contents(seeds: std::ops::Range<u64>) -> Vec<Bytes> {
    seeds.map(|seed| blob(seed, 3 * MIB)).collect()
}

/// All of them at once, each of which has to succeed.
fn fetch_all(client: &Client, contents: Vec<Bytes>) -> JoinSet<()> {
    let fetches = contents.into_iter().map(|content| {
        let client = client.clone();
        async move {
            let read = client.download(&digest_of(&content)).await;
            assert!(read.unwrap() == content);
        }
    });
    fetches.collect()
}

fn upload_all(client: &Client, contents: Vec<Bytes>) -> JoinSet<()> {
    let uploads = contents.into_iter().map(|content| {
        let client = client.clone();
        async move { client.upload_whole(&content).await.unwrap() }
    });
    uploads.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_fetches_go_on_when_a_killed_cache_is_back() {
    for mut backing in peers() {
        let contents = contents(0..12);
        for content in &contents {
            put_there(&backing, content).await;
        }
        let link = slow(&backing);
        let (_server, client) = in_front_of(&link, MANY).await;
        let fetches = fetch_all(&client, contents);
        link.wait_for(|counts| counts.down > MIB as u64).await;
        backing.kill();
        retried(&link, 1).await;
        link.set_rate(None);
        backing.restart();
        fetches.join_all().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_on_its_way_goes_on_when_connections_break_once() {
    for backing in peers() {
        let (down, up) = (contents(0..12), contents(20..32));
        for content in &down {
            put_there(&backing, content).await;
        }
        let link = slow(&backing);
        let (_server, client) = in_front_of(&link, USUAL).await;
        let fetches = fetch_all(&client, down);
        let uploads = upload_all(&client, up.clone());
        let some = MIB as u64;
        link.wait_for(|counts| counts.down > some && counts.up > some)
            .await;
        link.cut();
        link.set_rate(None);
        fetches.join_all().await;
        uploads.join_all().await;
        for content in &up {
            assert_there(&backing, content).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_from_a_cache_that_stays_dead_ends_with_an_error() {
    for mut backing in peers() {
        let content = blob(1, SIZE);
        let digest = put_there(&backing, &content).await;
        let link = slow(&backing);
        let (_server, client) = in_front_of(&link, FEW).await;
        let (mut stream, mut got) = begin(&client, &digest).await;
        backing.kill();
        let broken = finish(&mut stream, &mut got).await.unwrap_err();
        assert_eq!(broken.code(), Code::Unavailable, "{broken}");
        assert!(content.starts_with(&got) && got.len() < SIZE);
        let missed = client.download(&digest).await.unwrap_err();
        assert_eq!(missed.code(), Code::Unavailable, "{missed}");
        link.set_rate(None);
        backing.restart();
        let read = once_back(async || client.download(&digest).await).await;
        assert!(read == content);
    }
}

/// A client's upload to a proxy that has passed a part of it on.
async fn begin_upload(
    link: &Link,
    client: &Client,
    content: &Bytes,
) -> JoinSet<Result<(), Status>> {
    let (client, content) = (client.clone(), content.clone());
    let mut uploads = JoinSet::new();
    uploads.spawn(async move { client.upload_whole(&content).await });
    link.wait_for(|counts| counts.up > 2 * MIB as u64).await;
    uploads
}

/// Kills a cache in the middle of an upload. After a crash, bazel-remote takes a file that it was
/// still writing, which it marks by its mode, for a whole one: it may throw that away before.
fn kill_receiving(backing: &mut Backing, link: &Link) {
    assert!(link.counts().up < SIZE as u64, "too late");
    if has_unfinished(&backing.data()) {
        link.down();
        let since = Instant::now();
        while has_unfinished(&backing.data()) {
            assert!(since.elapsed() < PATIENCE, "it does not throw it away");
            thread::yield_now();
        }
    }
    backing.kill();
    link.restore();
}

fn has_unfinished(dir: &Path) -> bool {
    const UNFINISHED: u32 = 0o2000;
    // Others remove files meanwhile.
    let Ok(entries) = fs::read_dir(dir) else {
        return false;
    };
    entries.flatten().any(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => has_unfinished(&entry.path()),
        Ok(found) => found.mode() & UNFINISHED != 0,
        Err(_) => false,
    })
}

async fn ended(mut uploads: JoinSet<Result<(), Status>>) -> Result<(), Status> {
    uploads.join_next().await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_goes_on_when_a_killed_cache_is_back() {
    for mut backing in peers() {
        let content = blob(1, SIZE);
        let link = slow(&backing);
        let (_server, client) = in_front_of(&link, MANY).await;
        let uploading = begin_upload(&link, &client, &content).await;
        kill_receiving(&mut backing, &link);
        retried(&link, UNTIL_LEFT_ALONE).await;
        link.set_rate(None);
        backing.restart();
        ended(uploading).await.unwrap();
        assert_there(&backing, &content).await;
        backing.kill();
        client.compare(&digest_of(&content), &content).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_to_a_cache_that_stays_dead_is_claimed_by_nobody() {
    for mut backing in peers() {
        let content = blob(1, SIZE);
        let digest = digest_of(&content);
        let link = slow(&backing);
        let (_server, client) = in_front_of(&link, FEW).await;
        let uploading = begin_upload(&link, &client, &content).await;
        kill_receiving(&mut backing, &link);
        let refused = ended(uploading).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        let missed = client.download(&digest).await.unwrap_err();
        assert_eq!(missed.code(), Code::Unavailable, "{missed}");
        link.set_rate(None);
        backing.restart();
        let missing = once_back(async || client.find_missing(vec![digest.clone()]).await).await;
        assert!(missing == std::slice::from_ref(&digest), "{missing:?}");
        // As Bazel does: under the same name, from where it is said to have broken off.
        let held = client.query_upload(&name(), &digest).await.unwrap();
        let held = usize::try_from(held.committed_size).unwrap();
        let mut again = client.begin_upload(&name(), &digest).from_offset(held);
        again.send_last(&content.slice(held..)).await;
        again.response().await.unwrap();
        assert_there(&backing, &content).await;
        client.compare(&digest, &content).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_may_be_dead_at_the_first_try_and_back_before_the_last() {
    for mut backing in peers() {
        let (there, new) = (blob(1, 3 * MIB), blob(2, 3 * MIB));
        let digest = put_there(&backing, &there).await;
        let link = Link::to(backing.address());
        let (_server, client) = in_front_of(&link, MANY).await;
        backing.kill();
        let both = async { tokio::join!(client.download(&digest), client.upload_whole(&new)) };
        let back = async {
            retried(&link, UNTIL_LEFT_ALONE).await;
            backing.restart();
        };
        let ((read, uploaded), ()) = tokio::join!(both, back);
        assert!(read.unwrap() == there);
        uploaded.unwrap();
        assert_there(&backing, &new).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_leaves_does_not_take_the_fetch_with_him() {
    for backing in peers() {
        let content = blob(1, SIZE);
        let digest = put_there(&backing, &content).await;
        let link = slow(&backing);
        let (server, first) = in_front_of(&link, FEW).await;
        let second = Client::connect(server.address()).await;
        let leaving = begin(&first, &digest).await;
        let (mut stream, mut got) = begin(&second, &digest).await;
        drop((leaving, first));
        link.set_rate(None);
        finish(&mut stream, &mut got).await.unwrap();
        assert!(got == content);
        let carried = link.counts().down;
        assert!(carried < (SIZE + 2 * MIB) as u64, "{carried} bytes");
    }
}
