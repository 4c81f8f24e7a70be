//! `BatchReadBlobs`.

use std::collections::HashMap;

use bytes::Bytes;
use reapi::v2::{BatchReadBlobsRequest, batch_read_blobs_response::Response};
use tokio::time::Instant;
use tonic::Code;

use super::{
    super::{
        RemoteCapabilities, RemoteStore,
        capabilities::function,
        compression, download,
        failure::{Failure, mismatch},
        methods::BATCH_READ,
        retry::Retry,
    },
    Direction, Entries, Item, Transfer, keyed, limits, total,
};
use gorego_storage::{Compressor, Digest, DigestFunction, Error, Result};

/// Reads several blobs. Returns a result each, in order; a blob named twice is read once.
pub(in super::super) async fn get(store: &RemoteStore, digests: &[Digest]) -> Vec<Result<Bytes>> {
    let mut results: HashMap<Digest, Result<Bytes>> = HashMap::new();
    let mut unique = Vec::new();
    for digest in digests {
        let known = digest.is_empty_blob().then(Bytes::new);
        let is_known = known.is_some();
        let known = known.ok_or(Error::NotFound(*digest));
        if results.insert(*digest, known).is_none() && !is_known {
            unique.push((*digest, Bytes::new()));
        }
    }
    let read = super::transfer(store, Direction::Read, unique.clone()).await;
    results.extend(unique.into_iter().map(|(digest, _)| digest).zip(read));
    let lost = |digest: &Digest| Err(Error::NotFound(*digest));
    let result = |digest| results.get(digest).cloned();
    let results = digests.iter();
    results
        .map(|digest| result(digest).unwrap_or_else(|| lost(digest)))
        .collect()
}

pub(super) async fn alone(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    digest: &Digest,
) -> Result<Bytes> {
    let blob = download::start(store, capabilities, digest, 0).await?;
    blob.into_bytes().await
}

pub(super) async fn call(
    Transfer {
        store,
        capabilities,
        ..
    }: &Transfer<'_>,
    of: DigestFunction,
    items: &[Item],
    end: Instant,
    retry: &mut Retry,
) -> Result<Entries, Failure> {
    let compressors: &[Compressor] = if store.zstd && capabilities.zstd_streams {
        &Compressor::ALL
    } else {
        &[Compressor::Identity]
    };
    let request = BatchReadBlobsRequest {
        instance_name: store.instance.as_str().to_owned(),
        digests: items.iter().map(|item| item.digest.to_proto()).collect(),
        acceptable_compressors: compressors.iter().map(|c| c.to_proto() as i32).collect(),
        digest_function: function(of),
    };
    let mut call = BATCH_READ.call(request, limits(items.len(), total(items)));
    call.bytes = total(items);
    let answer = store.peer.call_until(&call, end, retry).await?;
    let entries = keyed(of, answer.responses, |entry| entry.digest.as_ref());
    let peer = &store.peer.name;
    Ok(entries
        .map(|(digest, entry)| (digest, content(peer, &digest, entry)))
        .collect())
}

/// Checks and returns the content of an entry.
fn content(peer: &str, digest: &Digest, entry: Response) -> Result<Bytes, Failure> {
    if let Some(failure) = entry.status.and_then(Failure::of_entry) {
        return Err(failure);
    }
    let wrong = |actual: String| {
        let actual = format_args!("{actual}, from {peer}");
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

pub(super) fn own_error(item: &Item, failure: &Failure) -> Option<Error> {
    (failure.code() == Some(Code::NotFound)).then_some(Error::NotFound(item.digest))
}
