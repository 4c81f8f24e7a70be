//! Measures single calls.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use gorego_integration::{
    backing::Backing,
    client::Client,
    content::{blob, digest_of, uuid},
    server::Server,
};
use reapi::v2::Digest;

use crate::{
    Args, Peer,
    report::{Report, Times},
};

const LARGE: usize = 64 << 20;
const SMALL: usize = 4 << 10;
/// The number of digests in a lookup.
const LOOKED_UP: u64 = 1000;
/// The number of short calls in a turn.
const SHORT: u32 = 50;

/// Clients of the far cache (without and with the link), of its proxy, and of a server without a backing
/// cache.
#[derive(Debug)]
struct Clients {
    near: Client,
    direct: Client,
    proxy: Client,
    local: Client,
    seeds: fastrand::Rng,
}

pub(crate) async fn measure(args: &Args, report: &mut Report) {
    let backing = match args.backing {
        Peer::Gorego => Backing::gorego(&[]),
        Peer::BazelRemote => Backing::bazel_remote(),
    };
    let link = args.link(backing.address());
    let proxy = Server::in_front_of(&link.grpc_url(), &[]);
    let local = Server::start(&[]);
    let mut clients = Clients {
        near: Client::connect_far(backing.address()).await,
        direct: Client::connect_far(link.address()).await,
        proxy: connect(proxy.address()).await,
        local: connect(local.address()).await,
        seeds: fastrand::Rng::with_seed(1),
    };
    cold(&mut clients, args.rounds, report).await;
    writes(&mut clients, args.rounds, report).await;
    hot(&mut clients, args.rounds, report).await;
    look_up(&mut clients, args.rounds, report).await;
}

async fn connect(address: SocketAddr) -> Client {
    Client::connect_far(address).await
}

/// Measures reads of blobs that only the far cache has.
async fn cold(clients: &mut Clients, rounds: u64, report: &mut Report) {
    for (name, size) in [("64 MiB", LARGE), ("4 KiB", SMALL)] {
        let mut first = <(Times, Times)>::default();
        let mut whole = <(Times, Times)>::default();
        for round in 0..=rounds {
            for direct in turns(round) {
                let content = clients.blob(size);
                let id = clients.uuid();
                let stored = clients.near.upload(&id, &content).await;
                stored.expect("the far cache stores the blob");
                let client = clients.to_the_far_cache(direct);
                let (to_first, to_last) = read(client, &digest_of(&content)).await;
                // The first round opens connections.
                if round > 0 {
                    side(&mut first, direct).push(to_first);
                    side(&mut whole, direct).push(to_last);
                }
            }
        }
        report.add(&format!("first byte of {name}, cold"), "direct", first);
        report.add(&format!("read of {name}, cold"), "direct", whole);
    }
}

async fn writes(clients: &mut Clients, rounds: u64, report: &mut Report) {
    for (name, size) in [("64 MiB", LARGE), ("4 KiB", SMALL)] {
        let mut times = <(Times, Times)>::default();
        for round in 0..=rounds {
            for direct in turns(round) {
                let content = clients.blob(size);
                let id = clients.uuid();
                let client = clients.to_the_far_cache(direct);
                let started = Instant::now();
                let written = client.upload(&id, &content).await;
                let took = started.elapsed();
                written.expect("an upload succeeds");
                if round > 0 {
                    side(&mut times, direct).push(took);
                }
            }
        }
        report.add(&format!("write of {name}"), "direct", times);
    }
}

/// Measures reads of blobs that were read before.
async fn hot(clients: &mut Clients, rounds: u64, report: &mut Report) {
    for (name, size, calls) in [("64 MiB", LARGE, 1), ("4 KiB", SMALL, SHORT)] {
        let content = clients.blob(size);
        let digest = clients.everywhere(&content).await;
        let mut times = <(Times, Times)>::default();
        for round in 0..=rounds {
            for local in turns(round) {
                let client = clients.near_by(local);
                let started = Instant::now();
                for _ in 0..calls {
                    read(client, &digest).await;
                }
                if round > 0 {
                    side(&mut times, local).push(started.elapsed() / calls);
                }
            }
        }
        report.add(&format!("read of {name}, hot"), "local only", times);
    }
}

async fn look_up(clients: &mut Clients, rounds: u64, report: &mut Report) {
    let mut digests = Vec::new();
    for _ in 0..LOOKED_UP / 100 {
        let blobs: Vec<Bytes> = (0..100).map(|_| clients.blob(SMALL)).collect();
        digests.extend(blobs.iter().map(|blob| digest_of(blob)));
        for client in [&clients.local, &clients.proxy] {
            let stored = client.batch_upload(&blobs).await;
            stored.expect("the blob is stored");
        }
    }
    let mut times = <(Times, Times)>::default();
    for round in 0..=rounds {
        for local in turns(round) {
            let client = clients.near_by(local);
            let started = Instant::now();
            for _ in 0..SHORT {
                let missing = client.find_missing(digests.clone()).await;
                let missing = missing.expect("a lookup succeeds");
                assert!(missing.is_empty(), "all of them were stored");
            }
            if round > 0 {
                side(&mut times, local).push(started.elapsed() / SHORT);
            }
        }
    }
    report.add("look-up of 1000 digests, hot", "local only", times);
}

impl Clients {
    /// Returns a new blob.
    fn blob(&mut self, size: usize) -> Bytes {
        blob(self.seeds.u64(..), size)
    }

    fn uuid(&mut self) -> String {
        uuid(&mut self.seeds)
    }

    fn to_the_far_cache(&self, direct: bool) -> &Client {
        if direct { &self.direct } else { &self.proxy }
    }

    fn near_by(&self, local: bool) -> &Client {
        if local { &self.local } else { &self.proxy }
    }

    async fn everywhere(&mut self, content: &Bytes) -> Digest {
        let id = self.uuid();
        for client in [&self.local, &self.proxy] {
            let stored = client.upload(&id, content).await;
            stored.expect("the blob is stored");
        }
        digest_of(content)
    }
}

/// Returns the order of the sides, which alternates between rounds; true stands for the side without the
/// proxy.
fn turns(round: u64) -> [bool; 2] {
    let even = round.is_multiple_of(2);
    [even, !even]
}

fn side((without, with): &mut (Times, Times), is_without: bool) -> &mut Times {
    if is_without { without } else { with }
}

/// Reads a blob and returns the times to its first and last byte.
async fn read(client: &Client, digest: &Digest) -> (Duration, Duration) {
    let started = Instant::now();
    let mut stream = client.read(digest).await.expect("the blob is served");
    let mut first = None;
    let mut size = 0;
    while let Some(message) = stream.message().await.expect("the blob is served whole") {
        if !message.data.is_empty() {
            first.get_or_insert_with(|| started.elapsed());
        }
        size += message.data.len();
    }
    assert_eq!(i64::try_from(size).ok(), Some(digest.size_bytes));
    (first.expect("no blob is empty"), started.elapsed())
}
