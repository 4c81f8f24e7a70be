//! A backing cache with other nodes in front of it, for reads.

use std::{pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use gorego_storage::{Blob, BlobStore, Digest, DigestFunction, Error, Put, Result};
use tokio::time::timeout;

use super::{
    hits::HitHistory,
    peers::Peers,
    reads::{self, Sources},
};

/// The first nodes in rendezvous order from which a blob is read.
const READ: usize = 3;
/// The time that the nodes have to answer before the backing cache is also asked; longer for large batches.
const HEDGE: Duration = Duration::from_millis(20);
/// The bytes of a batch for which the hedge is one millisecond longer.
const PER_MILLISECOND: u64 = 64 << 10;

/// A backing cache whose blobs are read from other nodes where these have them: from the node that the call is near to
/// and, if so configured, from the first nodes in rendezvous order. Lookups and writes go to the backing cache only,
/// with one exception: a call that is near to a node finds the node's blobs that a read-only backing cache lacks, and
/// all of them while the backing cache is down.
///
/// A read from the first nodes in rendezvous order saves traffic of the backing cache if they have the blob, and time
/// if the backing cache is farther away than they are. Otherwise it costs a round trip for each node, at most the hedge.
/// Hence only few reads ask these nodes while they have nothing. They are always asked for blobs that the backing cache
/// lacks.
#[derive(Clone, Debug)]
pub struct Near {
    peers: Arc<Peers>,
    backing: Arc<dyn BlobStore>,
    options: NearOptions,
    hits: Arc<HitHistory>,
}

/// The options of [`Near`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NearOptions {
    /// Set if blobs are also read from nodes that the call is not near to (`cluster.peer_reads`).
    pub peer_reads: bool,
    /// Set if this node never writes to the backing cache.
    pub read_only: bool,
}

impl Near {
    /// Puts `peers` in front of `backing`.
    pub fn new(peers: Arc<Peers>, backing: Arc<dyn BlobStore>, options: NearOptions) -> Self {
        Self {
            peers,
            backing,
            options,
            hits: Arc::default(),
        }
    }

    /// Returns the number of nodes in rendezvous order to ask for this many blobs: 0 if nodes had none lately.
    fn most(&self, blobs: usize) -> usize {
        let most = self.most_of_all();
        if most > 0 && self.hits.asks(blobs) {
            most
        } else {
            0
        }
    }

    /// Returns the number of nodes in rendezvous order to ask for blobs that the backing cache lacks.
    const fn most_of_all(&self) -> usize {
        if self.options.peer_reads { READ } else { 0 }
    }

    /// Opens a blob at the node that the call is near to, or at one of the first `most` nodes in rendezvous order. If
    /// they fail later, the backing cache has the rest. `None` if none of them has the blob.
    async fn read(&self, digest: &Digest, offset: u64, most: usize) -> Option<Blob> {
        let rest = Some(Arc::clone(&self.backing));
        let sources = Sources::new(&self.peers, digest, most, rest);
        let found = sources.open(*digest, offset).await.ok().flatten()?;
        if most > 0 {
            self.hits.add(1);
        }
        Some(found)
    }

    /// Reads small blobs from the same nodes as [`Self::read`], in the order of `digests`; `None` for those that they
    /// lack.
    async fn read_batch(&self, digests: &[Digest], most: usize) -> Vec<Option<Bytes>> {
        let nodes = self.peers.nodes();
        let found = reads::get_batch(&self.peers, &nodes, digests, most).await;
        if most > 0 {
            self.hits.add(found.iter().flatten().count());
        }
        found
    }

    /// Reads small blobs from nodes, and from the backing cache after the hedge or if the nodes lack them.
    async fn hedged_batch(&self, digests: &[Digest], most: usize) -> Vec<Result<Bytes>> {
        let bytes = digests.iter().map(Digest::size);
        let bytes = bytes.fold(0u64, u64::saturating_add);
        let hedge = HEDGE + Duration::from_millis(bytes / PER_MILLISECOND);
        let mut peers = pin!(self.read_batch(digests, most));
        if let Ok(found) = timeout(hedge, &mut peers).await {
            return self.complete(digests, found).await;
        }
        let mut backing = pin!(self.backing.get_batch(digests));
        tokio::select! {
            found = &mut peers => match found.iter().cloned().collect::<Option<Vec<_>>>() {
                Some(all) => all.into_iter().map(Ok).collect(),
                None => merge(found, backing.await),
            },
            answers = &mut backing => {
                if answers.iter().all(Result::is_ok) {
                    return answers;
                }
                merge(peers.await, answers)
            }
        }
    }

