//! Tests with a stalled backing cache: local content is served, and other calls fail in time.
#![cfg(test)]

use std::time::{Duration, Instant};

use gorego_integration::{
    backing::Backing,
    client::Client,
    content::{blob, digest_of, result_of},
    link::Link,
    peer::{Fault, FaultyPeer, Method, Times},
    server::Server,
};
use tonic::{Code, Status};

const MIB: usize = 1024 * 1024;

/// The longest wait for a condition; far more than it needs.
const PATIENCE: Duration = Duration::from_mins(1);

/// A short timeout for calls to a stalled cache; a running one answers faster.
const SHORT: [&str; 2] = [
    "backing_cache.timeout=2s",
    "backing_cache.put_retry_count=0",
];
const DEGRADE: &str = "backing_cache.on_outage=degrade";

/// A backing cache that can be stalled and resumed; for casd, its connections are.
struct Stalling {
    backing: Backing,
    link: Link,
    by_link: bool,
}

impl Stalling {
    fn all() -> [Self; 3] {
        let with = |backing: Backing, by_link| Self {
            link: Link::to(backing.address()),
            backing,
            by_link,
        };
        [
            with(Backing::bazel_remote(), false),
            with(Backing::casd(), true),
            with(Backing::gorego(&[]), false),
        ]
    }

    fn stall(&self) {
        if self.by_link {
            self.link.stall();
        } else {
            self.backing.freeze();
        }
    }

    fn resume(&self) {
        if self.by_link {
            self.link.restore();
        } else {
            self.backing.thaw();
        }
    }

    async fn direct(&self) -> Client {
        Client::connect(self.backing.address()).await
    }
}

async fn in_front_of(url: &str, more: &[&str]) -> (Server, Client) {
    let server = Server::in_front_of(url, &[&SHORT[..], more].concat());
    let client = Client::connect(server.address()).await;
    (server, client)
}

/// Retries until success: on a busy machine, a running cache may be slow, too.
async fn retry_until_ok<T>(mut attempt: impl AsyncFnMut() -> Result<T, Status>) -> T {
    let since = Instant::now();
    loop {
        match attempt().await {
            Ok(answer) => return answer,
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
        assert!(since.elapsed() < PATIENCE, "no success in time");
    }
}

/// Looks up missing blobs until the open breaker answers without a call to the cache.
async fn wait_for_open_breaker(client: &Client) {
    let since = Instant::now();
    let mut seed = 1000;
    loop {
        let missed = client.download(&digest_of(&blob(seed, 1000))).await;
        let missed = missed.unwrap_err();
        assert_eq!(missed.code(), Code::Unavailable, "{missed}");
        if missed.message().contains("calls are suspended") {
            return;
        }
        seed += 1;
        assert!(since.elapsed() < PATIENCE, "the breaker does not open");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn misses_and_writes_fail_while_the_backing_cache_stalls() {
    for cache in Stalling::all() {
        let (here, there, late) = (blob(1, 3 * MIB), blob(2, 3 * MIB), blob(3, 3 * MIB));
        let [action, other] = [&b"action"[..], b"other"].map(digest_of);
        let direct = cache.direct().await;
        direct.upload_whole(&there).await.unwrap();
        let (_server, client) = in_front_of(&cache.link.grpc_url(), &[]).await;
        retry_until_ok(async || client.upload_whole(&here).await).await;
        retry_until_ok(async || {
            client
                .put_action(&action, result_of([digest_of(&here)]))
                .await
        })
        .await;

        cache.stall();
        let small = [blob(4, 1000)];
        let refused = tokio::join!(
            async { client.download(&digest_of(&there)).await.map(drop) },
            async { client.get_action(&other).await.map(drop) },
            async { client.find_missing(vec![digest_of(&late)]).await.map(drop) },
            client.put_action(&other, result_of([digest_of(&here)])),
            client.batch_upload(&small),
            client.upload_whole(&late),
        );
        for outcome in <[_; 6]>::from(refused) {
            let refused = outcome.unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        }
        wait_for_open_breaker(&client).await;
        assert!(client.download(&digest_of(&here)).await.unwrap() == here);
        assert_eq!(
            client.get_action(&action).await.unwrap(),
            result_of([digest_of(&here)])
        );

        cache.resume();
        let read = retry_until_ok(async || client.download(&digest_of(&there)).await).await;
        assert!(read == there);
        retry_until_ok(async || client.upload_whole(&late).await).await;
        direct.compare(&digest_of(&late), &late).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn degrade_reports_misses_and_queues_writes_while_the_backing_cache_stalls() {
    for cache in Stalling::all() {
        let (there, late) = (blob(2, 3 * MIB), blob(3, 3 * MIB));
        let action = digest_of(b"action");
        let direct = cache.direct().await;
        direct.upload_whole(&there).await.unwrap();
        let (_server, client) = in_front_of(&cache.link.grpc_url(), &[DEGRADE]).await;

        cache.stall();
        let missed = client.download(&digest_of(&there)).await.unwrap_err();
        assert_eq!(missed.code(), Code::NotFound, "{missed}");
        let missed = client.get_action(&action).await.unwrap_err();
        assert_eq!(missed.code(), Code::NotFound, "{missed}");
        client.upload_whole(&late).await.unwrap();
        client
            .put_action(&action, result_of([digest_of(&late)]))
            .await
            .unwrap();
        assert_eq!(
            client.get_action(&action).await.unwrap(),
            result_of([digest_of(&late)])
        );
        assert!(client.download(&digest_of(&late)).await.unwrap() == late);

        cache.resume();
        let since = Instant::now();
        while direct.get_action(&action).await.is_err() {
            assert!(since.elapsed() < PATIENCE, "the write is not uploaded");
        }
        direct.compare(&digest_of(&late), &late).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_backing_cache_is_rarely_called() {
    let peer = FaultyPeer::start();
    let there = blob(1, 1000);
    peer.put(&there);
    let (_server, client) = in_front_of(&peer.grpc_url(), &[]).await;
    peer.inject_everywhere(Times::Always, Fault::Stall);
    wait_for_open_breaker(&client).await;
    let calls = || -> usize {
        let of = |method| peer.calls(method).len();
        Method::ALL.into_iter().map(of).sum()
    };
    let before = calls();
    for seed in 0..30 {
        let missed = client.download(&digest_of(&blob(seed, 999))).await;
        assert_eq!(missed.unwrap_err().code(), Code::Unavailable);
    }
    // Now and then a call tests the cache.
    let asked = calls() - before;
    assert!(asked < 10, "{asked} of 30");
    peer.heal();
    let read = retry_until_ok(async || client.download(&digest_of(&there)).await).await;
    assert!(read == there);
}
