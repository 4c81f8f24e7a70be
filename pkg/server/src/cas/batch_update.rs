//! `BatchUpdateBlobs`.

use bytes::Bytes;
use gorego_grpc::{elsewhere, full};
use gorego_storage::{Compressor, Digest};
use reapi::v2::{
    BatchUpdateBlobsRequest, BatchUpdateBlobsResponse,
    batch_update_blobs_request::Request as BlobToStore,
    batch_update_blobs_response::Response as BlobStored,
};
use tonic::Status;

use super::Cas;
use crate::{
    Limits,
    compression::Zstd,
    digests,
    status::{from_store, invalid_field, outcome},
};

impl Cas {
    /// Stores the blobs that are what their digests say, and tells of each what became of it.
    pub(crate) async fn batch_update(
        &self,
        request: BatchUpdateBlobsRequest,
    ) -> Result<BatchUpdateBlobsResponse, Status> {
        digests::instance(&request.instance_name)?;
        let function = digests::function(request.digest_function)?;
        let blobs = request.requests;
        let mut wanted = Vec::with_capacity(blobs.len());
        for (index, blob) in blobs.iter().enumerate() {
            let field = format_args!("requests[{index}].digest");
            wanted.push(digests::digest(field, function, blob.digest.as_ref())?);
        }
        self.check_batch("requests", &wanted)?;
        let sent: u64 = blobs.iter().map(|blob| blob.data.len() as u64).sum();
        self.check_batch_bytes("requests", sent)?;

        let zstd = Compressor::Zstd.to_proto() as i32;
        let compressed = blobs.iter().zip(&wanted);
        let compressed = compressed.filter(|(blob, _)| blob.compressor == zstd);
        let unfolded: u64 = compressed.map(|(_, digest)| digest.size()).sum();
        let memory = self.memory.workspaces.reserve(unfolded);
        let memory = memory.await.map_err(full)?;
        let ((to_store, outcomes), _memory) = if unfolded > 0 {
            // Up to a full batch: too much for a thread that others wait for.
            let (digests, limits) = (wanted.clone(), self.limits);
            elsewhere(move || (contents(&digests, blobs, &limits), memory)).await?
        } else {
            (contents(&wanted, blobs, &self.limits), memory)
        };
        let mut stored = self.blobs.put_batch(to_store).await.into_iter();
        let responses = wanted.iter().zip(outcomes).map(|(digest, mut result)| {
            if result.is_ok()
                && let Some(Err(why)) = stored.next()
            {
                result = Err(from_store(why));
            }
            BlobStored {
                digest: Some(digest.to_proto()),
                status: Some(outcome(&result)),
            }
        });
        Ok(BatchUpdateBlobsResponse {
            responses: responses.collect(),
        })
    }

    /// Refuses a batch of blobs that together are larger than advertised.
    pub(super) fn check_batch(&self, field: &str, digests: &[Digest]) -> Result<(), Status> {
        let bytes = digests
            .iter()
            .fold(0, |sum: u64, digest| sum.saturating_add(digest.size()));
        self.check_batch_bytes(field, bytes)
    }

    fn check_batch_bytes(&self, field: &str, bytes: u64) -> Result<(), Status> {
        let max = self.limits.max_batch_bytes;
        if bytes <= max {
            return Ok(());
        }
        let why = format!("{bytes} bytes of blobs, a batch takes at most {max}");
        Err(invalid_field(field, why))
    }
}

/// The blobs that can be stored, and of each blob whether it can.
type Contents = (Vec<(Digest, Bytes)>, Vec<Result<(), Status>>);

fn contents(digests: &[Digest], blobs: Vec<BlobToStore>, limits: &Limits) -> Contents {
    let mut zstd = Zstd::default();
    let mut outcomes = Vec::with_capacity(blobs.len());
    let mut to_store = Vec::with_capacity(blobs.len());
    for (digest, blob) in digests.iter().zip(blobs) {
        let content =
            digests::check_size(digest, limits).and_then(|()| content(digest, blob, &mut zstd));
        outcomes.push(content.map(|content| to_store.push((*digest, content))));
    }
    (to_store, outcomes)
}

/// A blob's content, uncompressed and of the right size.
fn content(digest: &Digest, blob: BlobToStore, zstd: &mut Zstd) -> Result<Bytes, Status> {
    let size = digest.size();
    match Compressor::from_proto(blob.compressor) {
        Some(Compressor::Identity) if blob.data.len() as u64 == size => Ok(blob.data),
        Some(Compressor::Identity) => Err(Status::invalid_argument(format!(
            "{} bytes of content for blob {digest}",
            blob.data.len()
        ))),
        Some(Compressor::Zstd) => Ok(zstd.decompress(&blob.data, size)?),
        None => Err(invalid_field(
            "compressor",
            format_args!("{} is not offered, only identity and zstd", blob.compressor),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt as _;
    use gorego_storage::{DigestFunction, MemoryStore};

    use super::*;
    use crate::{Limits, Memory};

    #[tokio::test]
    async fn decompressing_a_batch_holds_up_nobody_else() {
        let memory = Memory::of_each(1024 * 1024);
        let cas = Cas::new(Arc::<MemoryStore>::default(), Limits::default(), memory);
        let batch = |compressor: Compressor, data: Bytes| BatchUpdateBlobsRequest {
            requests: vec![BlobToStore {
                digest: Some(DigestFunction::Sha256.digest(b"content").to_proto()),
                data,
                compressor: compressor.to_proto() as i32,
            }],
            ..BatchUpdateBlobsRequest::default()
        };
        let compressed = crate::compression::compress(b"content").unwrap();
        let mut elsewhere = Box::pin(cas.batch_update(batch(Compressor::Zstd, compressed)));
        assert!((&mut elsewhere).now_or_never().is_none());
        assert_eq!(elsewhere.await.unwrap().responses.len(), 1);
        let plain = batch(Compressor::Identity, Bytes::from_static(b"content"));
        assert!(cas.batch_update(plain).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_compressed_batch_waits_for_the_memory_of_its_content() {
        let memory = Memory::default();
        let workspaces = memory.workspaces.clone();
        let cas = Cas::new(Arc::<MemoryStore>::default(), Limits::default(), memory);
        let content = vec![0; 1_000_000];
        let batch = || BatchUpdateBlobsRequest {
            requests: vec![BlobToStore {
                digest: Some(DigestFunction::Sha256.digest(&content).to_proto()),
                data: crate::compression::compress(&content).unwrap(),
                compressor: Compressor::Zstd.to_proto() as i32,
            }],
            ..BatchUpdateBlobsRequest::default()
        };
        let all = workspaces.try_reserve(workspaces.total()).unwrap();
        let mut waits = Box::pin(cas.batch_update(batch()));
        assert!((&mut waits).now_or_never().is_none());
        assert_eq!(workspaces.waiting(), 1);
        drop(all);
        assert_eq!(waits.await.unwrap().responses.len(), 1);
        assert_eq!(workspaces.waiting(), 0);
    }
}
