//! `BatchReadBlobs`.

use std::{mem, vec};

use bytes::{Bytes, BytesMut};
use gorego_grpc::{Body, COPIED, put_header, unavailable};
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
use tokio::task;
use tonic::{Code, Status};

use super::Cas;
use crate::{
    Limits, compression, digests,
    memory::read_within,
    status::{from_read, outcome, to_proto},
};

impl Cas {
    /// The blobs' contents, each with its own status.
    pub(crate) async fn batch_read(&self, request: BatchReadBlobsRequest) -> Result<Body, Status> {
        digests::instance(&request.instance_name)?;
        let function = digests::function(request.digest_function)?;
        let wanted = digests::digests("digests", function, &request.digests)?;
        self.check_batch("digests", &wanted)?;
        let room = Room::for_digests(&wanted, self.limits.max_batch_bytes)?;
        let framing = PER_BLOB.saturating_mul(wanted.len() as u64);
        let (contents, permit) = read_within(&self.memory, &*self.blobs, &wanted, framing).await?;
        let blobs = contents.into_iter().zip(&wanted).map(|(content, digest)| {
            let content = content.map_err(from_read);
            BlobRead {
                digest: Some(digest.to_proto()),
                status: Some(outcome(&content)),
                data: content.unwrap_or_default(),
                compressor: Compressor::Identity.to_proto() as i32,
            }
        });
        let blobs: Vec<_> = blobs.collect();
        let zstd = Compressor::Zstd.to_proto() as i32;
        let responses = if request.acceptable_compressors.contains(&zstd) {
            // Up to a full batch: too much for a thread that others wait for.
            task::spawn_blocking(|| blobs.into_iter().map(compressed).collect())
                .await
                .map_err(|_| unavailable("compressing was cut off"))?
        } else {
            blobs
        };
        let responses = room.fit(responses);
        Ok(Body::pieces(Encoder::new(responses), permit))
    }
}

/// What is left of the largest message that clients take, in bytes, once each blob has its digest
/// and the code of its status in there.
struct Room(u64);

impl Room {
    /// Refuses digests whose answers would not fit even without any content.
    fn for_digests(digests: &[Digest], max_batch_bytes: u64) -> Result<Self, Status> {
        let largest = Limits::max_batch_response(max_batch_bytes);
        let least = digests
            .iter()
            .map(|digest| least_len(digest.to_proto()))
            .sum();
        largest.checked_sub(least).map(Self).ok_or_else(|| {
            let why = format!("the answer takes {least} bytes without content, at most {largest}");
            Status::resource_exhausted(format!("digests: {why}"))
        })
    }

    /// Leaves out the content that does not fit, and then what its status says in words.
    fn fit(mut self, blobs: Vec<BlobRead>) -> Vec<BlobRead> {
        blobs.into_iter().map(|blob| self.fit_one(blob)).collect()
    }

    fn fit_one(&mut self, blob: BlobRead) -> BlobRead {
        let least = blob.digest.clone().map_or(0, least_len);
        let mut fits = |blob: &BlobRead| {
            let more = (field_len(blob) as u64).saturating_sub(least);
            let left = self.0.checked_sub(more);
            self.0 = left.unwrap_or(self.0);
            left.is_some()
        };
        if fits(&blob) {
            return blob;
        }
        let mut refused = if blob.data.is_empty() {
            blob
        } else {
            let why =
                "no room for it in this response: ask for it in another batch or by ByteStream";
            BlobRead {
                digest: blob.digest,
                status: Some(to_proto(&Status::resource_exhausted(why))),
                ..BlobRead::default()
            }
        };
        if !fits(&refused)
            && let Some(status) = &mut refused.status
        {
            status.message.clear();
            status.details.clear();
        }
        refused
    }
}

/// How much of a response a blob takes at least, in bytes.
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

/// What a blob of a batch takes up beside its content, in bytes: a digest and a status, as text.
const PER_BLOB: u64 = 512;

const RESPONSES: u32 = BatchReadBlobsResponse::RESPONSES;

/// Encodes a response piece by piece, so that a full batch is not in memory twice.
struct Encoder {
    blobs: vec::IntoIter<BlobRead>,
    encoded: BytesMut,
    /// What comes next and is not copied.
    next: Option<Bytes>,
}

impl Encoder {
    /// How much is encoded at a time, in bytes; one small blob more at most.
    const PIECE: usize = 48 * 1024;

    fn new(blobs: Vec<BlobRead>) -> Self {
        let len = blobs.iter().map(field_len).sum();
        let mut encoded = BytesMut::new();
        put_header(&mut encoded, len);
        Self {
            blobs: blobs.into_iter(),
            encoded,
            next: None,
        }
    }

    fn take(&mut self) -> Bytes {
        mem::take(&mut self.encoded).freeze()
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
            // The data comes last, which is as good as any other place.
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
        let piece = self.take();
        (!piece.is_empty()).then_some(piece)
    }
}

/// The length of a blob as a field of the response, in bytes.
fn field_len(blob: &BlobRead) -> usize {
    let len = blob.encoded_len();
    wire::header_len(RESPONSES, len) + len
}

/// The blob compressed, if that makes it smaller.
fn compressed(blob: BlobRead) -> BlobRead {
    let smaller = |data: &Bytes| {
        let compressed = compression::compress(data).ok()?;
        (compressed.len() < data.len()).then_some(compressed)
    };
    match smaller(&blob.data) {
        Some(data) => BlobRead {
            data,
            compressor: Compressor::Zstd.to_proto() as i32,
            ..blob
        },
        None => blob,
    }
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
        fn the_pieces_are_one_message_with_every_blob(
            responses in proptest::collection::vec(blob(), 0..40),
        ) {
            let pieces: Vec<_> = Encoder::new(responses.clone()).collect();
            let encoded = pieces.concat();
            let (header, message) = encoded.split_at(5);
            let len = u32::try_from(message.len()).unwrap().to_be_bytes();
            prop_assert_eq!(header, [&[0], len.as_slice()].concat());
            let decoded = BatchReadBlobsResponse::decode(message).unwrap();
            prop_assert_eq!(decoded.responses, responses);
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
        }
    }
}
