//! `BatchUpdateBlobs`.

use std::collections::HashMap;

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use reapi::{
    rpc,
    v2::{BatchUpdateBlobsRequest, batch_update_blobs_request::Request},
};
use tokio::time::{self, Instant};
use tonic::{Code, Status};

use super::{
    super::{
        RemoteCapabilities, RemoteStore,
        bounded::{self, BATCH_UPDATE},
        capabilities::function,
        compression,
        failure::{Failure, mismatch},
        packing,
        peer::Turn,
        store::WORTH_COMPRESSING,
        upload,
    },
    LARGE, max_answer, otherwise,
};
use gorego_storage::{Blob, Compressor, Digest, DigestFunction, Error, Put, Result};

/// A blob to store, and its place among those of the caller.
#[derive(Clone)]
struct Item {
    place: usize,
    digest: Digest,
    content: Bytes,
}

type Stored = (usize, Result<Put>);

/// Stores several blobs, a result each, in order.
pub(in super::super) async fn put(
    store: &RemoteStore,
    blobs: Vec<(Digest, Bytes)>,
) -> Vec<Result<Put>> {
    let count = blobs.len();
    let mut results: HashMap<usize, Result<Put>> = HashMap::with_capacity(count);
    let mut items = Vec::with_capacity(count);
    for (place, (digest, content)) in blobs.into_iter().enumerate() {
        if content.len() as u64 != digest.size() {
            let wrong = mismatch(&digest, format_args!("{} bytes", content.len()));
            results.insert(place, Err(wrong));
        } else if digest.is_empty_blob() {
            results.insert(place, Ok(Put::Existed));
        } else {
            items.push(Item {
                place,
                digest,
                content,
            });
        }
    }
    if !items.is_empty() {
        match store.capabilities().await {
            Ok(capabilities) => results.extend(store_all(store, &capabilities, items, true).await),
            Err(error) => results.extend(items.into_iter().map(|item| {
                let error = store.unless_lacking(item.digest.function(), error.clone());
                (item.place, Err(error))
            })),
        }
    }
    let lost = || Err(Error::Unavailable("a blob was left out".to_owned()));
    (0..count)
        .map(|place| results.remove(&place).unwrap_or_else(lost))
        .collect()
}

/// Stores blobs of the right lengths. What is refused as a whole is sent in another way, if `again`.
fn store_all<'a>(
    store: &'a RemoteStore,
    capabilities: &'a RemoteCapabilities,
    items: Vec<Item>,
    again: bool,
) -> BoxFuture<'a, Vec<Stored>> {
    store_packed(store, capabilities, items, again).boxed()
}

async fn store_packed(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    items: Vec<Item>,
    again: bool,
) -> Vec<Stored> {
    let mut calls: Vec<BoxFuture<'_, Vec<Stored>>> = Vec::new();
    let mut results = Vec::new();
    for ((function, _), items) in apart(items) {
        if let Err(error) = capabilities.check(&store.peer, function) {
            results.extend(
                items
                    .into_iter()
                    .map(|item| (item.place, Err(error.clone()))),
            );
            continue;
        }
        let sizes = items.iter().map(|item| item.digest.size()).enumerate();
        let packed = packing::pack(sizes, capabilities.max_batch_bytes, LARGE);
        for batch in packed.batches {
            let places = batch.iter().filter_map(|place| items.get(*place));
            let batch = places.cloned().collect();
            calls.push(update(store, capabilities, function, batch, again).boxed());
        }
        for item in packed.alone.iter().filter_map(|place| items.get(*place)) {
            let Item {
                place,
                digest,
                content,
            } = item.clone();
            calls.push(
                async move {
                    let blob = Blob::Bytes(content);
                    vec![(place, upload::put(store, capabilities, &digest, blob).await)]
                }
                .boxed(),
            );
        }
    }
    results.extend(super::all(store, calls).await);
    results
}

/// Those that may share a batch: of one function, and no digest twice, as answers go by digest.
fn apart(items: Vec<Item>) -> HashMap<(DigestFunction, usize), Vec<Item>> {
    let mut mentions: HashMap<Digest, usize> = HashMap::new();
    let mut groups: HashMap<_, Vec<Item>> = HashMap::new();
    for item in items {
        let mention = mentions.entry(item.digest).or_default();
        let group = (item.digest.function(), *mention);
        *mention += 1;
        groups.entry(group).or_default().push(item);
    }
    groups
}

