//! Reads from several nodes: the next one continues where one fails.

mod batch;

use std::{sync::Arc, time::Duration, vec};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, stream};
use gorego_storage::{Arrival, Blob, BlobStore, BlobStream, Chunks, Digest, Error, Hasher, Result};
use tokio::time::{Instant, timeout};

use super::{
    hedge::hedged,
    hits::HitHistory,
    peers::{Nodes, Peer, Peers},
};

/// The time without a byte after which the rest of a blob is read from another place.
const STALL: Duration = Duration::from_secs(1);
/// The most bytes that arrive before a blob counts as opened.
const BEGINNING: u64 = 1 << 20;

/// The places from which blobs are read: the node that the call is near to, the first `most` nodes in rendezvous order,
/// and the backing cache, if there is one.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) peers: Arc<Peers>,
    pub(super) most: usize,
    pub(super) backing: Option<Backing>,
}

/// The backing cache behind the nodes.
#[derive(Clone, Debug)]
pub(super) struct Backing {
    pub(super) blobs: Arc<dyn BlobStore>,
    /// The hits of the nodes in rendezvous order. While there are few, few reads ask them before the backing cache.
    pub(super) hits: Arc<HitHistory>,
}

impl Places {
    /// Opens a blob at the first place that has it. The error is that of the backing cache, if there is one.
    pub(super) async fn open(&self, digest: Digest, offset: u64) -> Result<Blob> {
        Sources::new(self, digest).open(offset).await
    }
}

impl Backing {
    /// Returns whether to ask nodes in rendezvous order for this many blobs before the backing cache.
    pub(super) fn is_behind(&self, blobs: usize) -> bool {
        self.hits.asks(blobs)
    }
}

/// The places of one blob that are not asked yet.
struct Sources {
    digest: Digest,
    places: Places,
    nodes: Arc<Nodes>,
    near: Option<Arc<Peer>>,
    rest: vec::IntoIter<Arc<Peer>>,
    /// Set once `rest` is of the nodes in rendezvous order.
    is_ranked: bool,
    /// The backing cache; none once it has answered.
    backing: Option<Backing>,
}

impl Sources {
    fn new(places: &Places, digest: Digest) -> Self {
        let nodes = places.peers.nodes();
        let near = nodes.near();
        let first = near.clone();
        let first = first.filter(|near| !places.peers.is_corrupt(near, &digest));
        Self {
            digest,
            rest: Vec::from_iter(first).into_iter(),
            near,
            nodes,
            is_ranked: false,
            backing: places.backing.clone(),
            places: places.clone(),
        }
    }

    /// Returns the next node to ask; `None` if it is the turn of the backing cache, or none is left.
    fn next(&mut self) -> Option<Arc<Peer>> {
        if self.rest.len() == 0 && !self.is_ranked {
            let Places { peers, most, .. } = &self.places;
            let backing = self.backing.as_ref();
            if *most > 0 && backing.is_none_or(|backing| backing.is_behind(1)) {
                let ranked = peers.ranked(&self.nodes, &self.digest, *most, self.near.as_ref());
                (self.rest, self.is_ranked) = (ranked.into_iter(), true);
            }
        }
        self.rest.next()
    }

    async fn open(mut self, offset: u64) -> Result<Blob> {
        let (start, digest) = (Instant::now(), self.digest);
        let mut missing = Error::NotFound(digest);
        loop {
            let Some(peer) = self.next() else {
                let Some(backing) = self.backing.take() else {
                    return Err(missing);
                };
                match backing.blobs.get(&digest, offset).await {
                    Ok(blob) => return Ok(blob),
                    Err(error) => missing = error,
                }
                continue;
            };
            let Some(stores) = self.places.peers.stores(&peer) else {
                continue;
            };
            let node = || stores.blobs.get(&digest, offset);
            let (found, of_backing) = match self.backing.as_ref().map(|backing| &backing.blobs) {
                Some(backing) => {
                    let backing = || backing.get(&digest, offset);
                    let bytes = digest.size().min(BEGINNING);
                    hedged((start, bytes), node, backing, Result::is_ok).await
                }
                None => (Some(node().await), None),
            };
            match of_backing {
                Some(Ok(blob)) => return Ok(blob),
                Some(Err(error)) => (missing, self.backing) = (error, None),
                None => {}
            }
            match found {
                Some(Ok(blob)) => return Ok(self.found(peer, blob, offset)),
                Some(Err(error @ Error::OffsetPastEnd { .. })) => return Err(error),
                Some(Err(error)) => self.failed(&peer, &error),
                None => {}
            }
        }
    }

    fn found(self, peer: Arc<Peer>, blob: Blob, offset: u64) -> Blob {
        if let Some(backing) = self.places.backing.as_ref().filter(|_| self.is_ranked) {
            backing.hits.add(1);
        }
        match blob {
            Blob::Stream(stream) => {
                let read = Read {
                    digest: self.digest,
                    at: offset,
                    hasher: (offset == 0).then(|| Hasher::new(self.digest.function())),
                    from: Some(peer),
                    resumed: false,
                    chunks: stream.chunks,
                    sources: self,
                };
                read.into_blob()
            }
            blob => blob,
        }
    }

