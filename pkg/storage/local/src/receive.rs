//! Receives blobs that arrive as streams, up to their publication.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use tokio::time::timeout;

use super::{
    LocalStore, layout,
    upload::{CompleteUpload, RESERVE_STEP, SLOW, StagedUpload},
    write::{UPLOAD, check_size},
};
use crate::index::SIZE_END;
use gorego_storage::{
    Chunks, Digest, Error, Growth, Put, Result, Resume, UploadId, Uploads, span::Outcome,
};

/// The outcome of receiving a blob.
pub enum Received {
    /// The blob was already stored, or another upload of it ended first. The rest of the stream may not have been read.
    Existed,
    /// All content arrived.
    Complete(CompleteUpload),
}

impl Outcome for Received {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Existed => Put::Existed.outcome(),
            Self::Complete(_) => Put::Stored.outcome(),
        }
    }
}

#[async_trait]
impl Uploads for LocalStore {
    async fn committed(&self, digest: &Digest, upload: &UploadId) -> Result<u64> {
        let path = layout::upload_path(digest, upload);
        let size = self.disk.run(move |disk| disk.files.size(&path)).await?;
        Ok(size.map_or(0, |size| size.min(digest.size())))
    }
}

impl LocalStore {
    /// Receives content like [`gorego_storage::BlobStore::put`], but does not publish it. `growth` can be read
    /// meanwhile.
    pub async fn receive(
        &self,
        digest: &Digest,
        mut chunks: Chunks,
        resume: Option<Resume>,
        growth: Option<Arc<Growth>>,
    ) -> Result<Received> {
        let disk = &self.disk;
        if digest.size() >= SIZE_END {
            check_size(digest, digest.size())?;
        }
        // Before the lookup, so that the end of no other upload is missed.
        let published = disk.watchers.watch(digest);
        if disk.has(digest, UPLOAD).await? {
            return Ok(Received::Existed);
        }
        // Checked before anything is evicted for it.
        let free = (digest.size() > RESERVE_STEP).then(|| disk.files.free());
        disk.room
            .check_fits(digest.size(), digest, free.flatten())?;
        let mut upload = Box::new(StagedUpload::begin(disk, digest, resume, growth).await);
        let superseded = upload.superseded();
        let receive = async {
            loop {
                let next = chunks.next();
                // A stalled upload keeps few bytes in memory.
                let next = if upload.buffer.are_many() {
                    timeout(SLOW, next).await
                } else {
                    Ok(next.await)
                };
                match next {
                    Ok(Some(chunk)) => upload.push(chunk?).await?,
                    Ok(None) => return upload.complete().await,
                    Err(_) => upload.write_due().await?,
                }
            }
        };
        let received = tokio::select! {
            biased;
            () = superseded => Err(Error::Superseded(*digest)),
            () = published => {
                upload.discard().await?;
                return Ok(Received::Existed);
            }
            received = receive => received,
        };
        if let Err(error) = received {
            upload.end(&error).await?;
            return Err(error);
        }
        Ok(Received::Complete(CompleteUpload(upload)))
    }

    /// Stops an upload that is in progress or was interrupted, and removes its kept bytes.
    pub async fn discard_upload(&self, digest: &Digest, upload: &UploadId) -> Result<()> {
        let resume = Resume {
            upload: upload.clone(),
            offset: 0,
        };
        let mut upload = StagedUpload::begin(&self.disk, digest, Some(resume), None).await;
        upload.discard().await
    }
}
