//! The requests and answers of batches.

use std::collections::HashMap;

use bytes::Bytes;
use reapi::v2::{
    self, BatchReadBlobsRequest, BatchUpdateBlobsRequest, batch_read_blobs_response::Response,
    batch_update_blobs_request::Request,
};
use tonic::{Code, Status};
use zstd::bulk;

use super::{
    super::{
        compression::LEVEL,
        failure::Failure,
        methods::{Call, Limits},
        peer::WORTH_COMPRESSING,
        retry::Retry,
    },
    Direction, Item, Transfer, total,
};
use gorego_storage::{Compressor, Digest, Error, Result};

/// The bytes that each blob adds to an answer beside its content, encoded and decoded.
const ENCODED: usize = 2048;
const DECODED: usize = 4096;

/// The outcomes of the blobs of one batch.
type Entries = HashMap<Digest, Result<Bytes, Failure>>;

impl Transfer<'_> {
    pub(super) async fn call(&self, items: &[Item], retry: &mut Retry) -> Result<Entries, Failure> {
        let (peer, bytes) = (self.peer, total(items));
        let instance_name = peer.instance.as_str().to_owned();
        let digest_function = self.function.to_proto() as i32;
        let mut limits = Limits {
            encoded: ENCODED.saturating_mul(items.len()),
            decoded: DECODED.saturating_mul(items.len()),
        };
        if self.direction == Direction::Update {
            let requests = items.iter().map(|item| encoded(item, self.compresses()));
            let request = BatchUpdateBlobsRequest {
                instance_name,
                requests: requests.collect(),
                digest_function,
            };
            let call = Call(request, limits, bytes);
            let entries = peer.call_until(&call, retry).await?.responses;
            let stored = entries.into_iter().filter_map(|entry| {
                let failure = Failure::of_entry(entry.status.unwrap_or_default());
                let failure = failure.filter(|why| why.code() != Some(Code::AlreadyExists));
                let outcome = failure.map_or_else(|| Ok(Bytes::new()), Err);
                Some((self.digest(entry.digest.as_ref())?, outcome))
            });
            return Ok(stored.collect());
        }
        let accepts_zstd = peer.options.zstd && self.capabilities.zstd_streams;
        let compressors = Compressor::ALL
            .iter()
            .filter(|c| accepts_zstd || **c == Compressor::Identity);
        let request = BatchReadBlobsRequest {
            instance_name,
            digests: items.iter().map(|item| item.digest.to_proto()).collect(),
            acceptable_compressors: compressors.map(|c| c.to_proto() as i32).collect(),
            digest_function,
        };
        // Compression may make content longer by a little.
        let content = usize::try_from(bytes + bytes / 16).unwrap_or(usize::MAX);
        limits.encoded = limits.encoded.saturating_add(content);
        let call = Call(request, limits, bytes);
        let entries = peer.call_until(&call, retry).await?.responses;
        let read = entries.into_iter().filter_map(|entry| {
            let digest = self.digest(entry.digest.as_ref())?;
            Some((digest, content_of(&peer.name, &digest, entry)))
        });
        Ok(read.collect())
    }

    fn digest(&self, of_entry: Option<&v2::Digest>) -> Option<Digest> {
        Digest::from_field(Some(self.function), of_entry).ok()
    }
}

fn content_of(peer: &str, digest: &Digest, entry: Response) -> Result<Bytes, Failure> {
    if let Some(failure) = entry.status.and_then(Failure::of_entry) {
        return Err(failure);
    }
    let wrong = |actual: String| {
        let actual = format_args!("{actual}, from {peer}");
        Failure::Own(Error::mismatch(digest, actual))
    };
    let content = match Compressor::from_proto(entry.compressor) {
        Some(Compressor::Identity) => entry.data,
        Some(Compressor::Zstd) => {
            // Small enough for a batch.
            let size = usize::try_from(digest.size()).unwrap_or(usize::MAX);
            bulk::decompress(&entry.data, size)
                .map(Bytes::from)
                .map_err(|why| wrong(format!("not decompressible: {why}")))?
        }
        None => {
            let message = format!("compressor {} was not asked for", entry.compressor);
            return Err(Status::internal(message).into());
        }
    };
    let actual = digest.function().digest(&content);
    if actual == *digest {
        Ok(content)
    } else {
        Err(wrong(actual.to_string()))
    }
}

/// Encodes a blob, compressed if that makes it shorter.
fn encoded(item: &Item, compresses: bool) -> Request {
    let is_worth_it = compresses && item.digest.size() >= WORTH_COMPRESSING;
    let compressed = is_worth_it.then(|| bulk::compress(&item.content, LEVEL).ok());
    let (compressor, data) = match compressed.flatten() {
        Some(data) if data.len() < item.content.len() => (Compressor::Zstd, data.into()),
        _ => (Compressor::Identity, item.content.clone()),
    };
    Request {
        digest: Some(item.digest.to_proto()),
        data,
        compressor: compressor.to_proto() as i32,
    }
}
