//! `BatchReadBlobs`.

use std::{iter, mem};

use bytes::{Bytes, BytesMut};
use gorego_grpc::{Body, COPIED, run};
use gorego_storage::{Compressor, Digest};
use prost::Message as _;
use reapi::{
    rpc,
    v2::{
        self, BatchReadBlobsRequest, BatchReadBlobsResponse,
        batch_read_blobs_response::Response as BlobRead,
    },
    wire,
};
use tonic::{Code, Status};

use crate::{
    Limits, compression, digests,
    services::Reapi,
    status::{from_read, outcome},
};

/// The bytes of a response that each blob takes beside its content: a digest and a status, as text.
const PER_BLOB: u64 = 512;
/// The size of a piece, exceeded by at most one small blob.
const PIECE: usize = 48 * 1024;
const RESPONSES: u32 = BatchReadBlobsResponse::RESPONSES;

impl Reapi {
    /// Returns the blobs' contents, each with its own status.
    pub(crate) async fn batch_read(&self, request: BatchReadBlobsRequest) -> Result<Body, Status> {
        digests::instance(&request.instance_name)?;
        let function = digests::function(request.digest_function)?;
        let digests = digests::digests("digests", function, &request.digests)?;
        self.check_batch("digests", digests.iter().map(Digest::size))?;
        let mut space = space(&digests, self.options.limits.max_batch_bytes)?;
        let framing = PER_BLOB.saturating_mul(digests.len() as u64);
        let (contents, permit) = self.read_batch(&digests, framing).await?;
        let blobs = contents.into_iter().zip(&digests).map(|(content, digest)| {
            let content = content.map_err(from_read);
            BlobRead {
                digest: Some(digest.to_proto()),
                status: Some(outcome(&content)),
                data: content.unwrap_or_default(),
                compressor: Compressor::Identity.to_proto() as i32,
            }
        });
        let mut blobs: Vec<_> = blobs.collect();
        let zstd = Compressor::Zstd.to_proto() as i32;
        if request.acceptable_compressors.contains(&zstd) {
            // Up to a full batch: too much for a thread that other calls wait for.
            let compress = || blobs.into_iter().map(compressed).collect();
            blobs = run(true, compress).await?;
        }
        for blob in &mut blobs {
            fit(blob, &mut space);
        }
        let len = blobs.iter().map(field_len).sum();
        Ok(Body::pieces(len, encode(blobs), permit))
    }
}

/// Returns the bytes left in the largest response that clients accept, after the digest and the status code of each
/// blob. Refuses digests whose response would not fit even without content.
fn space(digests: &[Digest], max_batch_bytes: u64) -> Result<u64, Status> {
    let largest = Limits::max_batch_response(max_batch_bytes);
    let least = digests.iter().map(Digest::to_proto).map(least_len).sum();
    largest.checked_sub(least).ok_or_else(|| {
        Status::resource_exhausted(format!(
            "digests: the response needs {least} bytes without content, at most {largest} are allowed"
        ))
    })
}

/// Takes the bytes of a blob from `space`. Leaves out content that does not fit, and then the text of the status.
fn fit(blob: &mut BlobRead, space: &mut u64) {
    let mut fits = |blob: &BlobRead| {
        let least = blob.digest.clone().map_or(0, least_len);
        let left = space.checked_sub((field_len(blob) as u64).saturating_sub(least));
        *space = left.unwrap_or(*space);
        left.is_some()
    };
    if fits(blob) {
        return;
    }
    if !blob.data.is_empty() {
        let why = "does not fit into this response: read it in another batch or with ByteStream";
        *blob = BlobRead {
            digest: blob.digest.take(),
            status: Some(outcome(&Err::<(), _>(Status::resource_exhausted(why)))),
            ..BlobRead::default()
        };
    }
    if !fits(blob)
        && let Some(status) = &mut blob.status
    {
        status.message.clear();
        status.details.clear();
    }
}

/// Returns the least bytes of a response that a blob takes.
fn least_len(digest: v2::Digest) -> u64 {
    let status = rpc::Status {
        code: Code::Unauthenticated as i32,
        ..rpc::Status::default()
    };
    field_len(&BlobRead {
        digest: Some(digest),
        status: Some(status),
        ..BlobRead::default()
    }) as u64
}

/// Encodes a response piece by piece, so that a full batch is not in memory twice.
fn encode(blobs: Vec<BlobRead>) -> impl Iterator<Item = Bytes> + Send + 'static {
    let mut blobs = blobs.into_iter();
    let mut encoded = BytesMut::new();
    // The next piece, which is not copied.
    let mut next: Option<Bytes> = None;
    iter::from_fn(move || {
        if let Some(data) = next.take() {
            return Some(data);
        }
        while encoded.len() < PIECE
            && let Some(mut blob) = blobs.next()
        {
            if encoded.capacity() == 0 {
                encoded.reserve(PIECE + COPIED);
            }
            wire::put_header(RESPONSES, blob.encoded_len(), &mut encoded);
            // The data comes last, so that it need not be copied.
            let data = mem::take(&mut blob.data);
            blob.encode_raw(&mut encoded);
            if data.is_empty() {
                continue;
            }
            wire::put_header(BlobRead::DATA, data.len(), &mut encoded);
            if data.len() > COPIED {
                next = Some(data);
                break;
            }
            encoded.extend_from_slice(&data);
        }
        let piece = mem::take(&mut encoded).freeze();
        (!piece.is_empty()).then_some(piece)
    })
}

/// Returns the length of a blob as a field of the response, in bytes.
fn field_len(blob: &BlobRead) -> usize {
    let len = blob.encoded_len();
    wire::header_len(RESPONSES, len) + len
}

/// Compresses the blob if that makes it smaller.
fn compressed(mut blob: BlobRead) -> BlobRead {
    if let Ok(data) = compression::compress(&blob.data)
        && data.len() < blob.data.len()
    {
        blob.data = data;
        blob.compressor = Compressor::Zstd.to_proto() as i32;
    }
    blob
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blob() -> impl Strategy<Value = BlobRead> {
        let len = prop_oneof![0_usize..20, 0_usize..(3 * COPIED)];
        (len, any::<u8>(), any::<bool>(), 0..2).prop_map(|(len, byte, found, compressor)| {
            let data = Bytes::from(vec![byte; len]);
            BlobRead {
                digest: Some(
                    gorego_storage::DigestFunction::Sha256
                        .digest(&data)
                        .to_proto(),
                ),
                data,
                status: found.then(|| reapi::rpc::Status {
                    code: 5,
                    message: "gone".to_owned(),
                    details: Vec::new(),
                }),
                compressor,
            }
        })
    }

    proptest! {
        #[test]
        fn encoded_pieces_are_one_message_with_every_blob(
            responses in proptest::collection::vec(blob(), 0..40),
        ) {
            let pieces: Vec<_> = encode(responses.clone()).collect();
            let message = pieces.concat();
            prop_assert_eq!(message.len(), responses.iter().map(field_len).sum::<usize>());
            let decoded = BatchReadBlobsResponse::decode(message.as_slice()).unwrap();
            prop_assert_eq!(decoded.responses, responses);
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
        }
    }
}