    /// Opens the rest of the blob at the next place that has it; `None` if none has it.
    async fn reopen(&mut self, at: u64) -> Option<(Option<Arc<Peer>>, Chunks)> {
        loop {
            let Some(peer) = self.next() else {
                let backing = self.backing.take()?.blobs;
                if let Ok(blob) = backing.get(&self.digest, at).await {
                    return Some((None, blob.into_chunks()));
                }
                continue;
            };
            let Some(stores) = self.places.peers.stores(&peer) else {
                continue;
            };
            match stores.blobs.get(&self.digest, at).await {
                Ok(blob) => return Some((Some(peer), blob.into_chunks())),
                Err(error) => self.failed(&peer, &error),
            }
        }
    }

    fn is_exhausted(&self) -> bool {
        let may_rank = !self.is_ranked && self.places.most > 0;
        self.rest.len() == 0 && !may_rank && self.backing.is_none()
    }

    fn failed(&self, peer: &Peer, error: &Error) {
        failed(&self.places.peers, peer, &self.digest, error);
    }
}

fn failed(peers: &Peers, peer: &Peer, digest: &Digest, error: &Error) {
    match error {
        Error::NotFound(_) => {}
        Error::Mismatch { .. } => peers.add_corrupt(peer, digest),
        error => {
            let node = &peer.member.node;
            tracing::debug!(%node, %digest, %error, "failed to read a blob of a node");
        }
    }
}

/// A blob that is read from one node after the other.
struct Read {
    digest: Digest,
    /// The offset of the next chunk, in bytes.
    at: u64,
    /// The hash of the content so far, if it was read from the start.
    hasher: Option<Hasher>,
    /// The node of `chunks`; none for the backing cache.
    from: Option<Arc<Peer>>,
    /// Set if the content is of several places.
    resumed: bool,
    chunks: Chunks,
    sources: Sources,
}

impl Read {
    fn into_blob(self) -> Blob {
        let chunks = stream::unfold(Some(self), |read| async move {
            let mut read = read?;
            match read.next().await {
                Ok(chunk) => Some((Ok(chunk?), Some(read))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Blob::Stream(BlobStream {
            chunks: chunks.boxed(),
            resume: None,
            verified: None,
        })
    }

    /// Returns the next chunk. The last is returned only if the content matches its digest.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.at == self.digest.size() {
            return Ok(None);
        }
        loop {
            let error = match self.chunk().await {
                Some(Ok(chunk)) => return self.checked(chunk).map(Some),
                Some(Err(error)) => error,
                None => Error::Unavailable(format!(
                    "blob {} ended after {} bytes",
                    self.digest, self.at
                )),
            };
            if let Some(peer) = &self.from {
                self.sources.failed(peer, &error);
            }
            if matches!(error, Error::Mismatch { .. }) && self.at > 0 {
                return Err(self.corrupt(error));
            }
            if !self.moves().await {
                return Err(error);
            }
        }
    }

    /// Returns the next chunk of this place, or of another one if this place stalls.
    async fn chunk(&mut self) -> Option<Result<Bytes>> {
        let arrival = Arrival::default();
        loop {
            let next = arrival.scope(self.chunks.next());
            if let Ok(chunk) = timeout(STALL, next).await {
                return chunk;
            }
            let is_slow = arrival.begun().now_or_never().is_some();
            if !is_slow && !self.moves().await {
                return self.chunks.next().await;
            }
        }
    }

    /// Moves to the next place that has the rest; returns false if there is none.
    async fn moves(&mut self) -> bool {
        let Some((from, chunks)) = self.sources.reopen(self.at).await else {
            return false;
        };
        (self.from, self.chunks, self.resumed) = (from, chunks, true);
        true
    }

    /// Counts and hashes a chunk. Each source verified its own content, but not the content of earlier sources.
    fn checked(&mut self, chunk: Bytes) -> Result<Bytes> {
        self.at += chunk.len() as u64;
        if self.at > self.digest.size() {
            let more = format_args!("more than {} bytes", self.digest.size());
            return Err(Error::mismatch(&self.digest, more));
        }
        let Some(hasher) = &mut self.hasher else {
            return Ok(chunk);
        };
        hasher.update(&chunk);
        if self.resumed && self.at == self.digest.size() {
            let actual = hasher.clone().finish();
            if actual != self.digest {
                return Err(self.corrupt(Error::mismatch(&self.digest, actual)));
            }
        }
        Ok(chunk)
    }

    /// Returns the error of a read whose first content was corrupt, so that the read cannot continue. Another read gets
    /// the blob from the next source, if there is one.
    fn corrupt(&self, error: Error) -> Error {
        if self.sources.is_exhausted() {
            return error;
        }
        Error::Unavailable(format!("{error}; read it again from another place"))
    }
}
