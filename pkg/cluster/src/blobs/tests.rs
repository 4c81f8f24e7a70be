//! Nodes in memory, which fail in several ways.

mod hedged;
mod near;
mod owners;
mod proxied;

use std::{
    collections::HashMap,
    fmt,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_limits::{Budget, Call};
use gorego_scheduler::Generation;
use gorego_storage::{
    ActionCache, Arrival, Blob, BlobStore, CachedResult, Digest, DigestFunction, Error,
    MemoryStore, Put, Result,
};
use parking_lot::Mutex;
use reapi::v2::ActionResult;
use tokio::time::sleep;

use super::{Connect, Member, PeerStores, Peers};

/// A size that is not read in batches.
const LARGE: usize = 1 << 20;

/// The fault of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fault {
    #[default]
    None,
    /// Each call fails.
    Down,
    /// No call ends.
    Silent,
    /// Each call takes this time.
    Slow(Duration),
    /// Each answer begins to arrive after the first of these times, and takes the second one.
    Busy(Duration, Duration),
    /// Content is corrupt.
    Corrupt,
    /// Content turns out to be corrupt at its end.
    CorruptAtEnd,
    /// Content ends after this many bytes.
    Truncated(usize),
    /// Content pauses for this time after its first byte.
    Pauses(Duration),
    /// The second half of the content is not whole for a minute, but some of it arrives each half second.
    Trickles,
}

/// A node in memory.
#[derive(Default)]
struct Fake {
    memory: MemoryStore,
    fault: Mutex<Fault>,
    reads: AtomicU64,
    /// The reads that were not cancelled.
    ended: AtomicU64,
}

impl Fake {
    fn fails(&self, fault: Fault) {
        *self.fault.lock() = fault;
    }

    fn reads(&self) -> u64 {
        self.reads.load(Relaxed)
    }

    /// Returns the number of reads that were cancelled.
    fn cancelled(&self) -> u64 {
        self.reads() - self.ended.load(Relaxed)
    }

    async fn has(&self, digest: &Digest) -> bool {
        let missing = self.memory.find_missing(&[*digest]).await;
        missing.unwrap().is_empty()
    }

    async fn gets(&self, content: &Bytes) {
        let digest = digest(content);
        let blob = Blob::Bytes(content.clone());
        BlobStore::put(&self.memory, &digest, blob).await.unwrap();
    }

    async fn answer(&self) -> Result<Fault> {
        let fault = *self.fault.lock();
        match fault {
            Fault::Down => return Err(Error::Unavailable("down".to_owned())),
            Fault::Silent => pending().await,
            Fault::Slow(time) => sleep(time).await,
            Fault::Busy(begins, takes) => {
                sleep(begins).await;
                Arrival::report();
                // The end may arrive with the beginning.
                if !takes.is_zero() {
                    sleep(takes).await;
                }
            }
            _ => {}
        }
        Ok(fault)
    }
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

#[async_trait]
impl BlobStore for Fake {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        self.answer().await?;
        self.memory.find_missing(digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        self.reads.fetch_add(1, Relaxed);
        let answer = self.answer().await;
        self.ended.fetch_add(1, Relaxed);
        let fault = answer?;
        let content = BlobStore::get(&self.memory, digest, offset).await?;
        let content = content.into_bytes().await?;
        let corrupt = || Error::mismatch(digest, "other content");
        match fault {
            Fault::Corrupt => Err(corrupt()),
            Fault::Truncated(bytes) => {
                let start = content.slice(..bytes.min(content.len()));
                Ok(Blob::stream(stream::iter([Ok(start)])))
            }
            Fault::Pauses(time) => {
                let rest = content.slice(1..);
                let rest = stream::once(async move {
                    sleep(time).await;
                    Ok(rest)
                });
                let first = stream::iter([Ok(content.slice(..1))]);
                Ok(Blob::stream(first.chain(rest)))
            }
            Fault::Trickles => {
                let (first, rest) = content.split_at(content.len() / 2);
                let [first, rest] = [first, rest].map(Bytes::copy_from_slice);
                let rest = stream::once(async move {
                    for _ in 0..120 {
                        sleep(Duration::from_millis(500)).await;
                        Arrival::report();
                    }
                    Ok(rest)
                });
                Ok(Blob::stream(stream::iter([Ok(first)]).chain(rest)))
            }
            Fault::CorruptAtEnd => {
                let most = content.slice(..content.len() / 2);
                Ok(Blob::stream(stream::iter([Ok(most), Err(corrupt())])))
            }
            _ if content.len() < LARGE => Ok(Blob::Bytes(content)),
            _ => Ok(Blob::stream(Blob::Bytes(content).into_chunks())),
        }
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        self.answer().await?;
        BlobStore::put(&self.memory, digest, blob).await
    }
}

#[async_trait]
impl ActionCache for Fake {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        self.answer().await?;
        ActionCache::get(&self.memory, instance, action, memory).await
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        self.answer().await?;
        ActionCache::put(&self.memory, instance, action, result).await
    }
}

