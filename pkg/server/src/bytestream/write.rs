//! `Write`: an upload in one message or several.

use std::{
    mem,
    sync::{Arc, atomic::Ordering},
};

use futures::StreamExt as _;
use gorego_grpc::{Body, Messages, full};
use gorego_limits::Permit;
use gorego_storage::{
    Blob, BlobStoreExt as _, BlobStream, CHUNK_SIZE, Compressor, Digest, Put,
    Result as StoreResult, Resume, WriteName,
};
use reapi::bytestream::WriteResponse;
use tonic::Status;

use super::upload::WriteStream;
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
        let (upload, name) = WriteStream::start(messages).await?;
        digests::check_size(&name.digest, &self.options.limits)?;
        let outcome = Arc::clone(&upload.outcome);
        let plain = name.compressor == Compressor::Identity;
        let put = if name.digest.is_empty_blob() {
            // Content that is still to arrive or to be decompressed is ignored.
            if plain && upload.data_len() > 0 {
                return Err(invalid_field("data", "the empty blob has no content"));
            }
            Ok(Put::Existed)
        } else {
            self.put(upload, &name).await?
        };
        // Malformed content is the cause of what the store found.
        if let Some(why) = outcome.malformed.get() {
            return Err(why.clone().into());
        }
        let committed = match put.map_err(from_store)? {
            _ if plain => Some(name.digest.size()),
            // Clients compare it with the compressed bytes that they sent, and the offset at which they began.
            Put::Stored => Some(outcome.end.load(Ordering::Relaxed)),
            Put::Existed => None,
        };
        let committed_size = committed.map_or(NOT_COUNTED, |bytes| {
            i64::try_from(bytes).unwrap_or(i64::MAX)
        });
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
        } else if let Some(file) = self.open_file(digest).await? {
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
    async fn open_file(&self, digest: &Digest) -> Result<Option<Permit>, Status> {
        let files = &self.options.memory.files;
        if let Some(file) = files.try_reserve(1) {
            return Ok(Some(file));
        }
        if self.stores.blobs.contains(digest).await.unwrap_or(false) {
            return Ok(None);
        }
        files.reserve(1).await.map(Some).map_err(full)
    }
}
