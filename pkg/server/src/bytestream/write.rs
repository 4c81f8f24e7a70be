//! `Write`: an upload in one message or several.

use std::{mem, slice, sync::Arc};

use futures::StreamExt as _;
use gorego_grpc::{Body, Messages};
use gorego_limits::Permit;
use gorego_storage::{
    Blob, BlobStream, CHUNK_SIZE, Compressor, Digest, Put, Result as StoreResult, Resume, WriteName,
};
use reapi::bytestream::WriteResponse;
use tonic::Status;

use super::upload::{WriteOutcome, WriteStream};
use crate::{
    compression::Decompression,
    digests,
    services::Reapi,
    status::{from_store, invalid_field},
};

/// The committed size of compressed uploads of which the bytes sent do not matter.
const NOT_COUNTED: i64 = -1;

impl Reapi {
    /// Stores a blob, or answers at once if it is present already.
    pub(crate) async fn write(&self, messages: Messages) -> Result<Body, Status> {
        let files = self.options.memory.files.clone();
        let (upload, name) = WriteStream::start(messages, files).await?;
        digests::check_size(&name.digest, &self.options.limits)?;
        let outcome = Arc::clone(&upload.outcome);
        let put = if name.digest.is_empty_blob() {
            check_empty(&upload, &name)?;
            Ok(Put::Existed)
        } else {
            self.put(upload, &name).await?
        };
        // Malformed content is the cause of what the store found.
        outcome.check()?;
        let committed_size = committed(put.map_err(from_store)?, &name, &outcome);
        Body::reply(self.transport(), &WriteResponse { committed_size }).await
    }

    async fn put(
        &self,
        mut upload: WriteStream,
        name: &WriteName,
    ) -> Result<StoreResult<Put>, Status> {
        let (blobs, digest) = (&self.stores.blobs, &name.digest);
        let plain = name.compressor == Compressor::Identity;
        let is_small = upload.is_small() && (plain || digest.size() <= CHUNK_SIZE as u64);
        let _file = if is_small {
            // By far the most frequent upload. It cannot stall once all of it has arrived.
            upload.gather().await?;
            Permit::default()
        } else if let Some(file) = self.open_file(&mut upload, digest).await? {
            file
        } else {
            return Ok(Ok(Put::Existed));
        };
        if plain && is_small {
            let content = Blob::Bytes(mem::take(&mut upload.arrived));
            return Ok(blobs.put(digest, content).await);
        }
        let resume = Resume {
            upload: name.upload.clone(),
            offset: upload.start,
        };
        let chunks = if plain {
            upload.into_chunks().boxed()
        } else {
            let left = digest.size().saturating_sub(upload.start);
            let workspaces = self.options.memory.workspaces.clone();
            let decompression = Decompression::new(workspaces, left);
            upload.into_decompressed_chunks(decompression).boxed()
        };
        let blob = Blob::Stream(BlobStream {
            chunks,
            resume: Some(resume),
            verified: None,
        });
        Ok(blobs.put(digest, blob).await)
    }

    /// Reserves the open file of an upload that may stall; `None` if the blob is present, which is looked up only
    /// where the upload would have to wait.
    async fn open_file(
        &self,
        upload: &mut WriteStream,
        digest: &Digest,
    ) -> Result<Option<Permit>, Status> {
        if !upload.try_reserve_file() {
            let missing = self
                .stores
                .blobs
                .find_missing(slice::from_ref(digest))
                .await;
            if missing.is_ok_and(|missing| missing.is_empty()) {
                return Ok(None);
            }
            upload.reserve_file().await?;
        }
        Ok(Some(mem::take(&mut upload.file)))
    }
}

/// Refuses content of the empty blob. Content that is still to arrive or to be decompressed is ignored.
fn check_empty(upload: &WriteStream, name: &WriteName) -> Result<(), Status> {
    if name.compressor == Compressor::Identity && upload.data_len() > 0 {
        return Err(invalid_field("data", "the empty blob has no content"));
    }
    Ok(())
}

/// Returns the committed size. For compressed content it is not counted, or the offset at which the upload began plus
/// the compressed bytes: clients compare it with the bytes that they sent.
fn committed(put: Put, name: &WriteName, outcome: &WriteOutcome) -> i64 {
    match (name.compressor, put) {
        (Compressor::Identity, _) => i64::try_from(name.digest.size()).unwrap_or(i64::MAX),
        (Compressor::Zstd, Put::Stored) => i64::try_from(outcome.end()).unwrap_or(NOT_COUNTED),
        (Compressor::Zstd, Put::Existed) => NOT_COUNTED,
    }
}
