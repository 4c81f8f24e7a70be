//! `Read`: a blob, or the end of one, as it is or compressed.

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use gorego_grpc::{Body, COPIED, Framed, HEADER_LEN, full, put_header, unavailable};
use gorego_limits::{Permit, UNCOUNTED};
use gorego_storage::{Blob, CHUNK_SIZE, Chunks, Compressor, ReadName};
use reapi::{
    bytestream::{ReadRequest, ReadResponse},
    wire,
};
use tokio::task;
use tonic::Status;

use super::ByteStreams;
use crate::{
    compression,
    status::{from_read, invalid_field},
};

/// Up to here, compressing is over before another thread would have begun.
const COMPRESSED_AT_ONCE: usize = 64 * 1024;

impl ByteStreams {
    /// The content from `read_offset` on, at most `read_limit` bytes of it if that is not 0.
    pub(crate) async fn read(&self, request: ReadRequest) -> Result<Body, Status> {
        let name = ReadName::parse(&request.resource_name)
            .map_err(|why| invalid_field("resource_name", why))?;
        let offset = u64::try_from(request.read_offset).map_err(|_| {
            Status::out_of_range(format!("read_offset {} is negative", request.read_offset))
        })?;
        let limit = u64::try_from(request.read_limit)
            .map_err(|_| invalid_field("read_limit", "negative; 0 means no limit"))?;
        if limit != 0 && name.compressor != Compressor::Identity {
            let why = "not possible for a compressed read";
            return Err(invalid_field("read_limit", why));
        }
        let size = name.digest.size().saturating_sub(offset);
        let file = if size > UNCOUNTED {
            self.memory.files.reserve(1).await.map_err(full)?
        } else {
            Permit::default()
        };
        let blob = self
            .blobs
            .get(&name.digest, offset)
            .await
            .map_err(from_read)?;
        match name.compressor {
            Compressor::Identity if limit == 0 => self.plain(blob, file).await,
            Compressor::Identity => self.plain(blob.truncate(limit), file).await,
            Compressor::Zstd => self.compressed(blob, size, file),
        }
    }

    async fn plain(&self, blob: Blob, file: Permit) -> Result<Body, Status> {
        if let Blob::Bytes(content) = &blob
            && content.len() <= CHUNK_SIZE
        {
            let len = content.len() as u64;
            let permit = self
                .memory
                .transport
                .responses
                .reserve(len)
                .await
                .map_err(full)?;
            return Ok(Body::message(frame(content.clone()), permit));
        }
        let chunks = blob.into_chunks_within(&self.memory.pieces);
        let messages = chunks.map_ok(frame).map_err(from_read);
        Ok(Body::messages(messages.boxed(), file))
    }

    fn compressed(&self, blob: Blob, size: u64, file: Permit) -> Result<Body, Status> {
        if let Blob::Bytes(content) = &blob
            && content.len() <= COMPRESSED_AT_ONCE
        {
            let message = frame(compression::compress(content)?);
            return Ok(Body::message(message, Permit::default()));
        }
        let compressor = self.workspaces.compressor(size)?;
        let chunks = blob.into_chunks_within(&self.memory.pieces);
        let pieces = compress(chunks, compressor)
            .try_filter(|piece| std::future::ready(!piece.is_empty()))
            .map_ok(frame);
        Ok(Body::messages(pieces.boxed(), file))
    }
}

/// Compresses chunk by chunk, each on a thread that may be busy for a while.
fn compress(
    chunks: Chunks,
    compressor: compression::Compressor,
) -> impl Stream<Item = Result<Bytes, Status>> {
    stream::try_unfold(Some((chunks, compressor)), |state| async move {
        let Some((mut chunks, mut compressor)) = state else {
            return Ok(None);
        };
        let Some(chunk) = chunks.next().await.transpose().map_err(from_read)? else {
            return Ok(Some((compressor.finish()?, None)));
        };
        let (piece, compressor) = task::spawn_blocking(move || {
            let piece = compressor.next(&chunk);
            (piece, compressor)
        })
        .await
        .map_err(|_| unavailable("compressing was cut off"))?;
        Ok(Some((piece?, Some((chunks, compressor)))))
    })
}

/// A `ReadResponse` with this content, as it goes over the wire.
fn frame(content: Bytes) -> Framed {
    let fields = if content.is_empty() {
        0
    } else {
        wire::header_len(ReadResponse::DATA, content.len())
    };
    let copied = content.len() <= COPIED;
    let room = HEADER_LEN + fields + if copied { content.len() } else { 0 };
    let mut head = BytesMut::with_capacity(room);
    put_header(&mut head, fields + content.len());
    if fields > 0 {
        wire::put_header(ReadResponse::DATA, content.len(), &mut head);
    }
    if copied {
        head.put_slice(&content);
        return Framed {
            head: head.freeze(),
            ..Framed::default()
        };
    }
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
    fn a_framed_response_is_what_prost_would_have_written() {
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
