//! `BatchUpdateBlobs`.

use bytes::Bytes;
use gorego_grpc::{Body, full, run};
use gorego_storage::{Compressor, Digest};
use reapi::v2::{
    BatchUpdateBlobsRequest, BatchUpdateBlobsResponse,
    batch_update_blobs_request::Request as BlobToStore,
    batch_update_blobs_response::Response as BlobStored,
};
use tonic::Status;

use crate::{
    compression::Zstd,
    digests,
    services::Reapi,
    status::{from_store, invalid_field, outcome},
};

impl Reapi {
    /// Stores the blobs that match their digests. The response has a status for each blob.
    pub(crate) async fn batch_update(
        &self,
        request: BatchUpdateBlobsRequest,
    ) -> Result<Body, Status> {
        digests::instance(&request.instance_name)?;
        let function = digests::function(request.digest_function)?;
        let blobs = request.requests;
        let mut digests = Vec::with_capacity(blobs.len());
        for (index, blob) in blobs.iter().enumerate() {
            let field = format_args!("requests[{index}].digest");
            digests.push(digests::digest(field, function, blob.digest.as_ref())?);
        }
        self.check_batch("requests", digests.iter().map(Digest::size))?;
        self.check_batch("requests", blobs.iter().map(|blob| blob.data.len() as u64))?;

        let zstd = Compressor::Zstd.to_proto() as i32;
        let compressed = blobs.iter().zip(&digests);
        let compressed = compressed.filter(|(blob, _)| blob.compressor == zstd);
        let unfolded: u64 = compressed.map(|(_, digest)| digest.size()).sum();
        let memory = self.options.memory.workspaces.reserve(unfolded);
        let memory = memory.await.map_err(full)?;
        let limits = self.options.limits;
        let check = move || {
            let mut zstd = Zstd::default();
            let mut to_store = Vec::with_capacity(blobs.len());
            let checks = digests.iter().zip(blobs).map(|(digest, blob)| {
                digests::check_size(digest, &limits)?;
                to_store.push((*digest, content(digest, blob, &mut zstd)?));
                Ok(())
            });
            let checks: Vec<_> = checks.collect();
            (to_store, checks, digests, memory)
        };
        // Up to a full batch is decompressed: too much for a thread that other calls wait for.
        let (to_store, checks, digests, _memory) = run(unfolded > 0, check).await?;
        let mut stored = self.stores.blobs.put_batch(to_store).await.into_iter();
        let responses = digests.iter().zip(checks).map(|(digest, mut result)| {
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
        let responses = responses.collect();
        Body::reply(self.transport(), &BatchUpdateBlobsResponse { responses }).await
    }
}

/// Returns a blob's content, uncompressed and of the right size.
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
    use futures::FutureExt as _;
    use gorego_storage::DigestFunction;

    use super::*;
    use crate::compression::compress;

    fn batch(content: &[u8], compressor: Compressor) -> BatchUpdateBlobsRequest {
        let data = match compressor {
            Compressor::Identity => Bytes::copy_from_slice(content),
            Compressor::Zstd => compress(content).unwrap(),
        };
        BatchUpdateBlobsRequest {
            requests: vec![BlobToStore {
                digest: Some(DigestFunction::Sha256.digest(content).to_proto()),
                data,
                compressor: compressor.to_proto() as i32,
            }],
            ..BatchUpdateBlobsRequest::default()
        }
    }

    #[tokio::test]
    async fn decompressing_a_batch_blocks_no_other_call() {
        let reapi = Reapi::in_memory();
        let compressed = reapi.batch_update(batch(b"content", Compressor::Zstd));
        let mut compressed = Box::pin(compressed);
        assert!((&mut compressed).now_or_never().is_none());
        compressed.await.unwrap();
        let plain = reapi.batch_update(batch(b"content", Compressor::Identity));
        assert!(plain.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_compressed_batch_waits_for_the_memory_of_its_content() {
        let reapi = Reapi::in_memory();
        let workspaces = &reapi.options.memory.workspaces;
        let all = workspaces.try_reserve(workspaces.total()).unwrap();
        let batch = batch(&vec![0; 1_000_000], Compressor::Zstd);
        let mut waits = Box::pin(reapi.batch_update(batch));
        assert!((&mut waits).now_or_never().is_none());
        assert_eq!(workspaces.waiting(), 1);
        drop(all);
        waits.await.unwrap();
        assert_eq!(workspaces.waiting(), 0);
    }
}
