//! Writes through both tiers: a write is acknowledged once the backing cache has the blob, or once it is pending.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    slice::from_ref,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use futures::future::{self, Either};
use gorego_storage::{
    Blob, BlobStore as _, Chunks, Digest, Error, Put, Result, Resume, span::Tier, verify,
};
use gorego_storage_local::{CompleteUpload, Received};
use tokio::sync::Notify;

use crate::{backing::Epoch, tee::Tee, tiers::log_unstored, uploads::Uploads};

/// The outcomes of a stream in the backing cache and in the local tier. The former is none if the backing cache still
/// needs the blob that the local tier has.
type Outcomes = (Option<Result<Put>>, Result<Received>);

impl Uploads {
    pub(crate) async fn put(self: &Arc<Self>, digest: &Digest, blob: Blob) -> Result<Put> {
        let (chunks, resume) = match blob {
            Blob::Bytes(content) => {
                let put = self.put_batch(vec![(*digest, content)]).await.pop();
                return put.unwrap_or(Err(Error::NotFound(*digest)));
            }
            Blob::Stream(stream) => (stream.chunks, stream.resume),
            blob @ Blob::File(_) => (blob.into_chunks(), None),
        };
        if matches!(self.running(digest).await, Some(Ok(_))) {
            return self.existed(digest, resume).await;
        }
        let epoch = self.tiers.backing.epoch();
        let outcomes = match resume.clone() {
            rest @ Some(Resume { offset: 1.., .. }) => self.put_rest(digest, chunks, rest).await,
            resume if self.tiers.options.local_first => self.put_rest(digest, chunks, resume).await,
            resume => self.put_both(epoch, digest, chunks, resume).await,
        };
        match outcomes? {
            Some(outcomes) => self.end(epoch, digest, outcomes).await,
            None => self.existed(digest, resume).await,
        }
    }

    /// Sends a stream to both tiers at once; `None` if the backing cache turns out to have the blob.
    async fn put_both(
        &self,
        epoch: Epoch,
        digest: &Digest,
        chunks: Chunks,
        resume: Option<Resume>,
    ) -> Result<Option<Outcomes>> {
        let (tee, content, was_read) = Tee::of_upload(chunks);
        // Until the backing cache has read any content, its client retries by itself.
        let is_unread =
            |error: &Error| matches!(error, Error::Unavailable(_)) && !was_read.load(Relaxed);
        let (only, local_ended) = (digest.only(), Notify::new());
        let backing = async {
            let store = &self.tiers.backing.store;
            match store.put(&only, Blob::stream(content)).await {
                Ok(_) if !tee.has_ended() => {
                    self.tiers.backing.record(epoch, digest);
                    Err(None)
                }
                // The client need not send the rest of an upload that has to fail.
                Err(error) if is_unread(&error) && !self.tiers.degrades(&error) => Err(Some(error)),
                put => Ok(put),
            }
        };
        let local = async {
            let received = self.tiers.local.receive(digest, tee.local(), resume, None);
            let received = Tier::Local.traced("put", from_ref(digest), received).await;
            local_ended.notify_one();
            match received {
                Ok(Received::Existed) if !tee.has_ended() && self.tiers.backing.has(digest) => {
                    Err(None)
                }
                Err(error) if is_callers(&error) => Err(Some(error)),
                received => Ok(received),
            }
        };
        let rest = async {
            local_ended.notified().await;
            while tee.next().await.is_some() {}
            future::pending().await
        };
        match future::select(pin!(future::try_join(backing, local)), pin!(rest)).await {
            Either::Left((Ok((put, received)), _)) => {
                let is_final = received.is_err() || put.as_ref().map_or_else(is_unread, |_| true);
                Ok(Some((is_final.then_some(put), received)))
            }
            Either::Left((Err(error), _)) => error.map_or(Ok(None), Err),
            Either::Right((never, _)) => never,
        }
    }

    /// Receives an upload, or the rest of a resumed one, in the local tier only; `None` if the backing cache has the
    /// blob.
    async fn put_rest(
        &self,
        digest: &Digest,
        chunks: Chunks,
        resume: Option<Resume>,
    ) -> Result<Option<Outcomes>> {
        let received = self.tiers.local.receive(digest, chunks, resume, None);
        match received.await? {
            Received::Existed if self.tiers.backing.has(digest) => Ok(None),
            received => Ok(Some((None, Ok(received)))),
        }
    }

    /// Ends a put whose stream has ended, by an upload of the local blob if necessary.
    async fn end(
        self: &Arc<Self>,
        epoch: Epoch,
        digest: &Digest,
        (put, received): Outcomes,
    ) -> Result<Put> {
        let accepted = |_: &Put| self.tiers.backing.accepted(epoch, digest);
        let mut staged = match (received, put.as_ref()) {
            (Ok(Received::Complete(staged)), _) => staged,
            (Ok(Received::Existed), None | Some(Err(_))) => {
                return self.upload_stored(digest).await;
            }
            (received, _) => {
                let put = put.unwrap_or(received.map(|_| Put::Existed));
                return put.inspect(accepted);
            }
        };
        // The backing cache may have accepted it unverified.
        let actual = staged.verify().await?;
        match put {
            Some(Ok(put)) if actual == *digest => {
                accepted(&put);
                log_unstored(digest, &staged.publish().await);
                Ok(put)
            }
            Some(Err(error)) => self.accept(&actual, error, staged.publish()).await,
            _ => self.upload_and_publish(actual, staged).await,
        }
    }

