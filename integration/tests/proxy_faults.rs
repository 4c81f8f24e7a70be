//! Tests with a backing cache that is killed during a transfer: the transfer resumes if the cache
//! restarts in time, and fails otherwise. A slow link keeps the transfer in its middle.
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

/// The size of a transfer.
const SIZE: usize = 20 * MIB;

/// A rate at which a transfer takes 20 s, long enough to interrupt it.
const SLOW: Rate = Rate::mbit(8);

/// The longest wait for a condition; far more than it needs.
const PATIENCE: Duration = Duration::from_mins(1);

/// Numbers of retries: more than a restart needs, the default, and hardly any.
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

/// Stores a blob in the backing cache.
async fn put_backing(backing: &Backing, content: &Bytes) -> Digest {
    let direct = Client::connect(backing.address()).await;
    direct.upload_whole(content).await.unwrap();
    digest_of(content)
}

/// Checks that the backing cache has the whole blob.
async fn assert_stored(backing: &Backing, content: &Bytes) {
    let direct = Client::connect(backing.address()).await;
    direct.compare(&digest_of(content), content).await;
}

/// Repeats a call until the proxy has reached the restarted cache.
async fn when_recovered<T>(mut ask: impl AsyncFnMut() -> Result<T, Status>) -> T {
    let since = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
        assert!(
            since.elapsed() < PATIENCE,
            "the proxy does not reach the cache"
        );
    }
}

/// Begins a read and waits for its first piece.
async fn begin(client: &Client, digest: &Digest) -> (Streaming<ReadResponse>, BytesMut) {
    let mut stream = client.read(digest).await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    (stream, BytesMut::from(&first.data[..]))
}

/// Reads the rest and returns the status of the read.
async fn finish(stream: &mut Streaming<ReadResponse>, got: &mut BytesMut) -> Result<(), Status> {
    while let Some(piece) = stream.message().await? {
        got.extend_from_slice(&piece.data);
    }
    Ok(())
}

/// More failures than it takes to open the circuit breaker.
const UNTIL_LEFT_ALONE: u64 = 6;

/// Waits for this many failed attempts to reach the killed cache.
async fn wait_for_retries(link: &Link, tries: u64) {
    let due = link.counts().connections + tries;
    link.wait_for(|now| now.connections >= due && now.open == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_resumes_when_a_killed_cache_restarts() {
    for mut backing in peers() {
        let content = blob(1, SIZE);
        let digest = put_backing(&backing, &content).await;
        let link = slow(&backing);
        let (_server, client) = in_front_of(&link, MANY).await;
        let (mut stream, mut got) = begin(&client, &digest).await;
        backing.kill();
        assert!(link.counts().down < SIZE as u64, "too late");
        wait_for_retries(&link, 1).await;
        link.set_rate(None);
        backing.restart();
        finish(&mut stream, &mut got).await.unwrap();
        assert!(got == content);
        // The whole blob is local now.
        backing.kill();
        client.compare(&digest, &content).await;
    }
}

/// Returns the blobs of a build: some to fetch, and some to upload.
fn contents(seeds: std::ops::Range<u64>) -> Vec<Bytes> {
    seeds.map(|seed| blob(seed, 3 * MIB)).collect()
}

/// Fetches all blobs at once; each fetch has to succeed.
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
async fn many_fetches_resume_when_a_killed_cache_restarts() {
    for mut backing in peers() {
        let contents = contents(0..12);
        for content in &contents {
            put_backing(&backing, content).await;
        }
        let link = slow(&backing);
        let (_server, client) = in_front_of(&link, MANY).await;
        let fetches = fetch_all(&client, contents);
        link.wait_for(|counts| counts.down > MIB as u64).await;
        backing.kill();
        wait_for_retries(&link, 1).await;
        link.set_rate(None);
        backing.restart();
        fetches.join_all().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_transfers_resume_when_connections_break_once() {
    for backing in peers() {
        let (down, up) = (contents(0..12), contents(20..32));
        for content in &down {
            put_backing(&backing, content).await;
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
            assert_stored(&backing, content).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_from_a_cache_that_stays_dead_ends_with_an_error() {
    for mut backing in peers() {
        let content = blob(1, SIZE);
        let digest = put_backing(&backing, &content).await;
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
        let read = when_recovered(async || client.download(&digest).await).await;
        assert!(read == content);
    }
}

/// Begins an upload and waits until the proxy has forwarded a part of it.
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

/// Kills a cache in the middle of an upload. After a crash, bazel-remote would serve the unfinished file,
/// so its removal is awaited; the file's mode marks it as unfinished.
fn kill_receiving(backing: &mut Backing, link: &Link) {
    assert!(link.counts().up < SIZE as u64, "too late");
    if has_unfinished(&backing.data()) {
        link.down();
        let since = Instant::now();
        while has_unfinished(&backing.data()) {
            assert!(
                since.elapsed() < PATIENCE,
                "the unfinished file is not removed"
            );
            thread::yield_now();
        }
    }
    backing.kill();
    link.restore();
}

fn has_unfinished(dir: &Path) -> bool {
    const UNFINISHED: u32 = 0o2000;
    // The server removes files meanwhile.
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
async fn a_write_through_resumes_when_a_killed_cache_restarts() {
    for mut backing in peers() {
        let content = blob(1, SIZE);
        let link = slow(&backing);
        let (_server, client) = in_front_of(&link, MANY).await;
        let uploading = begin_upload(&link, &client, &content).await;
        kill_receiving(&mut backing, &link);
        wait_for_retries(&link, UNTIL_LEFT_ALONE).await;
        link.set_rate(None);
        backing.restart();
        ended(uploading).await.unwrap();
        assert_stored(&backing, &content).await;
        backing.kill();
        client.compare(&digest_of(&content), &content).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_to_a_cache_that_stays_dead_is_never_reported_as_stored() {
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
        let missing =
            when_recovered(async || client.find_missing(vec![digest.clone()]).await).await;
        assert!(missing == std::slice::from_ref(&digest), "{missing:?}");
        // Resumes as Bazel does: under the same name, from the committed size.
        let held = client.query_upload(&name(), &digest).await.unwrap();
        let held = usize::try_from(held.committed_size).unwrap();
        let mut again = client.begin_upload(&name(), &digest).from_offset(held);
        again.send_last(&content.slice(held..)).await;
        again.response().await.unwrap();
        assert_stored(&backing, &content).await;
        client.compare(&digest, &content).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_succeeds_if_a_dead_cache_restarts_before_the_last_retry() {
    for mut backing in peers() {
        let (there, new) = (blob(1, 3 * MIB), blob(2, 3 * MIB));
        let digest = put_backing(&backing, &there).await;
        let link = Link::to(backing.address());
        let (_server, client) = in_front_of(&link, MANY).await;
        backing.kill();
        let both = async { tokio::join!(client.download(&digest), client.upload_whole(&new)) };
        let back = async {
            wait_for_retries(&link, UNTIL_LEFT_ALONE).await;
            backing.restart();
        };
        let ((read, uploaded), ()) = tokio::join!(both, back);
        assert!(read.unwrap() == there);
        uploaded.unwrap();
        assert_stored(&backing, &new).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_continues_after_its_reader_disconnects() {
    for backing in peers() {
        let content = blob(1, SIZE);
        let digest = put_backing(&backing, &content).await;
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
