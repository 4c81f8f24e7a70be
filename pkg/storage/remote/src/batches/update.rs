//! `BatchUpdateBlobs`.

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use reapi::{
    rpc,
    v2::{
        self, BatchUpdateBlobsRequest, BatchUpdateBlobsResponse,
        batch_update_blobs_request::Request,
    },
};
use tonic::Code;

use super::{
    super::{
        RemoteCapabilities, RemoteStore,
        capabilities::function,
        compression,
        failure::{Failure, mismatch},
        methods::{BATCH_UPDATE, Method},
        peer::Peer,
        store::WORTH_COMPRESSING,
        upload,
    },
    Direction,
};
use gorego_storage::{Blob, Compressor, Digest, DigestFunction, Error, Put, Result};

/// Uploads.
pub(in super::super) struct Update;

/// Stores several blobs. Returns a result each, in order.
pub(in super::super) async fn put(
    store: &RemoteStore,
    blobs: Vec<(Digest, Bytes)>,
) -> Vec<Result<Put>> {
    let mut checked = Vec::with_capacity(blobs.len());
    let mut good = Vec::with_capacity(blobs.len());
    for (digest, content) in blobs {
        checked.push(if content.len() as u64 != digest.size() {
            let actual = format_args!("{} bytes", content.len());
            Some(Err(mismatch(&digest, actual)))
        } else if digest.is_empty_blob() {
            Some(Ok(Put::Existed))
        } else {
            good.push((digest, content));
            None
        });
    }
    let mut stored = super::transfer::<Update>(store, good).await.into_iter();
    let lost = || Err(Error::Unavailable("a blob was left out".to_owned()));
    let checked = checked.into_iter();
    checked
        .map(|known| known.or_else(|| stored.next()).unwrap_or_else(lost))
        .collect()
}

impl Direction for Update {
    type Blob = (Digest, Bytes);
    type Output = Put;
    type Request = BatchUpdateBlobsRequest;
    type Answer = BatchUpdateBlobsResponse;
    type Entry = rpc::Status;

    const METHOD: Method<Self::Request, Self::Answer> = BATCH_UPDATE;
    const DOING: &'static str = "storing";
    const UPLOADS: bool = true;

    fn digest(blob: &(Digest, Bytes)) -> Digest {
        blob.0
    }

    fn request(
        store: &RemoteStore,
        capabilities: &RemoteCapabilities,
        blobs: &[(usize, (Digest, Bytes))],
        of: DigestFunction,
    ) -> BatchUpdateBlobsRequest {
        let zstd = store.zstd && capabilities.zstd_batches;
        let requests = blobs.iter().map(|(_, blob)| encoded(blob, zstd));
        BatchUpdateBlobsRequest {
            instance_name: store.instance.as_str().to_owned(),
            requests: requests.collect(),
            digest_function: function(of),
        }
    }

    fn entries(
        answer: BatchUpdateBlobsResponse,
    ) -> impl Iterator<Item = (Option<v2::Digest>, rpc::Status)> {
        let entries = answer.responses.into_iter();
        entries.map(|entry| (entry.digest, entry.status.unwrap_or_default()))
    }

    fn outcome(_: &Peer, _: &(Digest, Bytes), status: rpc::Status) -> Result<Put, Failure> {
        match Failure::of_entry(status) {
            Some(failure) if failure.code() != Some(Code::AlreadyExists) => Err(failure),
            _ => Ok(Put::Stored),
        }
    }

    /// Hashes content that the peer refuses: it may be wrong, and the peer right.
    fn own_error((digest, content): &(Digest, Bytes), failure: &Failure) -> Option<Error> {
        if failure.code() != Some(Code::InvalidArgument) {
            return None;
        }
        let actual = digest.function().digest(content);
        (actual != *digest).then(|| mismatch(digest, actual))
    }

    fn alone<'a>(
        store: &'a RemoteStore,
        capabilities: &'a RemoteCapabilities,
        (digest, content): (Digest, Bytes),
    ) -> BoxFuture<'a, Result<Put>> {
        let blob = Blob::Bytes(content);
        async move { upload::put(store, capabilities, &digest, blob).await }.boxed()
    }
}

/// Encodes a blob, compressed if that makes it shorter.
fn encoded((digest, content): &(Digest, Bytes), zstd: bool) -> Request {
    let is_worth_it = zstd && digest.size() >= WORTH_COMPRESSING;
    let compressed = is_worth_it.then(|| compression::compress(content).ok());
    let (compressor, data) = match compressed.flatten() {
        Some(data) if data.len() < content.len() => (Compressor::Zstd, data),
        _ => (Compressor::Identity, content.clone()),
    };
    Request {
        digest: Some(digest.to_proto()),
        data,
        compressor: compressor.to_proto() as i32,
    }
}