    /// Ends a put of a blob that the backing cache has. Removes a partial upload, which no client resumes.
    async fn existed(&self, digest: &Digest, resume: Option<Resume>) -> Result<Put> {
        let local = &self.tiers.local;
        if let Some(resume) = resume
            && let Err(error) = local.discard_upload(digest, &resume.upload).await
        {
            tracing::warn!(%digest, %error, "failed to remove a partial upload");
        }
        Ok(Put::Existed)
    }

    /// Uploads a staged blob and publishes it, even if the caller is cancelled.
    async fn upload_and_publish(
        self: &Arc<Self>,
        digest: Digest,
        staged: CompleteUpload,
    ) -> Result<Put> {
        let writes = Arc::clone(self);
        let upload = async move {
            match writes.upload_staged(&digest, &staged).await {
                Err(error) => writes.accept(&digest, error, staged.publish()).await,
                put if writes.tiers.options.local_first => put.and(staged.publish().await),
                put => {
                    log_unstored(&digest, &staged.publish().await);
                    put
                }
            }
        };
        self.tiers.finish(&digest, upload).await
    }

    async fn upload_stored(self: &Arc<Self>, digest: &Digest) -> Result<Put> {
        match self.upload(digest).await {
            Err(error) => self.accept(digest, error, async { Ok(Put::Existed) }).await,
            Ok(_) => Ok(Put::Existed),
        }
    }

    /// Uploads adopted blobs that the backing cache lacks. Returns the errors of those that are not pending either.
    pub(crate) async fn upload_adopted(
        self: &Arc<Self>,
        mut digests: HashSet<Digest>,
    ) -> HashMap<Digest, Error> {
        digests.retain(|digest| !digest.is_empty_blob());
        let digests: Vec<Digest> = digests.into_iter().collect();
        let lacking = self.tiers.backing.find_missing(&digests).await;
        // Without an answer, the uploads decide.
        let lacking = lacking.unwrap_or(digests);
        let mut failed = HashMap::new();
        for (digest, put) in self.upload_all(lacking).await {
            if let Err(error) = put
                && let Err(error) = self
                    .accept(&digest, error, async { Ok(Put::Existed) })
                    .await
            {
                failed.insert(digest, error);
            }
        }
        failed
    }

    /// Makes a blob pending if `error` is an outage's, else returns it. `publish` stores the blob in the local
    /// tier. Both happen even if the caller is cancelled.
    async fn accept(
        &self,
        digest: &Digest,
        error: Error,
        publish: impl Future<Output = Result<Put>> + Send + 'static,
    ) -> Result<Put> {
        if !self.tiers.degrades(&error) {
            return Err(error);
        }
        let (outbox, blobs) = (Arc::clone(&self.tiers.outbox), vec![*digest]);
        let accept = async move { outbox.add_blobs(blobs, publish).await };
        self.tiers.finish(digest, accept).await
    }

    /// Stores blobs. Those that the backing cache is known to have are not uploaded.
    pub(crate) async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        let check = |(digest, content): &(Digest, Bytes)| {
            verify(digest, std::slice::from_ref(content)).map(|()| Put::Existed)
        };
        let local_first = self.tiers.options.local_first;
        let mut results: Vec<Result<Put>> = if local_first {
            self.tiers.local.put_batch(blobs.clone()).await
        } else {
            blobs.iter().map(check).collect()
        };
        let (mut places, mut new) = (Vec::new(), Vec::new());
        for (place, blob) in results.iter_mut().zip(&blobs) {
            if place.is_ok() && !blob.0.is_empty_blob() && !self.tiers.backing.has(&blob.0) {
                places.push(place);
                new.push(blob.clone());
            }
        }
        let uploaded = self.tiers.backing.put_batch(new).await;
        for (place, put) in places.into_iter().zip(uploaded) {
            if put.is_err() || !local_first {
                *place = put;
            }
        }
        let mut present = Vec::with_capacity(blobs.len());
        for (result, (digest, content)) in results.iter_mut().zip(blobs) {
            match result {
                Ok(_) => present.push((digest, content)),
                Err(error) => {
                    let (local, error) = (Arc::clone(&self.tiers.local), error.clone());
                    let put = async move { local.put(&digest, Blob::Bytes(content)).await };
                    *result = self.accept(&digest, error, put).await;
                }
            }
        }
        if !local_first {
            self.tiers.store_local(present).await;
        }
        results
    }
}

/// Whether the upload itself is at fault, so that it fails whatever the other tier returns.
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
