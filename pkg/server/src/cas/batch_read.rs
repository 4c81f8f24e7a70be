//! `BatchReadBlobs`.

use std::{mem, vec};

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

const RESPONSES: u32 = BatchReadBlobsResponse::RESPONSES;

impl Reapi {
    /// Returns the blobs' contents, each with its own status.
    pub(crate) async fn batch_read(&self, request: BatchReadBlobsRequest) -> Result<Body, Status> {
        digests::instance(&request.instance_name)?;
        let function = digests::function(request.digest_function)?;
        let digests = digests::digests("digests", function, &request.digests)?;
        self.check_batch("digests", digests.iter().map(Digest::size))?;
        let space = ResponseSpace::for_digests(&digests, self.options.limits.max_batch_bytes)?;
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
        let blobs = space.fit(blobs);
        let len = blobs.iter().map(field_len).sum();
        Ok(Body::pieces(len, Encoder::new(blobs), permit))
    }
}

/// The bytes left in the largest response that clients accept, after the digest and the status code of each blob.
struct ResponseSpace(u64);

impl ResponseSpace {
    /// Refuses digests whose response would not fit even without content.
    fn for_digests(digests: &[Digest], max_batch_bytes: u64) -> Result<Self, Status> {
        let largest = Limits::max_batch_response(max_batch_bytes);
        let least = digests.iter().map(Digest::to_proto).map(least_len).sum();
        largest.checked_sub(least).map(Self).ok_or_else(|| {
            let why = format!(
                "the response needs {least} bytes without content, at most {largest} are allowed"
            );
            Status::resource_exhausted(format!("digests: {why}"))
        })
    }

    /// Leaves out content that does not fit, and then the text of statuses.
    fn fit(mut self, mut blobs: Vec<BlobRead>) -> Vec<BlobRead> {
        for blob in &mut blobs {
            self.fit_one(blob);
        }
        blobs
    }

    fn fit_one(&mut self, blob: &mut BlobRead) {
        if self.reserve(blob) {
            return;
        }
        if !blob.data.is_empty() {
            let why =
                "does not fit into this response: read it in another batch or with ByteStream";
            let refused = Err::<(), _>(Status::resource_exhausted(why));
            blob.data = Bytes::new();
            blob.compressor = 0;
            blob.status = Some(outcome(&refused));
        }
        if !self.reserve(blob)
            && let Some(status) = &mut blob.status
        {
            status.message.clear();
            status.details.clear();
        }
    }

    /// Reserves the space of a blob; false if there is too little.
    fn reserve(&mut self, blob: &BlobRead) -> bool {
        let least = blob.digest.clone().map_or(0, least_len);
        let more = (field_len(blob) as u64).saturating_sub(least);
        let left = self.0.checked_sub(more);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
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

/// An encoder of a response piece by piece, so that a full batch is not in memory twice.
struct Encoder {
    blobs: vec::IntoIter<BlobRead>,
    encoded: BytesMut,
    /// The next piece, which is not copied.
    next: Option<Bytes>,
}

impl Encoder {
    /// The bytes encoded at a time, and at most one small blob more.
    const PIECE: usize = 48 * 1024;

    fn new(blobs: Vec<BlobRead>) -> Self {
        Self {
            blobs: blobs.into_iter(),
            encoded: BytesMut::new(),
            next: None,
        }
    }
}

impl Iterator for Encoder {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if let Some(data) = self.next.take() {
            return Some(data);
        }
        while self.encoded.len() < Self::PIECE {
            let Some(mut blob) = self.blobs.next() else {
                break;
            };
            if self.encoded.capacity() == 0 {
                self.encoded.reserve(Self::PIECE + COPIED);
            }
            wire::put_header(RESPONSES, blob.encoded_len(), &mut self.encoded);
            // The data comes last, so that it need not be copied.
            let data = mem::take(&mut blob.data);
            blob.encode_raw(&mut self.encoded);
            if data.is_empty() {
                continue;
            }
            wire::put_header(BlobRead::DATA, data.len(), &mut self.encoded);
            if data.len() > COPIED {
                self.next = Some(data);
                break;
            }
            self.encoded.extend_from_slice(&data);
        }
        let piece = mem::take(&mut self.encoded).freeze();
        (!piece.is_empty()).then_some(piece)
    }
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
            let pieces: Vec<_> = Encoder::new(responses.clone()).collect();
            let message = pieces.concat();
            prop_assert_eq!(message.len(), responses.iter().map(field_len).sum::<usize>());
            let decoded = BatchReadBlobsResponse::decode(message.as_slice()).unwrap();
            prop_assert_eq!(decoded.responses, responses);
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
        }
    }
}
