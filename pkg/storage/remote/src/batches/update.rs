//! `BatchUpdateBlobs`.

use bytes::Bytes;
use reapi::v2::{BatchUpdateBlobsRequest, batch_update_blobs_request::Request};
use tokio::time::Instant;
use tonic::Code;

use super::{
    super::{
        RemoteCapabilities, RemoteStore,
        capabilities::function,
        compression,
        failure::{Failure, mismatch},
        methods::BATCH_UPDATE,
        retry::Retry,
        store::WORTH_COMPRESSING,
        upload,
    },
    Direction, Entries, Item, Transfer, keyed, limits, total,
};
use gorego_storage::{Blob, Compressor, Digest, DigestFunction, Error, Put, Result};

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
    let stored = super::transfer(store, Direction::Update, good).await;
    let mut stored = stored.into_iter().map(|stored| stored.map(|_| Put::Stored));
    let lost = || Err(Error::Unavailable("a blob was left out".to_owned()));
    let checked = checked.into_iter();
    checked
        .map(|known| known.or_else(|| stored.next()).unwrap_or_else(lost))
        .collect()
}

pub(super) async fn alone(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    item: Item,
) -> Result<Bytes> {
    let blob = Blob::Bytes(item.content);
    let put = upload::put(store, capabilities, &item.digest, blob).await;
    put.map(|_| Bytes::new())
}

pub(super) async fn call(
    transfer: &Transfer<'_>,
    of: DigestFunction,
    items: &[Item],
    end: Instant,
    retry: &mut Retry,
) -> Result<Entries, Failure> {
    let (peer, compresses) = (&transfer.store.peer, transfer.compresses());
    let request = BatchUpdateBlobsRequest {
        instance_name: transfer.store.instance.as_str().to_owned(),
        requests: items.iter().map(|item| encoded(item, compresses)).collect(),
        digest_function: function(of),
    };
    let mut call = BATCH_UPDATE.call(request, limits(items.len(), 0));
    call.bytes = total(items);
    let answer = peer.call_until(&call, end, retry).await?;
    let entries = keyed(of, answer.responses, |entry| entry.digest.as_ref());
    let stored = entries.map(|(digest, entry)| {
        let stored = match Failure::of_entry(entry.status.unwrap_or_default()) {
            Some(failure) if failure.code() != Some(Code::AlreadyExists) => Err(failure),
            _ => Ok(Bytes::new()),
        };
        (digest, stored)
    });
    Ok(stored.collect())
}

/// Encodes a blob, compressed if that makes it shorter.
fn encoded(item: &Item, compresses: bool) -> Request {
    let is_worth_it = compresses && item.digest.size() >= WORTH_COMPRESSING;
    let compressed = is_worth_it.then(|| compression::compress(&item.content).ok());
    let (compressor, data) = match compressed.flatten() {
        Some(data) if data.len() < item.content.len() => (Compressor::Zstd, data),
        _ => (Compressor::Identity, item.content.clone()),
    };
    Request {
        digest: Some(item.digest.to_proto()),
        data,
        compressor: compressor.to_proto() as i32,
    }
}

/// Hashes content that the peer refuses: it may be wrong, and the peer right.
pub(super) fn own_error(item: &Item, failure: &Failure) -> Option<Error> {
    if failure.code() != Some(Code::InvalidArgument) {
        return None;
    }
    let actual = item.digest.function().digest(&item.content);
    (actual != item.digest).then(|| mismatch(&item.digest, actual))
}
