//! Writing through: the backing cache has a blob before anybody hears that it is stored.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use gorego_storage::{Blob, BlobStore, BlobStream, Chunks, Digest, Error, Put, Result, Resume};
use gorego_storage_local::{Complete, Received};

use crate::{existence::Epoch, source::Source, store::Tiers};

/// What the backing cache says of an upload, and what is here of it.
/// The last part is whether the backing cache read any of the upload.
type Settled = (Result<Put>, Result<Received>, bool);

impl Tiers {
    pub(crate) async fn put(self: &Arc<Self>, digest: &Digest, blob: Blob) -> Result<Put> {
        if self.options.read_only || digest.is_empty_blob() {
            return self.local.put(digest, blob).await;
        }
        match blob {
            Blob::Bytes(content) => self.put_bytes(digest, content).await,
            blob => {
                let resume = match &blob {
                    Blob::Stream(BlobStream { resume, .. }) => resume.clone(),
                    _ => None,
                };
                let chunks = blob.into_chunks();
                match resume {
                    Some(resume) if resume.offset > 0 => {
                        self.put_rest(digest, chunks, resume).await
                    }
                    resume => self.put_stream(digest, chunks, resume).await,
                }
            }
        }
    }

    async fn put_bytes(self: &Arc<Self>, digest: &Digest, content: Bytes) -> Result<Put> {
        check(digest, &content)?;
        let mut put = Put::Existed;
        if !self.existence.has(digest) {
            let epoch = self.existence.epoch();
            let blob = Blob::Bytes(content.clone());
            put = match self.backing.put(digest, blob).await {
                Err(error) if self.degrades(&error) => {
                    return self.put_bytes_here(digest, content).await;
                }
                put => put?,
            };
            self.took(epoch, [digest]);
        }
        if let Err(error) = self.local.put(digest, Blob::Bytes(content)).await {
            tracing::debug!(%digest, %error, "what was uploaded is not kept here");
        }
        Ok(put)
    }

    /// Accepts a blob that has to wait for the backing cache.
    async fn put_bytes_here(self: &Arc<Self>, digest: &Digest, content: Bytes) -> Result<Put> {
        let (tiers, digest) = (Arc::clone(self), *digest);
        self.accept(digest, async move {
            tiers.local.put(&digest, Blob::Bytes(content)).await
        })
        .await
    }

    /// Makes a blob pending once `publish` has stored it. Both happen even if the caller goes away.
    pub(crate) async fn accept(
        &self,
        digest: Digest,
        publish: impl Future<Output = Result<Put>> + Send + 'static,
    ) -> Result<Put> {
        let outbox = Arc::clone(&self.outbox);
        let accept = async move { outbox.add_blobs(vec![digest], publish).await };
        self.see_through(digest, accept).await
    }

    pub(crate) async fn put_batch(
        self: &Arc<Self>,
        blobs: Vec<(Digest, Bytes)>,
    ) -> Vec<Result<Put>> {
        if self.options.read_only {
            return self.local.put_batch(blobs).await;
        }
        let mut results: Vec<Option<Result<Put>>> = Vec::with_capacity(blobs.len());
        let mut good = Vec::with_capacity(blobs.len());
        for (digest, content) in blobs {
            let checked = if digest.is_empty_blob() && content.is_empty() {
                Some(Ok(Put::Existed))
            } else {
                check(&digest, &content).err().map(Err)
            };
            if checked.is_none() {
                good.push((digest, content));
            }
            results.push(checked);
        }
        let epoch = self.existence.epoch();
        let mut put = self.backing.put_batch(good.clone()).await;
        let waiting = good.clone();
        let there: Vec<_> = good
            .into_iter()
            .zip(&put)
            .filter_map(|(blob, put)| put.is_ok().then_some(blob))
            .collect();
        if !there.is_empty() {
            self.took(epoch, there.iter().map(|(digest, _)| digest));
        }
        for (result, (digest, content)) in put.iter_mut().zip(&waiting) {
            if let Err(error) = result
                && self.degrades(error)
            {
                *result = self.put_bytes_here(digest, content.clone()).await;
            }
        }
        for kept in self.local.put_batch(there).await {
            if let Err(error) = kept {
                tracing::debug!(%error, "what was uploaded is not kept here");
            }
        }
        let mut put = put.into_iter();
        let lost = || {
            Err(Error::Unavailable(
                "the backing cache gave no answer".to_owned(),
            ))
        };
        results
            .into_iter()
            .map(|checked| checked.or_else(|| put.next()).unwrap_or_else(lost))
            .collect()
    }

    /// An upload from its first byte on goes to both tiers at once.
    async fn put_stream(
        self: &Arc<Self>,
        digest: &Digest,
        chunks: Chunks,
        resume: Option<Resume>,
    ) -> Result<Put> {
        if !self.is_being_sent(digest).await {
            let epoch = self.existence.epoch();
            if let Some(said) = self.put_both(digest, chunks, resume.clone()).await? {
                return self.settle(digest, epoch, said).await;
            }
            self.existence.insert(epoch, [digest]);
        }
        if let Some(resume) = resume {
            // Nobody will go on with it.
            let discarded = self.local.discard_upload(digest, &resume.upload).await;
            if let Err(error) = discarded {
                tracing::warn!(%digest, %error, "what is left of an upload stays here");
            }
        }
        Ok(Put::Existed)
    }

