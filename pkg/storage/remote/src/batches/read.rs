//! `BatchReadBlobs`.

use std::collections::HashMap;

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use reapi::v2::{
    self, BatchReadBlobsRequest, BatchReadBlobsResponse, batch_read_blobs_response::Response,
};
use tonic::Code;

use super::{
    super::{
        RemoteCapabilities, RemoteStore,
        capabilities::function,
        compression, download,
        failure::{Failure, mismatch},
        methods::{BATCH_READ, Method},
        peer::Peer,
    },
    Direction,
};
use gorego_storage::{Compressor, Digest, DigestFunction, Error, Result};

/// Downloads.
pub(in super::super) struct Read;

/// Reads several blobs. Returns a result each, in order; a blob named twice is read once.
pub(in super::super) async fn get(store: &RemoteStore, digests: &[Digest]) -> Vec<Result<Bytes>> {
    let mut results: HashMap<Digest, Result<Bytes>> = HashMap::new();
    let unique = digests.iter().filter(|digest| {
        let empty = digest.is_empty_blob().then(Bytes::new);
        results
            .insert(**digest, empty.ok_or(Error::NotFound(**digest)))
            .is_none()
            && !digest.is_empty_blob()
    });
    let unique: Vec<Digest> = unique.copied().collect();
    let read = super::transfer::<Read>(store, unique.clone()).await;
    results.extend(unique.into_iter().zip(read));
    let result = |digest: &Digest| results.get(digest).cloned();
    let lost = |digest: &Digest| Err(Error::NotFound(*digest));
    digests
        .iter()
        .map(|digest| result(digest).unwrap_or_else(|| lost(digest)))
        .collect()
}

impl Direction for Read {
    type Blob = Digest;
    type Output = Bytes;
    type Request = BatchReadBlobsRequest;
    type Answer = BatchReadBlobsResponse;
    type Entry = Response;

    const METHOD: Method<Self::Request, Self::Answer> = BATCH_READ;
    const DOING: &'static str = "reading";
    const UPLOADS: bool = false;

    fn digest(blob: &Digest) -> Digest {
        *blob
    }

    fn request(
        store: &RemoteStore,
        capabilities: &RemoteCapabilities,
        blobs: &[(usize, Digest)],
        of: DigestFunction,
    ) -> BatchReadBlobsRequest {
        let compressors: &[Compressor] = if store.zstd && capabilities.zstd_streams {
            &Compressor::ALL
        } else {
            &[Compressor::Identity]
        };
        BatchReadBlobsRequest {
            instance_name: store.instance.as_str().to_owned(),
            digests: blobs.iter().map(|(_, digest)| digest.to_proto()).collect(),
            acceptable_compressors: compressors.iter().map(|c| c.to_proto() as i32).collect(),
            digest_function: function(of),
        }
    }

    fn entries(
        answer: BatchReadBlobsResponse,
    ) -> impl Iterator<Item = (Option<v2::Digest>, Response)> {
        let entries = answer.responses.into_iter();
        entries.map(|mut entry| (entry.digest.take(), entry))
    }

    /// Checks and returns the content of an entry.
    fn outcome(peer: &Peer, digest: &Digest, entry: Response) -> Result<Bytes, Failure> {
        if let Some(failure) = entry.status.and_then(Failure::of_entry) {
            return Err(failure);
        }
        let wrong = |actual: String| {
            let actual = format_args!("{actual}, from {}", peer.name);
            Failure::Own(mismatch(digest, actual))
        };
        let content = match Compressor::from_proto(entry.compressor) {
            Some(Compressor::Identity) => entry.data,
            Some(Compressor::Zstd) => {
                // Small enough for a batch.
                let size = usize::try_from(digest.size()).unwrap_or(usize::MAX);
                compression::decompress(&entry.data, size)
                    .map_err(|why| wrong(format!("not decompressible: {why}")))?
            }
            None => {
                let message = format!("compressor {} was not asked for", entry.compressor);
                return Err(Failure::Nonsense(message));
            }
        };
        let actual = digest.function().digest(&content);
        if actual == *digest {
            Ok(content)
        } else {
            Err(wrong(actual.to_string()))
        }
    }

    fn own_error(digest: &Digest, failure: &Failure) -> Option<Error> {
        (failure.code() == Some(Code::NotFound)).then_some(Error::NotFound(*digest))
    }

    fn alone<'a>(
        store: &'a RemoteStore,
        capabilities: &'a RemoteCapabilities,
        digest: Digest,
    ) -> BoxFuture<'a, Result<Bytes>> {
        let content = async move {
            let blob = download::start(store, capabilities, &digest, 0).await?;
            blob.into_bytes().await
        };
        content.boxed()
    }
}
