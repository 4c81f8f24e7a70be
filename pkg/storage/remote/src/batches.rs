//! Transfers of many small blobs: `BatchReadBlobs` and `BatchUpdateBlobs`, driven alike.

mod wire;

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{RemoteCapabilities, download, failure::Failure, missing::unique, peer::Peer, upload};
use gorego_storage::{Blob, Digest, DigestFunction, Error, Put, Result};

/// The largest blob in a batch, in bytes: a larger one has a stream of its own, which can be resumed.
const LARGE: u64 = 1 << 20;
/// The bytes beside the content of each blob in a message: a digest, a status, and field headers.
const FRAMING: u64 = 256;
/// The least size of a batch after the peer refused a larger one, in bytes.
const MIN_BATCH: u64 = 128 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Read,
    Update,
}

struct Item {
    digest: Digest,
    /// Empty if the blob is read.
    content: Bytes,
}

/// The outcome of one blob. The content is empty if the blob was stored.
type BatchOutcome = (Digest, Result<Bytes>);

/// A transfer of blobs of one function to or from a peer, limited by its capabilities.
struct Transfer<'a> {
    peer: &'a Arc<Peer>,
    capabilities: Arc<RemoteCapabilities>,
    function: DigestFunction,
    direction: Direction,
    /// Set after the batch size was reduced: it is not reduced again.
    is_last: bool,
}

/// Reads several blobs. Returns a result for each, in order; reads a repeated one once.
pub(super) async fn get(peer: &Arc<Peer>, digests: &[Digest]) -> Vec<Result<Bytes>> {
    let item = |digest| Item {
        digest,
        content: Bytes::new(),
    };
    let items = unique(digests).into_iter().map(item).collect();
    let read = many(peer, Direction::Read, items).await;
    // Only the empty blob is absent from `read`.
    let result = |digest| read.get(digest).cloned().unwrap_or(Ok(Bytes::new()));
    digests.iter().map(result).collect()
}

/// Stores several blobs. Returns a result for each, in order; sends a repeated one once.
pub(super) async fn put(peer: &Arc<Peer>, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
    let mut sent = HashMap::with_capacity(blobs.len());
    for (digest, content) in &blobs {
        if content.len() as u64 == digest.size() {
            let sent = sent.entry(*digest).or_insert(content);
            // Only one of several contents can be right.
            if *sent != content && digest.is_of(content) {
                *sent = content;
            }
        }
    }
    let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
    let item = |digest| {
        let content = sent.get(&digest).copied()?.clone();
        Some(Item { digest, content })
    };
    let items = unique(&digests).into_iter().filter_map(item).collect();
    let stored = many(peer, Direction::Update, items).await;
    if let Some((digest, _)) = stored.iter().find(|(_, outcome)| outcome.is_ok()) {
        peer.canary.set(digest);
    }
    let result = |(digest, content): &(Digest, Bytes)| {
        if content.len() as u64 != digest.size() {
            let actual = format_args!("{} bytes", content.len());
            return Err(Error::mismatch(digest, actual));
        }
        if sent.get(digest).is_some_and(|sent| *sent != content) {
            let actual = "not the content that the same batch has for it elsewhere";
            return Err(Error::mismatch(digest, actual));
        }
        match stored.get(digest) {
            Some(stored) => stored.clone().map(|_| Put::Stored),
            // Only the empty blob is absent from `stored`.
            None => Ok(Put::Existed),
        }
    };
    blobs.iter().map(result).collect()
}

/// Transfers distinct blobs, none of them empty.
async fn many(
    peer: &Arc<Peer>,
    direction: Direction,
    mut items: Vec<Item>,
) -> HashMap<Digest, Result<Bytes>> {
    let mut outcomes = HashMap::with_capacity(items.len());
    while let Some(function) = items.first().map(|item| item.digest.function()) {
        let is_of_it = |item: &Item| item.digest.function() == function;
        let (of_it, others) = items.into_iter().partition::<Vec<_>, _>(is_of_it);
        items = others;
        match peer.offered(function).await {
            Ok(capabilities) => {
                let transfer = Transfer {
                    peer,
                    capabilities,
                    function,
                    direction,
                    is_last: false,
                };
                outcomes.extend(transfer.split(of_it).await);
            }
            Err(error) => {
                let outcome = |item: Item| (item.digest, Err(error.clone()));
                outcomes.extend(of_it.into_iter().map(outcome));
            }
        }
    }
    outcomes
}

