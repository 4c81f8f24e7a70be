//! Reads of an observer. The peer may count them as uses.

use async_trait::async_trait;
use bytes::Bytes;
use reapi::v2::ActionResult;

use super::RemoteStore;
use gorego_storage::{BlobStore as _, Digest, Error, Peek, Result};

#[async_trait]
impl Peek for RemoteStore {
    async fn peek_blob(&self, digest: &Digest) -> Result<Bytes> {
        let blob = self.get(digest, 0).await?.truncate(digest.size());
        let content = blob.into_bytes().await?;
        let is_valid = digest.is_of(&content);
        is_valid.then_some(content).ok_or(Error::NotFound(*digest))
    }

    async fn peek_result(&self, instance: &str, action: &Digest) -> Result<ActionResult> {
        self.fetch(instance, action).await
    }
}
