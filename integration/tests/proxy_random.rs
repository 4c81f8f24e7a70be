//! Random faults of the link and the backing cache: every answer of the proxy must be correct.
#![cfg(test)]

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock, Mutex},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use fastrand::Rng;
use gorego_integration::{
    client::Client,
    content::{blob, digest_of, result_of, uuid},
    link::{Direction, Link, Settings},
    peer::{Fault, FaultyPeer, Method, Offer, Times},
    server::Server,
};
use reapi::v2::Digest;
use tokio::task::{self, JoinSet};
use tonic::{Code, Status};

const CLIENTS: u64 = 4;
/// The number of operations of each client.
const OPERATIONS: usize = 80;

/// The number of blobs that clients upload. One more is never uploaded.
const BLOBS: usize = 48;
const NEVER: usize = BLOBS;
/// The number of actions, each with a few blobs of its own.
const ACTIONS: usize = 12;
const OUTPUTS: usize = BLOBS / ACTIONS;

/// The longest wait for a condition; far more than it needs.
const PATIENCE: Duration = Duration::from_mins(1);

/// All blobs by number. Most are small enough for batches.
static CONTENTS: LazyLock<Vec<(Digest, Bytes)>> = LazyLock::new(|| {
    let made = (0..=BLOBS).map(|number| {
        let size = match number % 4 {
            0 => 300_000 + 20_000 * number,
            _ => 100 + 1000 * number,
        };
        let content = blob(number as u64, size);
        (digest_of(&content), content)
    });
    made.collect()
});

fn digest(number: usize) -> Digest {
    CONTENTS[number].0.clone()
}

fn content(number: usize) -> Bytes {
    CONTENTS[number].1.clone()
}

fn action(number: usize) -> Digest {
    digest_of(format!("action {number}").as_bytes())
}

fn outputs(number: usize) -> std::ops::Range<usize> {
    number * OUTPUTS..(number + 1) * OUTPUTS
}

/// Prints the seed of a failed run.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("this was with seed {}", self.0);
        }
    }
}

/// The numbers of acknowledged blobs and actions.
#[derive(Clone, Debug, Default)]
struct Acknowledged {
    blobs: BTreeSet<usize>,
    actions: BTreeSet<usize>,
}

struct World {
    peer: FaultyPeer,
    link: Link,
    degrade: bool,
    acknowledged: Mutex<Acknowledged>,
}

impl World {
    fn new(seed: u64, degrade: bool) -> Self {
        let offer = Offer {
            seed,
            ..Offer::default()
        };
        let peer = FaultyPeer::with(offer);
        let settings = Settings {
            seed,
            ..Settings::default()
        };
        Self {
            link: Link::with(peer.address(), settings),
            peer,
            degrade,
            acknowledged: Mutex::default(),
        }
    }

    fn inject_faults(&self) {
        let unavailable = Fault::Answer(Code::Unavailable);
        let sometimes = |method, chance, fault| {
            self.peer.inject(method, Times::Chance(chance), fault);
        };
        for method in Method::ALL {
            sometimes(method, 0.05, unavailable);
        }
        for method in [Method::Read, Method::BatchReadBlobs] {
            sometimes(method, 0.1, Fault::Corrupt(50));
            sometimes(method, 0.1, Fault::Truncate(70));
            sometimes(method, 0.1, Fault::Extend(1));
        }
        for method in [Method::Read, Method::Write] {
            let broken = Fault::BreakAfter(150_000, Code::Unavailable);
            sometimes(method, 0.2, broken);
            sometimes(method, 0.02, Fault::StallAfter(1000));
        }
        let full = Fault::Answer(Code::ResourceExhausted);
        sometimes(Method::Write, 0.05, full);
        for direction in [Direction::Up, Direction::Down] {
            self.link.cut_within(direction, 10_000..=4_000_000);
        }
    }

    fn acknowledged(&self) -> Acknowledged {
        self.acknowledged.lock().unwrap().clone()
    }

    fn acknowledge(&self, blobs: impl IntoIterator<Item = usize>) {
        for number in blobs {
            if !self.degrade {
                self.assert_stored(number);
            }
            self.acknowledged.lock().unwrap().blobs.insert(number);
        }
    }

    fn assert_stored(&self, number: usize) {
        let stored = self.peer.blob(&digest(number));
        assert!(
            stored.is_some_and(|stored| stored == content(number)),
            "{number}"
        );
    }

    /// Makes a random call, and repeats it while the circuit breaker is open.
    async fn step(&self, client: &Client, rng: &mut Rng) {
        let since = Instant::now();
        let (kind, number) = (rng.u8(..6), rng.usize(..BLOBS));
        let name = uuid(rng);
        loop {
            let done = match kind {
                0 => self.upload(client, &name, number).await,
                1 => self.upload_batch(client, number).await,
                2 => self.download(client, number).await,
                3 => self.look_for(client, number).await,
                4 => self.put_action(client, number % ACTIONS).await,
                _ => self.get_action(client, number % ACTIONS).await,
            };
            match done {
                Err(status) if status.message().contains("calls are suspended") => {
                    task::yield_now().await;
                }
                _ => return,
            }
            assert!(since.elapsed() < PATIENCE, "the breaker stays open");
        }
    }

