//! The owners of each blob and each result, as the tier behind the local one.

mod spread;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    StreamExt as _, future,
    stream::{self, FuturesOrdered},
};
use gorego_limits::Budget;
use gorego_storage::{
    ActionCache, Blob, BlobFile, BlobStore, CachedResult, Digest, Error, InUse, Put, Result,
};
use reapi::v2::ActionResult;

use super::{
    peers::{Peer, PeerStores, Peers},
    reads::Places,
};
use spread::spread;

/// The blobs and results of a cluster without a backing cache: each is stored by its owners, the first `replicas` nodes
/// in the order of its digest. This node may be an owner, and also stores the blobs that pass through its local tier.
///
/// A write is acknowledged once all owners have it. A node that fails is replaced by the next ones in the order. If
/// these fail, too, the copy in the local tier counts alone: the caller stores each blob there first, and fails if it
/// cannot. Reads and lookups never fail: a blob that no owner returns is missing.
#[derive(Clone, Debug)]
pub struct Owners {
    peers: Arc<Peers>,
    local: Arc<dyn BlobStore>,
    replicas: usize,
    places: Places,
}

impl Owners {
    /// Creates the owners among `peers` and this node, which has the blobs in `local`.
    pub fn new(peers: Arc<Peers>, local: Arc<dyn BlobStore>, replicas: usize) -> Self {
        let replicas = replicas.max(1);
        Self {
            places: Places {
                peers: Arc::clone(&peers),
                most: replicas.saturating_add(1),
                backing: None,
            },
            peers,
            local,
            replicas,
        }
    }

    /// The number of nodes that are asked for a blob: its owners, and one that was an owner before another node joined.
    const fn asked(&self) -> usize {
        self.places.most
    }

    async fn put_file(&self, digest: &Digest, file: BlobFile) -> Result<Put> {
        let guard: Option<Arc<dyn InUse>> = file.guard.map(Arc::from);
        let (opened, path) = (&file.file, &file.path);
        let copy = || {
            Blob::File(BlobFile {
                file: Arc::clone(opened),
                path: path.clone(),
                offset: file.offset,
                len: file.len,
                guard: guard.clone().map(|guard| Box::new(Shared(guard)) as _),
            })
        };
        let send = |stores: PeerStores, _: Vec<usize>| {
            let blob = copy();
            async move { vec![stores.blobs.put(digest, blob).await] }
        };
        let put = spread(&self.peers, &[*digest], self.replicas, send).await;
        put.into_iter().next().unwrap_or(Ok(Put::Existed))
    }

    async fn find_result(
        &self,
        peer: Arc<Peer>,
        (instance, action): (&str, &Digest),
        memory: &Budget,
    ) -> Option<CachedResult> {
        let stores = self.peers.stores(&peer)?;
        let found = stores.actions.get(instance, action, memory);
        match peer.answer(found).await {
            Some(Ok(found)) => return Some(found),
            Some(Err(error)) if error.is_miss() => {}
            failed => {
                let node = &peer.member.node;
                tracing::debug!(%node, %action, ?failed, "failed to look up a result at a node");
            }
        }
        None
    }
}

/// A guard of content that several nodes read.
struct Shared(Arc<dyn InUse>);

impl InUse for Shared {
    fn unreadable(&self) {
        self.0.unreadable();
    }

    fn was_read(&self, bytes: u64) {
        self.0.was_read(bytes);
    }
}

#[async_trait]
impl BlobStore for Owners {
    /// Reports a blob of this node as missing until the other owners have it, too, so that the caller copies it to
    /// them.
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let nodes = self.peers.nodes();
        let mut unique = HashSet::new();
        let mut missing = digests.to_vec();
        missing.retain(|digest| !digest.is_empty_blob() && unique.insert(*digest));
        let mut here: HashSet<Digest> = missing.iter().copied().collect();
        for lacking in self.local.find_missing(&missing).await? {
            here.remove(&lacking);
        }
        let near = nodes.near();
        let mut batches = BTreeMap::<u64, (Arc<Peer>, Vec<Digest>)>::new();
        for digest in &missing {
            let is_here = here.contains(digest);
            let asked = if is_here { self.replicas } else { self.asked() };
            let mut peers: Vec<_> = nodes.first(digest, asked).into_iter().flatten().collect();
            let is_new = |near: &Arc<Peer>| peers.iter().all(|peer| peer.id() != near.id());
            let near = near.clone().filter(|near| !is_here && is_new(near));
            peers.extend(near);
            for peer in peers {
                let batch = batches.entry(peer.id());
                batch.or_insert_with(|| (peer, Vec::new())).1.push(*digest);
            }
        }
        let lookups = batches.into_values().map(|(peer, batch)| async move {
            let present = self.peers.present_at(&peer, batch.clone()).await;
            (batch, present)
        });
        let (mut found, mut copied) = (HashSet::new(), here.clone());
        for (batch, present) in future::join_all(lookups).await {
            for lacking in batch.iter().filter(|digest| !present.contains(digest)) {
                copied.remove(lacking);
            }
            found.extend(present);
        }
        missing.retain(|digest| {
            let is_present = if here.contains(digest) {
                &copied
            } else {
                &found
            };
            !is_present.contains(digest)
        });
        Ok(missing)
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        self.places.open(*digest, offset).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        match blob {
            Blob::File(file) => self.put_file(digest, file).await,
            // Callers store a stream in the local tier first.
            Blob::Stream(_) => Err(Error::Unavailable(format!(
                "the content of {digest} cannot be read for each owner"
            ))),
            Blob::Bytes(content) => {
                let put = self.put_batch(vec![(*digest, content)]).await;
                put.into_iter().next().unwrap_or(Ok(Put::Existed))
            }
        }
    }

    fn outages(&self) -> u64 {
        self.peers.outages()
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        self.places.get_batch(digests).await
    }

    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        let digests: Vec<Digest> = blobs.iter().map(|(digest, _)| *digest).collect();
        let send = |stores: PeerStores, indexes: Vec<usize>| {
            let sent = indexes.iter().filter_map(|index| blobs.get(*index));
            let sent: Vec<_> = sent.cloned().collect();
            async move { stores.blobs.put_batch(sent).await }
        };
        spread(&self.peers, &digests, self.replicas, send).await
    }
}

#[async_trait]
impl ActionCache for Owners {
    /// Returns the result of the first owner that has one.
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        let nodes = self.peers.nodes();
        let name = (instance, action);
        let asked = nodes.first(action, self.asked()).into_iter().flatten();
        let asked = asked.map(|peer| self.find_result(peer, name, memory));
        let answers = asked.collect::<FuturesOrdered<_>>();
        let mut found = Box::pin(answers.flat_map(stream::iter));
        found.next().await.ok_or(Error::NoResult(*action))
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let send = |stores: PeerStores, _: Vec<usize>| {
            let result = result.clone();
            async move {
                let put = stores.actions.put(instance, action, result).await;
                vec![put.map(|()| Put::Stored)]
            }
        };
        let put = spread(&self.peers, &[*action], self.replicas, send).await;
        put.into_iter().collect::<Result<Vec<_>>>().map(drop)
    }
}
