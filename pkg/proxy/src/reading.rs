//! The two tiers for whoever only wants to know what can be read.

use std::sync::Arc;

use async_trait::async_trait;
use gorego_storage::{Blob, BlobStore, Digest, Put, Result};

use crate::ProxyStore;

/// The proxy, but for what is missing: here that is what can be had from neither tier. The backing
/// cache is not asked about what is here, so that what is here is of use while it is down.
#[derive(Debug)]
pub(crate) struct Reading(pub(crate) ProxyStore);

impl Reading {
    pub(crate) fn of(store: &ProxyStore) -> Arc<dyn BlobStore> {
        Arc::new(Self(store.clone()))
    }
}

#[async_trait]
impl BlobStore for Reading {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        self.0.tiers.find_unreadable(digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        self.0.get(digest, offset).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        self.0.put(digest, blob).await
    }
}