/// Stores one small blob.
pub(in super::super) async fn put_one(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    digest: &Digest,
    content: Bytes,
) -> Result<Put> {
    let item = Item {
        place: 0,
        digest: *digest,
        content,
    };
    let stored = update(store, capabilities, digest.function(), vec![item], true).await;
    let result = stored.into_iter().next();
    result.map_or(Err(Error::NotFound(*digest)), |(_, result)| result)
}

/// One batch, of which those that the peer could not store just now are sent again.
async fn update(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    of: DigestFunction,
    mut pending: Vec<Item>,
    again: bool,
) -> Vec<Stored> {
    let mut done = Vec::with_capacity(pending.len());
    let mut backoff = store.peer.backoff();
    let mut turn = Turn::First;
    let end = store
        .peer
        .end(pending.iter().map(|item| item.digest.size()).sum());
    loop {
        let mut answers = match send(store, capabilities, (end, turn), of, &pending).await {
            Ok(answers) => answers,
            Err(failure) => {
                done.extend(refused(store, capabilities, pending, failure, again).await);
                return done;
            }
        };
        let delay = backoff.next_delay();
        let mut again = Vec::new();
        for item in pending {
            let failure = match answers.remove(&item.digest) {
                Some(status)
                    if matches!(Code::from_i32(status.code), Code::Ok | Code::AlreadyExists) =>
                {
                    done.push((item.place, Ok(Put::Stored)));
                    continue;
                }
                Some(status) => Status::new(Code::from_i32(status.code), status.message).into(),
                None => Failure::Nonsense("its answer leaves it out".to_owned()),
            };
            if failure.is_retryable() && delay.is_some() {
                again.push(item);
                continue;
            }
            let wrong = (failure.code() == Some(Code::InvalidArgument)).then(|| wrong(&item));
            let error = wrong.flatten().unwrap_or_else(|| {
                let what = format_args!("storing {}", item.digest);
                store.peer.error(&what, failure)
            });
            done.push((item.place, Err(error)));
        }
        pending = again;
        turn = Turn::Again;
        match delay {
            Some(delay) if !pending.is_empty() => time::sleep(delay).await,
            _ => return done,
        }
    }
}

/// What becomes of a batch that failed as a whole.
async fn refused(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    items: Vec<Item>,
    failure: Failure,
    again: bool,
) -> Vec<Stored> {
    let invalid = failure.code() == Some(Code::InvalidArgument);
    let mut wrongs: HashMap<usize, Error> = HashMap::new();
    if invalid {
        wrongs.extend(
            items
                .iter()
                .filter_map(|item| Some((item.place, wrong(item)?))),
        );
    }
    if again && wrongs.is_empty() {
        let bytes = items.iter().map(|item| item.digest.size()).sum();
        let other = otherwise(store, capabilities, &failure, items.len(), bytes);
        if let Some((capabilities, again)) = other {
            return store_all(store, &capabilities, items, again).await;
        }
    }
    let digests: Vec<Digest> = items.iter().map(|item| item.digest).collect();
    let error = store.peer.error_of("storing", &digests, failure);
    let error = |item: Item| {
        let wrong = wrongs.remove(&item.place);
        (item.place, Err(wrong.unwrap_or_else(|| error.clone())))
    };
    items.into_iter().map(error).collect()
}

/// What is wrong with content that the peer refused, if it is not the peer.
fn wrong(item: &Item) -> Option<Error> {
    let actual = item.digest.function().digest(&item.content);
    (actual != item.digest).then(|| mismatch(&item.digest, actual))
}

async fn send(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    (end, turn): (Instant, Turn),
    of: DigestFunction,
    items: &[Item],
) -> Result<HashMap<Digest, rpc::Status>, Failure> {
    let zstd = store.zstd && capabilities.zstd_batches;
    let request = BatchUpdateBlobsRequest {
        instance_name: store.instance.as_str().to_owned(),
        requests: items.iter().map(|item| encoded(item, zstd)).collect(),
        digest_function: function(of),
    };
    let bytes = items.iter().map(|item| item.digest.size()).sum();
    let most = max_answer(items.len(), 0);
    let answer = store
        .peer
        .call_until(end, turn, bytes, |link| {
            let request = request.clone();
            bounded::call(link, request, &BATCH_UPDATE, most)
        })
        .await?;
    let keyed = answer.responses.into_iter().filter_map(|response| {
        let digest = Digest::from_field(Some(of), response.digest.as_ref()).ok()?;
        Some((digest, response.status.unwrap_or_default()))
    });
    Ok(keyed.collect())
}

/// A blob as it travels: compressed if that helps.
fn encoded(item: &Item, zstd: bool) -> Request {
    let worth = zstd && item.digest.size() >= WORTH_COMPRESSING;
    let compressed = worth.then(|| compression::compress(&item.content).ok());
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