    async fn upload(&self, client: &Client, name: &str, number: usize) -> Result<(), Status> {
        client.upload(name, &content(number)).await?;
        self.acknowledge([number]);
        Ok(())
    }

    async fn upload_batch(&self, client: &Client, number: usize) -> Result<(), Status> {
        let numbers = [number, (number + 1) % BLOBS];
        client.batch_upload(&numbers.map(content)).await?;
        self.acknowledge(numbers);
        Ok(())
    }

    async fn download(&self, client: &Client, number: usize) -> Result<(), Status> {
        let known = self.acknowledged().blobs.contains(&number);
        let read = client.download(&digest(number)).await;
        if let Err(status) = &read {
            let lost = known && !self.degrade && status.code() == Code::NotFound;
            assert!(!lost, "{number}: {status}");
        }
        assert!(read? == content(number), "{number}");
        Ok(())
    }

    async fn look_for(&self, client: &Client, number: usize) -> Result<(), Status> {
        let known = self.acknowledged().blobs;
        let numbers: Vec<_> = (0..8).map(|more| (number + more) % BLOBS).collect();
        let digests = numbers.iter().map(|number| digest(*number));
        let digests: Vec<_> = digests.chain([digest(NEVER)]).collect();
        let missing = client.find_missing(digests.clone()).await?;
        assert!(missing.contains(&digest(NEVER)));
        for (number, digest) in numbers.into_iter().zip(digests) {
            let is_missing = missing.contains(&digest);
            if !self.degrade {
                assert!(!(is_missing && known.contains(&number)), "{number}");
                if !is_missing {
                    self.assert_stored(number);
                }
            }
        }
        Ok(())
    }

    async fn put_action(&self, client: &Client, number: usize) -> Result<(), Status> {
        let contents: Vec<_> = outputs(number).map(content).collect();
        client.batch_upload(&contents).await?;
        self.acknowledge(outputs(number));
        let result = result_of(outputs(number).map(digest));
        client.put_action(&action(number), result).await?;
        self.acknowledged.lock().unwrap().actions.insert(number);
        Ok(())
    }

    async fn get_action(&self, client: &Client, number: usize) -> Result<(), Status> {
        let known = self.acknowledged().actions.contains(&number);
        let found = client.get_action(&action(number)).await;
        if let Err(status) = &found {
            let lost = known && !self.degrade && status.code() == Code::NotFound;
            assert!(!lost, "action {number}: {status}");
        }
        assert_eq!(found?, result_of(outputs(number).map(digest)));
        if !self.degrade {
            outputs(number).for_each(|number| self.assert_stored(number));
        }
        Ok(())
    }

    /// Checks, after all faults ended, that acknowledged writes are in both tiers.
    async fn assert_kept(&self, client: &Client) {
        let Acknowledged { blobs, actions } = self.acknowledged();
        assert!(blobs.len() > BLOBS / 2, "only {} succeeded", blobs.len());
        assert!(actions.len() > ACTIONS / 2, "only {}", actions.len());
        self.peer
            .wait_for(|seen| {
                let there = |number: &usize| seen.blob(&digest(*number)).is_some();
                let known = |number: &usize| seen.action("", &action(*number)).is_some();
                blobs.iter().all(there) && actions.iter().all(known)
            })
            .await;
        for number in blobs {
            self.assert_stored(number);
            retry_until_ok(async || self.download(client, number).await).await;
        }
        for number in actions {
            retry_until_ok(async || self.get_action(client, number).await).await;
        }
    }
}

/// Retries until success: the proxy may not have noticed yet that the faults ended.
async fn retry_until_ok(mut attempt: impl AsyncFnMut() -> Result<(), Status>) {
    let since = Instant::now();
    while let Err(status) = attempt().await {
        assert!(since.elapsed() < PATIENCE, "still {status}");
    }
}

async fn run(seed: u64, settings: &[&str]) {
    let _seed = Seed(seed);
    let world = Arc::new(World::new(seed, !settings.is_empty()));
    let lost = digest_of(b"an action of which an output is gone");
    world
        .peer
        .put_action("", &lost, result_of([0, NEVER].map(digest)));
    let short = ["backing_cache.timeout=2s", "backing_cache.existence_ttl=1s"];
    let settings = [&short[..], settings].concat();
    let server = Server::in_front_of(&world.link.grpc_url(), &settings);
    world.inject_faults();
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let client = Client::connect(server.address()).await;
        let (world, lost) = (Arc::clone(&world), lost.clone());
        clients.spawn(async move {
            let mut rng = Rng::with_seed(seed * CLIENTS + number);
            for _ in 0..OPERATIONS {
                world.step(&client, &mut rng).await;
            }
            assert!(client.get_action(&lost).await.is_err());
        });
    }
    clients.join_all().await;
    world.peer.heal();
    world.link.restore();
    let client = Client::connect(server.address()).await;
    world.assert_kept(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_random_faults() {
    for seed in 1..=3 {
        run(seed, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_random_faults_with_degrade() {
    for seed in 4..=5 {
        run(seed, &["backing_cache.on_outage=degrade"]).await;
    }
}
