//! `Write`: an upload in one request or several.

use std::slice;

use futures::StreamExt as _;
use gorego_grpc::Messages;
use gorego_limits::Permit;
use gorego_storage::{
    Blob, BlobStream, CHUNK_SIZE, Chunks, Compressor, Digest, Put, Result as StoreResult, Resume,
    WriteName,
};
use reapi::bytestream::WriteResponse;
use tonic::Status;

use super::{
    ByteStreams,
    upload::{Upload, Verdict},
};
use crate::{digests, status::from_store};

/// What compressed uploads are told about their size when it does not matter how much was sent.
const NOT_COUNTED: i64 = -1;

impl ByteStreams {
    /// Stores what the client sends, or answers at once when it is here already.
    pub(crate) async fn write(&self, messages: Messages) -> Result<WriteResponse, Status> {
        let (upload, name) = Upload::start(messages, self.memory.files.clone()).await?;
        digests::check_size(&name.digest, &self.limits)?;
        let verdict = upload.verdict();
        let put = match name.compressor {
            _ if name.digest.is_empty_blob() => {
                upload.check_empty(&name).map(|()| Ok(Put::Existed))?
            }
            Compressor::Identity => self.put(upload, &name).await?,
            Compressor::Zstd => self.put_compressed(upload, &name).await?,
        };
        // What this layer found wrong comes before what the store made of it.
        verdict.check()?;
        let put = put.map_err(from_store)?;
        Ok(WriteResponse {
            committed_size: committed(put, &name, &verdict),
        })
    }

    async fn put(&self, mut upload: Upload, name: &WriteName) -> Result<StoreResult<Put>, Status> {
        // A small blob in one message, the most frequent upload by far: nothing to resume.
        if upload.is_small() {
            let content = upload.only_data().await?;
            return Ok(self.blobs.put(&name.digest, Blob::Bytes(content)).await);
        }
        let Some(_file) = self.file(&mut upload, &name.digest).await? else {
            return Ok(Ok(Put::Existed));
        };
        let resume = upload.resume(name);
        let chunks = upload.into_chunks();
        Ok(self.put_stream(name, chunks.boxed(), resume).await)
    }

    async fn put_compressed(
        &self,
        mut upload: Upload,
        name: &WriteName,
    ) -> Result<StoreResult<Put>, Status> {
        let _file = if upload.is_small() && name.digest.size() <= CHUNK_SIZE as u64 {
            // It cannot stall any more once all of it is here.
            upload.gather().await?;
            Permit::default()
        } else {
            let Some(file) = self.file(&mut upload, &name.digest).await? else {
                return Ok(Ok(Put::Existed));
            };
            file
        };
        let resume = upload.resume(name);
        let left = name.digest.size().saturating_sub(resume.offset);
        let decompressor = self.workspaces.decompressor(left);
        let chunks = upload.into_decompressed_chunks(decompressor, left);
        Ok(self.put_stream(name, chunks.boxed(), resume).await)
    }

    /// Reserves the open file of an upload that may stall; `None` when the blob is here already, which
    /// is looked up only where the file would be waited for.
    async fn file(&self, upload: &mut Upload, digest: &Digest) -> Result<Option<Permit>, Status> {
        if let Some(file) = upload.try_reserve_file() {
            return Ok(Some(file));
        }
        let missing = self.blobs.find_missing(slice::from_ref(digest)).await;
        if missing.is_ok_and(|missing| missing.is_empty()) {
            return Ok(None);
        }
        upload.reserve_file().await.map(Some)
    }

    async fn put_stream(
        &self,
        name: &WriteName,
        chunks: Chunks,
        resume: Resume,
    ) -> StoreResult<Put> {
        let blob = Blob::Stream(BlobStream {
            chunks,
            resume: Some(resume),
            verified: None,
        });
        self.blobs.put(&name.digest, blob).await
    }
}

/// What the client is told to be stored. For compressed content it is either not counted, or the
/// offset it began at plus the compressed bytes: clients check it against what they sent.
fn committed(put: Put, name: &WriteName, verdict: &Verdict) -> i64 {
    match (name.compressor, put) {
        (Compressor::Identity, _) => i64::try_from(name.digest.size()).unwrap_or(i64::MAX),
        (Compressor::Zstd, Put::Stored) => i64::try_from(verdict.end()).unwrap_or(NOT_COUNTED),
        (Compressor::Zstd, Put::Existed) => NOT_COUNTED,
    }
}