impl Transfer<'_> {
    /// Transfers distinct blobs in calls by size, as many at once as the peer may get.
    fn split(&self, items: Vec<Item>) -> BoxFuture<'_, Vec<BatchOutcome>> {
        let limit = self.capabilities.max_batch_bytes;
        let (batches, alone) = pack(items, |item| item.digest.size(), limit, LARGE);
        let batches = batches.into_iter().map(|items| self.batch(items).boxed());
        let alone = alone.into_iter().map(|item| self.alone(item).boxed());
        let calls: Vec<_> = batches.chain(alone).collect();
        let calls = stream::iter(calls).buffer_unordered(self.peer.options.max_calls);
        calls.concat().boxed()
    }

    async fn alone(&self, Item { digest, content }: Item) -> Vec<BatchOutcome> {
        let (peer, capabilities) = (self.peer, &self.capabilities);
        let outcome = match self.direction {
            Direction::Read => match download::start(peer, capabilities, &digest, 0).await {
                Ok(blob) => blob.into_bytes().await,
                Err(error) => Err(error),
            },
            Direction::Update => {
                let put = upload::put(peer, capabilities, &digest, Blob::Bytes(content)).await;
                put.map(|_| Bytes::new())
            }
        };
        vec![(digest, outcome)]
    }

    /// Transfers one batch. Retries the blobs that fail temporarily. If the batch is refused as a whole, tries
    /// smaller or uncompressed ones if these may succeed.
    async fn batch(&self, mut items: Vec<Item>) -> Vec<BatchOutcome> {
        let mut outcomes = Vec::with_capacity(items.len());
        let mut retry = self.peer.retry();
        let bytes = items.iter().map(|item| item.digest.size()).sum();
        let end = Instant::now() + self.peer.deadline(bytes) * 2;
        while !items.is_empty() {
            let (mut entries, refusal) = match self.call(&items, &mut retry).await {
                Ok(entries) => (entries, None),
                Err(failure) => (HashMap::new(), Some(failure)),
            };
            if let Some(corrected) = refusal.as_ref().and_then(|why| self.corrected(&items, why)) {
                outcomes.extend(corrected.split(items).await);
                break;
            }
            let mut failed = Vec::new();
            for item in items {
                let omitted = || Status::internal("its answer omits the blob").into();
                let omitted = || Err(refusal.clone().unwrap_or_else(omitted));
                match entries.remove(&item.digest).unwrap_or_else(omitted) {
                    Ok(content) => outcomes.push((item.digest, Ok(content))),
                    Err(failure) => failed.push((item, failure)),
                }
            }
            let may_pass = failed.iter().any(|(_, failure)| failure.is_retryable());
            let left = end.saturating_duration_since(Instant::now());
            let retries = refusal.is_none() && may_pass && retry.pause(left).await;
            let is_retried = |(_, failure): &(_, Failure)| retries && failure.is_retryable();
            let (again, ended) = failed.into_iter().partition::<Vec<_>, _>(is_retried);
            let error = |(item, failure): (Item, _)| (item.digest, Err(self.error(&item, failure)));
            outcomes.extend(ended.into_iter().map(error));
            items = again.into_iter().map(|(item, _)| item).collect();
        }
        outcomes
    }

    /// Corrects the peer's capabilities after it refused a batch: no compression, or smaller batches,
    /// which is the last correction. `None` if neither explains the refusal.
    fn corrected(&self, items: &[Item], failure: &Failure) -> Option<Self> {
        if items
            .iter()
            .any(|item| self.own_error(item, failure).is_some())
        {
            return None;
        }
        let known = &self.peer.known;
        let half = (total(items) / 2).max(MIN_BATCH);
        let (capabilities, is_last) = if self.compresses() && failure.is_unknown_form() {
            (known.correct(|known| known.zstd_batches = false), false)
        } else if failure.is_too_large() && items.len() > 1 && !self.is_last {
            let smaller = |known: &mut RemoteCapabilities| {
                known.max_batch_bytes = known.max_batch_bytes.min(half);
            };
            (known.correct(smaller), true)
        } else {
            return None;
        };
        Some(Self {
            capabilities: capabilities?,
            is_last,
            ..*self
        })
    }

    fn compresses(&self) -> bool {
        let is_supported = self.peer.options.zstd && self.capabilities.zstd_batches;
        self.direction == Direction::Update && is_supported
    }

    /// Returns the error of a failure that concerns this blob alone. Content that the peer refuses may be
    /// corrupt.
    fn own_error(&self, item: &Item, failure: &Failure) -> Option<Error> {
        match (self.direction, failure.code()) {
            (Direction::Read, Some(Code::NotFound)) => Some(Error::NotFound(item.digest)),
            (Direction::Update, Some(Code::InvalidArgument)) => {
                let actual = self.function.digest(&item.content);
                (actual != item.digest).then(|| Error::mismatch(&item.digest, actual))
            }
            _ => None,
        }
    }

    fn error(&self, item: &Item, failure: Failure) -> Error {
        let doing = match self.direction {
            Direction::Read => "reading",
            Direction::Update => "storing",
        };
        let operation = format_args!("{doing} {}", item.digest);
        let own = self.own_error(item, &failure);
        own.unwrap_or_else(|| self.peer.error(&operation, failure))
    }
}

fn total(items: &[Item]) -> u64 {
    items.iter().map(|item| item.digest.size()).sum()
}

/// Packs blobs into batches of at most `limit` bytes, in order. Returns the batches, and the blobs that go alone: those
/// larger than `large`, and those that do not fit into a batch.
fn pack<T>(
    blobs: Vec<T>,
    size: impl Fn(&T) -> u64,
    limit: u64,
    large: u64,
) -> (Vec<Vec<T>>, Vec<T>) {
    let (mut batches, mut alone) = (Vec::new(), Vec::new());
    let mut batch = Vec::new();
    let mut total = 0_u64;
    for blob in blobs {
        let size = size(&blob);
        if size > large || size + FRAMING > limit {
            alone.push(blob);
            continue;
        }
        if total + size + FRAMING > limit {
            batches.push(std::mem::take(&mut batch));
            total = 0;
        }
        total += size + FRAMING;
        batch.push(blob);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    (batches, alone)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_blob_travels_once_and_no_batch_is_too_large(
            sizes in prop::collection::vec(0_u64..5000, 0..200),
            limit in 0_u64..10_000,
        ) {
            let places: Vec<_> = (0..sizes.len()).collect();
            let (batches, alone) = pack(places, |place| sizes[*place], limit, 4000);
            for batch in &batches {
                let total: u64 = batch.iter().map(|place| sizes[*place] + FRAMING).sum();
                prop_assert!(total <= limit && !batch.is_empty());
            }
            let mut places: Vec<_> = batches.concat();
            places.extend(alone);
            places.sort_unstable();
            prop_assert!(places.into_iter().eq(0..sizes.len()));
        }
    }
}
