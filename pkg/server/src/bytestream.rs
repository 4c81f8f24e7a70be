//! `google.bytestream.ByteStream`: reading blobs of any size, and the status of uploads.

mod logs;
mod upload;
mod write;

pub use logs::{READ_LOG, read_guest_log};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use gorego_execution::LogName;
use gorego_grpc::{Body, COPIED, Framed, HEADER_LEN, full, put_header, run};
use gorego_limits::{Permit, UNCOUNTED};
use gorego_storage::{
    Blob, BlobStoreExt as _, CHUNK_SIZE, Chunks, Compressor, ReadName, WriteName,
};
use reapi::{
    bytestream::{QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse},
    wire,
};
use tonic::Status;

use crate::{
    compression::{self, Compression},
    services::Reapi,
    status::{from_read, from_store, invalid_field},
};

/// The largest content, in bytes, whose compression ends before another thread would have begun it.
const COMPRESSED_AT_ONCE: usize = 64 * 1024;

impl Reapi {
    /// `Read`: the content from `read_offset` on, at most `read_limit` bytes of it if that is not 0.
    pub(crate) async fn read(&self, request: ReadRequest) -> Result<Body, Status> {
        let offset = u64::try_from(request.read_offset).map_err(|_| {
            Status::out_of_range(format!("read_offset {} is negative", request.read_offset))
        })?;
        let limit = u64::try_from(request.read_limit)
            .map_err(|_| invalid_field("read_limit", "negative; 0 means no limit"))?;
        if let Some(log) = LogName::parse(&request.resource_name) {
            return self.read_log(&log, offset, limit).await;
        }
        let name = ReadName::parse(&request.resource_name)
            .map_err(|why| invalid_field("resource_name", why))?;
        if limit != 0 && name.compressor != Compressor::Identity {
            let why = "not possible for a compressed read";
            return Err(invalid_field("read_limit", why));
        }
        let memory = &self.options.memory;
        let size = name.digest.size().saturating_sub(offset);
        let file = if size > UNCOUNTED {
            memory.files.reserve(1).await.map_err(full)?
        } else {
            Permit::default()
        };
        let blob = self.stores.blobs.get(&name.digest, offset).await;
        let blob = match blob.map_err(from_read)? {
            blob if name.compressor == Compressor::Zstd => {
                return self.read_compressed(blob, size, file);
            }
            blob if limit == 0 => blob,
            blob => blob.truncate(limit),
        };
        match blob {
            Blob::Bytes(content) if content.len() <= CHUNK_SIZE => {
                let permit = self.reserve_response(content.len() as u64).await?;
                Ok(Body::message(frame(content), permit))
            }
            blob => {
                let chunks = blob.into_chunks_within(&memory.pieces);
                let messages = chunks.map_ok(frame).map_err(from_read);
                Ok(Body::messages(messages.boxed(), file))
            }
        }
    }

    fn read_compressed(&self, blob: Blob, size: u64, file: Permit) -> Result<Body, Status> {
        if let Blob::Bytes(content) = &blob
            && content.len() <= COMPRESSED_AT_ONCE
        {
            let message = frame(compression::compress(content)?);
            return Ok(Body::message(message, Permit::default()));
        }
        let memory = &self.options.memory;
        let compression = Compression::new(&memory.workspaces, size)?;
        let chunks = blob.into_chunks_within(&memory.pieces);
        let pieces = compress(chunks, compression)
            .try_filter(|piece| std::future::ready(!piece.is_empty()))
            .map_ok(frame);
        Ok(Body::messages(pieces.boxed(), file))
    }

    /// `QueryWriteStatus`: the uncompressed bytes stored of an upload, all of them once the blob is stored. An
    /// unknown upload has none: some clients give up on an error.
    pub(crate) async fn query_write(
        &self,
        request: QueryWriteStatusRequest,
    ) -> Result<Body, Status> {
        let WriteName { digest, upload, .. } = WriteName::parse(&request.resource_name)
            .map_err(|why| invalid_field("resource_name", why))?;
        let stored = self.stores.blobs.contains(&digest).await;
        let complete = stored.map_err(from_store)?;
        let committed = if complete {
            digest.size()
        } else {
            let committed = self.stores.uploads.committed(&digest, &upload).await;
            committed.map_err(from_store)?
        };
        let status = QueryWriteStatusResponse {
            committed_size: i64::try_from(committed).unwrap_or(i64::MAX),
            complete,
        };
        Body::reply(self.transport(), &status).await
    }
}

/// Compresses each chunk on a thread that may be busy for a while.
fn compress(chunks: Chunks, compression: Compression) -> impl Stream<Item = Result<Bytes, Status>> {
    stream::try_unfold(Some((chunks, compression)), |state| async move {
        let Some((mut chunks, mut compression)) = state else {
            return Ok(None);
        };
        let Some(chunk) = chunks.next().await.transpose().map_err(from_read)? else {
            return Ok(Some((compression.next(&[], true)?, None)));
        };
        let compress = move || (compression.next(&chunk, false), compression);
        let (piece, compression) = run(true, compress).await?;
        Ok(Some((piece?, Some((chunks, compression)))))
    })
}

/// Encodes a `ReadResponse` with this content.
fn frame(mut content: Bytes) -> Framed {
    let fields = if content.is_empty() {
        0
    } else {
        wire::header_len(ReadResponse::DATA, content.len())
    };
    let copied = if content.len() <= COPIED {
        content.len()
    } else {
        0
    };
    let mut head = BytesMut::with_capacity(HEADER_LEN + fields + copied);
    put_header(&mut head, fields + content.len());
    if fields > 0 {
        wire::put_header(ReadResponse::DATA, content.len(), &mut head);
    }
    head.put_slice(&content.split_to(copied));
    Framed {
        head: head.freeze(),
        payload: content,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_framed_read_response_is_encoded_as_by_prost() {
        for len in [0, 1, 127, 128, COPIED, COPIED + 1, 300_000] {
            let data = Bytes::from(vec![7; len]);
            let framed = frame(data.clone());
            let ours = [framed.head, framed.payload].concat();
            let message = ReadResponse { data };
            assert_eq!(ours, Framed::encode(&message).head, "{len} bytes");
            assert_eq!(ours.len(), HEADER_LEN + message.encoded_len());
        }
    }
}