    /// Reads the blobs that the nodes lack from the backing cache.
    async fn complete(&self, digests: &[Digest], found: Vec<Option<Bytes>>) -> Vec<Result<Bytes>> {
        let missing = digests.iter().zip(&found);
        let missing = missing.filter_map(|(digest, found)| found.is_none().then_some(*digest));
        let missing: Vec<Digest> = missing.collect();
        let mut answers = Vec::new().into_iter();
        if !missing.is_empty() {
            answers = self.backing.get_batch(&missing).await.into_iter();
        }
        let mut answer = |digest| answers.next().unwrap_or(Err(Error::NotFound(digest)));
        let all = digests.iter().zip(found);
        all.map(|(digest, found)| found.map_or_else(|| answer(*digest), Ok))
            .collect()
    }
}

#[async_trait]
impl BlobStore for Near {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let missing = self.backing.find_missing(digests).await;
        let Some(near) = self.peers.nodes().near() else {
            return missing;
        };
        match missing {
            Ok(missing) if missing.is_empty() || !self.options.read_only => Ok(missing),
            Ok(mut missing) => {
                let present = self.peers.present_at(&near, missing.clone()).await;
                missing.retain(|digest| !present.contains(digest));
                Ok(missing)
            }
            Err(error) => {
                let present = self.peers.present_at(&near, digests.to_vec()).await;
                let has_all = digests.iter().all(|digest| present.contains(digest));
                has_all.then(Vec::new).ok_or(error)
            }
        }
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        let (most, backing) = (self.most(1), self.backing.get(digest, offset));
        let read = hedged(HEDGE, self.read(digest, offset, most), backing).await;
        match read {
            Err(error) if most < self.most_of_all() => {
                let found = self.read(digest, offset, self.most_of_all()).await;
                found.ok_or(error)
            }
            read => read,
        }
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        self.backing.put(digest, blob).await
    }

    async fn digest_functions(&self) -> Vec<DigestFunction> {
        self.backing.digest_functions().await
    }

    fn outages(&self) -> u64 {
        self.backing.outages()
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        let most = self.most(digests.len());
        let mut answers = self.hedged_batch(digests, most).await;
        if most < self.most_of_all() {
            let failed = digests.iter().zip(&mut answers);
            let failed = failed.filter(|(_, answer)| answer.is_err());
            let (failed, places): (Vec<Digest>, Vec<_>) = failed.unzip();
            let found = self.read_batch(&failed, self.most_of_all()).await;
            for (place, found) in places.into_iter().zip(found) {
                if let Some(found) = found {
                    *place = Ok(found);
                }
            }
        }
        answers
    }

    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        self.backing.put_batch(blobs).await
    }
}

/// Combines the blobs of the nodes with the answers of the backing cache for the others.
fn merge(found: Vec<Option<Bytes>>, answers: Vec<Result<Bytes>>) -> Vec<Result<Bytes>> {
    let both = found.into_iter().zip(answers);
    both.map(|(found, answer)| found.map_or(answer, Ok))
        .collect()
}

/// Returns the answer of the nodes, or that of the backing cache. The backing cache is asked once the nodes have
/// nothing, or have not answered for `hedge`. The first answer with content wins, and the other is dropped.
async fn hedged<T>(
    hedge: Duration,
    peers: impl Future<Output = Option<T>>,
    backing: impl Future<Output = Result<T>>,
) -> Result<T> {
    let (mut peers, mut backing) = (pin!(peers), pin!(backing));
    match timeout(hedge, &mut peers).await {
        Ok(Some(found)) => return Ok(found),
        Ok(None) => return backing.await,
        Err(_) => {}
    }
    tokio::select! {
        found = &mut peers => match found {
            Some(found) => Ok(found),
            None => backing.await,
        },
        answer = &mut backing => match answer {
            Ok(found) => Ok(found),
            Err(error) => peers.await.ok_or(error),
        },
    }
}
