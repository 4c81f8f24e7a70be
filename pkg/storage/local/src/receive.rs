//! Takes in a blob that arrives as a stream, up to where it is complete and only has to be shown.

use std::{fmt, sync::Arc};

use futures::StreamExt as _;
use tokio::{runtime::Handle, time::timeout};

use super::{
    LocalStore,
    blobs::{UPLOAD, check_size},
    collected::SLOW,
    core::Core,
    growth::Growth,
    upload::{RESERVE_STEP, Upload},
};
use crate::index::SIZE_END;
use gorego_storage::{Blob, Chunks, Digest, Error, Put, Result, Resume, UploadId};

/// How a blob was taken in.
#[derive(Debug)]
pub enum Received {
    /// It was here, or another client finished it first; the content may be unread.
    Existed,
    /// All of it arrived.
    Complete(Complete),
}

/// A blob that has arrived and that nobody sees yet. Dropped, it is as an upload that broke off.
pub struct Complete(Box<Guard>);

impl LocalStore {
    /// Takes in content as [`gorego_storage::BlobStore::put`] does, but does not show it. Whoever has
    /// `growth` can read it meanwhile.
    pub async fn receive(
        &self,
        digest: &Digest,
        chunks: Chunks,
        resume: Option<Resume>,
        growth: Option<Arc<Growth>>,
    ) -> Result<Received> {
        receive(&self.core, digest, chunks, resume, growth).await
    }

    /// Drops what is kept of an upload that broke off, whoever is sending it.
    pub async fn discard_upload(&self, digest: &Digest, upload: &UploadId) -> Result<()> {
        let resume = Resume {
            upload: upload.clone(),
            offset: 0,
        };
        let upload = Upload::begin(&self.core, digest, Some(resume), None).await;
        upload.discard().await
    }
}

/// Stores content as it arrives; see [`gorego_storage::BlobStore::put`].
pub(super) async fn put_stream(
    core: &Arc<Core>,
    digest: &Digest,
    chunks: Chunks,
    resume: Option<Resume>,
) -> Result<Put> {
    if let Some(other) = digest.other()
        && core.seek(&other, UPLOAD).await?.is_some()
    {
        return Ok(Put::Existed);
    }
    match receive(core, digest, chunks, resume, None).await? {
        Received::Existed => Ok(Put::Existed),
        Received::Complete(complete) => complete.publish().await,
    }
}

async fn receive(
    core: &Arc<Core>,
    digest: &Digest,
    mut chunks: Chunks,
    resume: Option<Resume>,
    growth: Option<Arc<Growth>>,
) -> Result<Received> {
    if digest.size() >= SIZE_END {
        check_size(digest, digest.size())?;
    }
    // Watching comes before looking, so that no other upload's end falls in between.
    let watch = core.watchers.watch(digest);
    if digest.is_empty_blob() || core.seek(digest, UPLOAD).await?.is_some() {
        return Ok(Received::Existed);
    }
    // Before anything is evicted for it.
    let free = (digest.size() > RESERVE_STEP).then(|| core.files.free());
    core.room
        .check_fits(digest.size(), &digest.to_string(), free.flatten())?;
    let mut upload = Guard(Some(Upload::begin(core, digest, resume, growth).await));
    let claim = upload.0.as_ref().and_then(|upload| upload.claim.clone());
    let superseded = async move {
        match claim {
            Some(claim) => claim.superseded().await,
            None => std::future::pending().await,
        }
    };
    let receive = async {
        while let Some(upload) = &mut upload.0 {
            let next = chunks.next();
            // Nothing is to be done for a stalled upload that has little in memory.
            let next = if upload.has_much() {
                timeout(SLOW, next).await
            } else {
                Ok(next.await)
            };
            match next {
                Ok(Some(chunk)) => upload.push(chunk?).await?,
                Ok(None) => break,
                Err(_) => upload.write_due().await?,
            }
        }
        Ok(())
    };
    let ended = tokio::select! {
        biased;
        () = superseded => Err(Error::Superseded(*digest)),
        () = watch.published() => {
            upload.abandon().await?;
            return Ok(Received::Existed);
        }
        ended = receive => ended,
    };
    let Some(taken) = upload.0.take() else {
        return Ok(Received::Existed);
    };
    match ended {
        Ok(()) => {
            let complete = taken.complete().await?;
            Ok(Received::Complete(Complete(Box::new(Guard(Some(
                complete,
            ))))))
        }
        Err(error) => {
            taken.end(error.clone()).await?;
            Err(error)
        }
    }
}

impl Complete {
    /// Checks the content and returns its digest: the announced one or, if the client named no
    /// function, possibly that of the other function. After an error, nothing of the content is
    /// stored.
    pub async fn verify(&mut self) -> Result<Digest> {
        let upload = self.0.0.as_mut().ok_or_else(gone)?;
        let verified = upload.verify().await;
        if verified.is_err() {
            self.0.abandon().await?;
        }
        verified
    }

    /// The content, as often as it is wanted, until this is published or dropped.
    pub fn blob(&self) -> Result<Blob> {
        self.upload()?.blob()
    }

    /// Verifies the content and shows it to everybody.
    pub async fn publish(mut self) -> Result<Put> {
        match self.0.0.take() {
            Some(upload) => upload.publish().await,
            None => Err(gone()),
        }
    }

    /// Removes it.
    pub async fn discard(mut self) -> Result<()> {
        self.0.abandon().await
    }

    fn upload(&self) -> Result<&Upload> {
        self.0.0.as_ref().ok_or_else(gone)
    }
}

fn gone() -> Error {
    Error::Unavailable("the upload is over".to_owned())
}

impl fmt::Debug for Complete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Complete").finish_non_exhaustive()
    }
}

/// An upload whose caller may vanish at any moment; what it collected is kept even then.
struct Guard(Option<Upload>);

impl Guard {
    /// Nothing comes of it, and nothing is kept.
    async fn abandon(&mut self) -> Result<()> {
        match self.0.take() {
            Some(upload) => upload.discard().await,
            None => Ok(()),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(upload) = self.0.take() else { return };
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let tracker = upload.core.tracker.clone();
        tracker.spawn_on(
            async move {
                if let Err(error) = upload.suspend().await {
                    tracing::debug!(%error, "could not keep an upload that broke off");
                }
            },
            &runtime,
        );
    }
}
