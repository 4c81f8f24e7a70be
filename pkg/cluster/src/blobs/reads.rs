//! Reads from several nodes: the next one continues where one fails.

use std::{collections::BTreeMap, sync::Arc, vec};

use bytes::Bytes;
use futures::{StreamExt as _, future, stream};
use gorego_storage::{Blob, BlobStore, BlobStream, Chunks, Digest, Error, Hasher, Result};

use super::peers::{Nodes, Peer, Peers};

/// The places of a blob, the best first.
pub(super) struct Sources {
    peers: Arc<Peers>,
    rest: vec::IntoIter<Arc<Peer>>,
    /// The backing cache, which comes last.
    backing: Option<Arc<dyn BlobStore>>,
}

impl Sources {
    pub(super) fn new(
        peers: &Arc<Peers>,
        digest: &Digest,
        most: usize,
        backing: Option<Arc<dyn BlobStore>>,
    ) -> Self {
        let rest = peers.sources(&peers.nodes(), digest, most).into_iter();
        let peers = Arc::clone(peers);
        Self {
            peers,
            rest,
            backing,
        }
    }

    /// Opens the blob at the first node that has it. `None` if none of the nodes has it.
    pub(super) async fn open(mut self, digest: Digest, offset: u64) -> Result<Option<Blob>> {
        while let Some(peer) = self.rest.next() {
            let Some(stores) = self.peers.stores(&peer) else {
                continue;
            };
            match stores.blobs.get(&digest, offset).await {
                Ok(Blob::Stream(stream)) => {
                    let read = Read {
                        digest,
                        at: offset,
                        hasher: (offset == 0).then(|| Hasher::new(digest.function())),
                        from: Some(peer),
                        resumed: false,
                        chunks: stream.chunks,
                        sources: self,
                    };
                    return Ok(Some(read.into_blob()));
                }
                Ok(blob) => return Ok(Some(blob)),
                Err(error @ Error::OffsetPastEnd { .. }) => return Err(error),
                Err(error) => self.failed(&peer, &digest, &error),
            }
        }
        Ok(None)
    }

    /// Opens the rest of the blob at the next place that has it; `None` if none has it.
    async fn reopen(&mut self, digest: &Digest, at: u64) -> Option<(Option<Arc<Peer>>, Chunks)> {
        while let Some(peer) = self.rest.next() {
            let Some(stores) = self.peers.stores(&peer) else {
                continue;
            };
            match stores.blobs.get(digest, at).await {
                Ok(blob) => return Some((Some(peer), blob.into_chunks())),
                Err(error) => self.failed(&peer, digest, &error),
            }
        }
        let blob = self.backing.take()?.get(digest, at).await.ok()?;
        Some((None, blob.into_chunks()))
    }

    fn failed(&self, peer: &Peer, digest: &Digest, error: &Error) {
        failed(&self.peers, peer, digest, error);
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
            let error = match self.chunks.next().await {
                Some(Ok(chunk)) => return self.checked(chunk).map(Some),
                Some(Err(error)) => error,
                None => Error::Unavailable(format!(
                    "blob {} ended after {} bytes",
                    self.digest, self.at
                )),
            };
            if let Some(peer) = &self.from {
                self.sources.failed(peer, &self.digest, &error);
            }
            if matches!(error, Error::Mismatch { .. }) && self.at > 0 {
                return Err(self.corrupt(error));
            }
            let next = self.sources.reopen(&self.digest, self.at).await;
            let (from, chunks) = next.ok_or(error)?;
            (self.from, self.chunks, self.resumed) = (from, chunks, true);
        }
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
        if self.sources.rest.len() == 0 && self.sources.backing.is_none() {
            return error;
        }
        Error::Unavailable(format!("{error}; read it again from another place"))
    }
}

/// Reads small blobs, each from the first node that has it. All are read from their first nodes at once, then the
/// missing ones from their second nodes. `None` for a blob that no node has.
pub(super) async fn get_batch(
    peers: &Arc<Peers>,
    nodes: &Nodes,
    digests: &[Digest],
    most: usize,
) -> Vec<Option<Bytes>> {
    let mut found = vec![None; digests.len()];
    let sources = digests.iter();
    let mut sources: Vec<_> = sources
        .map(|digest| peers.sources(nodes, digest, most).into_iter())
        .collect();
    loop {
        let mut batches = BTreeMap::<u64, (Arc<Peer>, Vec<(usize, Digest)>)>::new();
        for (index, (digest, sources)) in digests.iter().zip(&mut sources).enumerate() {
            if found.get(index).is_some_and(Option::is_none)
                && let Some(peer) = sources.next()
            {
                let batch = batches.entry(peer.id());
                let (_, batch) = batch.or_insert_with(|| (peer, Vec::new()));
                batch.push((index, *digest));
            }
        }
        if batches.is_empty() {
            return found;
        }
        let reads = batches.into_values().map(|(peer, batch)| async move {
            let digests: Vec<Digest> = batch.iter().map(|(_, digest)| *digest).collect();
            let read = match peers.stores(&peer) {
                Some(stores) => stores.blobs.get_batch(&digests).await,
                None => Vec::new(),
            };
            (peer, batch, read)
        });
        for (peer, batch, read) in future::join_all(reads).await {
            for ((index, digest), content) in batch.into_iter().zip(read) {
                match (content, found.get_mut(index)) {
                    (Ok(content), Some(place)) => *place = Some(content),
                    (Err(error), _) => failed(peers, &peer, &digest, &error),
                    (Ok(_), None) => {}
                }
            }
        }
    }
}
