//! `Write`: an upload in one request or several.

use futures::StreamExt as _;
use gorego_storage::{
    Blob, BlobStream, CHUNK_SIZE, Chunks, Compressor, Put, Result as StoreResult, Resume, WriteName,
};
use reapi::bytestream::WriteResponse;
use tonic::Status;

use super::{
    ByteStreams,
    upload::{Upload, Verdict},
};
use crate::{digests, grpc::Messages, status::from_store};

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
        if upload.only_data_len().is_some_and(|len| len <= CHUNK_SIZE) {
            let content = upload.only_data().await?;
            return Ok(self.blobs.put(&name.digest, Blob::Bytes(content)).await);
        }
        let _file = upload.reserve_file().await?;
        let resume = upload.resume(name);
        let chunks = upload.into_chunks();
        Ok(self.put_stream(name, chunks.boxed(), resume).await)
    }

    async fn put_compressed(
        &self,
        mut upload: Upload,
        name: &WriteName,
    ) -> Result<StoreResult<Put>, Status> {
        let _file = upload.reserve_file().await?;
        let resume = upload.resume(name);
        let left = name.digest.size().saturating_sub(resume.offset);
        let decompressor = self.workspaces.decompressor(left);
        let chunks = upload.into_decompressed_chunks(decompressor, left);
        Ok(self.put_stream(name, chunks.boxed(), resume).await)
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
