//! Reads of an observer, which change neither last uses nor leases, and repair nothing.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use reapi::v2::ActionResult;

use super::{LocalStore, disk::Disk, layout};
use gorego_storage::{Digest, Error, EvictionObserver, Peek, Result, read_at};

impl LocalStore {
    /// Reports each eviction from now on. Later calls have no effect.
    pub fn observe_evictions(&self, observer: Arc<dyn EvictionObserver>) {
        let _ = self.disk.eviction_observer.set(observer);
    }
}

#[async_trait]
impl Peek for LocalStore {
    async fn peek_blob(&self, digest: &Digest) -> Result<Bytes> {
        let digest = *digest;
        let read = move |disk: &Arc<Disk>| {
            let path = layout::blob_path(&digest);
            let opened = disk.files.open_read(&path)?;
            let (file, _) = opened
                .filter(|(_, meta)| meta.size == digest.size())
                .ok_or(Error::NotFound(digest))?;
            let len = usize::try_from(digest.size()).unwrap_or(usize::MAX);
            let content = read_at(&file, 0, len)
                .map_err(|error| Error::io("reading", disk.files.path(&path), error))?;
            let is_valid = digest.is_of(&content);
            is_valid.then_some(content).ok_or(Error::NotFound(digest))
        };
        self.disk.run(read).await
    }

    async fn peek_result(&self, instance: &str, action: &Digest) -> Result<ActionResult> {
        let action = *action;
        let path = layout::action_path(&action, &layout::short_hash(instance));
        let load = move |disk: &Arc<Disk>| {
            let result = disk.load_result(None, &path)?;
            result.ok_or(Error::NoResult(action))
        };
        self.disk.run(load).await
    }
}