/// The nodes of a cluster, of which the first is this one.
struct Cluster {
    peers: Arc<Peers>,
    fakes: HashMap<String, Arc<Fake>>,
}

impl Cluster {
    /// Creates a cluster with this many other nodes.
    fn new(others: u32) -> Self {
        let names = (1..=others).map(|number| format!("node-{number}"));
        let fakes: HashMap<String, Arc<Fake>> = names.map(|name| (name, Arc::default())).collect();
        let known = fakes.clone();
        let connect: Connect = Box::new(move |member| {
            let fake = known.get(member.node.node()).ok_or("unknown")?;
            Ok(PeerStores {
                blobs: Arc::clone(fake) as _,
                actions: Arc::clone(fake) as _,
            })
        });
        let peers = Arc::new(Peers::new("node-0", connect));
        let cluster = Self { peers, fakes };
        cluster.set((1..=others).map(|number| member(number, 1)));
        cluster
    }

    fn set(&self, members: impl IntoIterator<Item = Member>) {
        self.peers.set(members);
    }

    /// Returns a call that is near to a node.
    fn near_to(&self, node: &Arc<Fake>) -> Call {
        let mut fakes = self.fakes.iter();
        let found = fakes.find(|(_, fake)| Arc::ptr_eq(fake, node));
        Call::current().near_to(found.unwrap().0.as_str().into())
    }

    /// Returns the nodes of a digest in order; `None` for this one.
    fn order(&self, digest: &Digest) -> Vec<Option<Arc<Fake>>> {
        let order = self.peers.nodes().first(digest, usize::MAX).into_iter();
        let fake = |name: &str| Arc::clone(&self.fakes[name]);
        order
            .map(|peer| peer.map(|peer| fake(peer.member.node.node())))
            .collect()
    }

    /// Returns content of `len` bytes for which the nodes at these places are others, and these nodes.
    fn content<const N: usize>(&self, len: usize, places: [usize; N]) -> (Bytes, [Arc<Fake>; N]) {
        let contents = (0..).map(|seed| gorego_storage_conformance::content(seed, len));
        let others = |content: &Bytes| {
            let order = self.order(&digest(content));
            let others: Option<Vec<_>> = places.iter().map(|at| order[*at].clone()).collect();
            others?.try_into().ok()
        };
        let mut found = contents.filter_map(|content| Some((content.clone(), others(&content)?)));
        found.next().unwrap()
    }
}

fn member(number: u32, generation: u64) -> Member {
    Member {
        node: Generation::new(&format!("node-{number}"), generation).unwrap(),
        address: format!("node-{number}:1"),
    }
}

fn digest(content: &Bytes) -> Digest {
    DigestFunction::Sha256.digest(content)
}

async fn read(store: &impl BlobStore, digest: &Digest) -> Result<Bytes> {
    store.get(digest, 0).await?.into_bytes().await
}