    /// Waits for an upload of that blob from here, if there is one; says whether it succeeded.
    async fn is_being_sent(&self, digest: &Digest) -> bool {
        match self.pushes.running(digest) {
            Some(running) => running.outcome().await.is_ok(),
            None => false,
        }
    }

    /// `None` once the backing cache is known to have the blob; the content may be unread.
    async fn put_both(
        &self,
        digest: &Digest,
        chunks: Chunks,
        resume: Option<Resume>,
    ) -> Result<Option<Settled>> {
        let (source, up) = Source::new(chunks);
        let first = digest.only();
        let backing = self.backing.put(&first, Blob::stream(up));
        let local = self.local.receive(digest, source.chunks(), resume, None);
        let drain = source.drain();
        tokio::pin!(backing, local, drain);
        let (mut sent, mut kept, mut drained) = (None, None, false);
        loop {
            tokio::select! {
                result = &mut backing, if sent.is_none() => {
                    if result.is_ok() && !source.has_ended() {
                        // It has the blob already, and needs no more of it.
                        return Ok(None);
                    }
                    sent = Some(result);
                }
                result = &mut local, if kept.is_none() => {
                    let existed = matches!(&result, Ok(Received::Existed));
                    if existed && self.existence.has(digest) {
                        return Ok(None);
                    }
                    if let Err(error) = &result && is_callers(error) {
                        return Err(error.clone());
                    }
                    kept = Some(result);
                }
                () = &mut drain, if kept.is_some() && !drained => drained = true,
            }
            match (sent.take(), kept.take()) {
                (Some(sent), Some(kept)) => return Ok(Some((sent, kept, source.was_read()))),
                either => (sent, kept) = either,
            }
        }
    }

    /// Both tiers have said what they have to say of an upload.
    async fn settle(self: &Arc<Self>, digest: &Digest, epoch: Epoch, said: Settled) -> Result<Put> {
        match said {
            (Ok(put), Ok(Received::Complete(mut complete)), _) => {
                if digest.other().is_some() && complete.verify().await? != *digest {
                    return self.send(complete).await;
                }
                // It may have been taken there without a look at it.
                self.show(digest, complete).await?;
                self.took(epoch, [digest]);
                Ok(put)
            }
            (Ok(put), _, _) => {
                self.took(epoch, [digest]);
                Ok(put)
            }
            // The client has used up its retries.
            (Err(error @ Error::Unavailable(_)), Ok(Received::Complete(mut complete)), false) => {
                let digest = complete.verify().await?;
                self.without_backing(&digest, complete, error).await
            }
            (Err(error), Ok(Received::Complete(complete)), _) => {
                tracing::debug!(%digest, %error, "sending the upload again");
                self.send(complete).await
            }
            (Err(_), Ok(Received::Existed), _) => self.push_existing(digest).await,
            (Err(error), Err(_), _) => Err(error),
        }
    }

    /// An upload that goes on where it broke off is sent once all of it is here.
    async fn put_rest(
        self: &Arc<Self>,
        digest: &Digest,
        chunks: Chunks,
        resume: Resume,
    ) -> Result<Put> {
        if self.is_being_sent(digest).await {
            return Ok(Put::Existed);
        }
        match self
            .local
            .receive(digest, chunks, Some(resume), None)
            .await?
        {
            Received::Complete(complete) => self.send(complete).await,
            Received::Existed if self.existence.has(digest) => Ok(Put::Existed),
            Received::Existed => self.push_existing(digest).await,
        }
    }

    /// Brings up what is here already.
    async fn push_existing(self: &Arc<Self>, digest: &Digest) -> Result<Put> {
        match self.push_one(digest).await {
            Err(error) if self.degrades(&error) => {
                self.accept(*digest, async { Ok(Put::Existed) }).await
            }
            pushed => pushed.map(|_| Put::Existed),
        }
    }

    /// Shows here what the backing cache has. That it has to be kept here is not part of the promise;
    /// that it is what its digest says, is.
    pub(crate) async fn show(&self, digest: &Digest, complete: Complete) -> Result<()> {
        match complete.publish().await {
            Err(error) if is_callers(&error) => Err(error),
            Err(error) => {
                tracing::debug!(%digest, %error, "what was uploaded is not kept here");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }
}

/// Whether the upload itself is at fault, so that it fails whatever the other tier says.
fn is_callers(error: &Error) -> bool {
    matches!(
        error,
        Error::Mismatch { .. }
            | Error::ResumedMismatch { .. }
            | Error::UploadOffset { .. }
            | Error::Superseded(_)
            | Error::Source(_)
    )
}

fn check(digest: &Digest, content: &Bytes) -> Result<()> {
    let actual = digest.function().digest(content);
    if actual == *digest {
        return Ok(());
    }
    Err(Error::Mismatch {
        expected: *digest,
        actual: actual.to_string(),
    })
}
