//! A backing cache with other nodes in front of it, for reads.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use gorego_storage::{Blob, BlobStore, Digest, DigestFunction, Put, Result};

use super::{
    peers::Peers,
    reads::{Backing, Places},
};

/// The first nodes in rendezvous order from which a blob is read.
const READ: usize = 3;

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
    backing: Arc<dyn BlobStore>,
    places: Places,
    read_only: bool,
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
        let behind = Backing {
            blobs: Arc::clone(&backing),
            hits: Arc::default(),
        };
        Self {
            backing,
            places: Places {
                peers,
                most: if options.peer_reads { READ } else { 0 },
                backing: Some(behind),
            },
            read_only: options.read_only,
        }
    }
}

#[async_trait]
impl BlobStore for Near {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let missing = self.backing.find_missing(digests).await;
        let Some(near) = self.places.peers.nodes().near() else {
            return missing;
        };
        match missing {
            Ok(missing) if missing.is_empty() || !self.read_only => Ok(missing),
            Ok(mut missing) => {
                let present = self.places.peers.present_at(&near, missing.clone()).await;
                missing.retain(|digest| !present.contains(digest));
                Ok(missing)
            }
            Err(error) => {
                let present = self.places.peers.present_at(&near, digests.to_vec()).await;
                let has_all = digests.iter().all(|digest| present.contains(digest));
                has_all.then(Vec::new).ok_or(error)
            }
        }
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        self.places.open(*digest, offset).await
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
        self.places.get_batch(digests).await
    }

    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        self.backing.put_batch(blobs).await
    }
}
