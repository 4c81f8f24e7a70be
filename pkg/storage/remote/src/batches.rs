//! Transfers of many small blobs: `BatchReadBlobs` and `BatchUpdateBlobs`, driven alike.

mod wire;

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future, future::BoxFuture, stream};
use tonic::Code;

use super::{
    RemoteCapabilities, RemoteStore, download, failure::Failure, missing::unique, packing,
    store::SMALL, upload,
};
use gorego_storage::{Blob, Digest, DigestFunction, Error, Put, Result};

/// The largest blob in a batch, in bytes: a larger one has a stream of its own, which can be resumed.
const LARGE: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Update,
}

/// A blob to transfer.
struct Item {
    digest: Digest,
    /// Empty if the blob is read.
    content: Bytes,
}

/// The outcome of one blob. The content is empty if the blob was stored.
type BatchOutcome = (Digest, Result<Bytes>);

/// A transfer of blobs to or from a peer, limited by its capabilities.
struct Transfer<'a> {
    store: &'a RemoteStore,
    capabilities: Arc<RemoteCapabilities>,
    direction: Direction,
    /// Set after the batch size was reduced: it is not reduced again.
    is_last: bool,
}

/// Reads several blobs. Returns a result for each, in order; reads a repeated one once.
pub(super) async fn get(store: &RemoteStore, digests: &[Digest]) -> Vec<Result<Bytes>> {
    let item = |digest| Item {
        digest,
        content: Bytes::new(),
    };
    let items = unique(digests).into_iter().map(item).collect();
    let read = many(store, Direction::Read, items).await;
    // Only the empty blob is absent from `read`.
    let result = |digest| read.get(digest).cloned().unwrap_or(Ok(Bytes::new()));
    digests.iter().map(result).collect()
}

/// Stores several blobs. Returns a result for each, in order; sends a repeated one once.
pub(super) async fn put(store: &RemoteStore, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
    let mut sent = HashMap::with_capacity(blobs.len());
    let mut items = Vec::with_capacity(blobs.len());
    for (digest, content) in &blobs {
        let (digest, content) = (*digest, content.clone());
        let is_valid = !digest.is_empty_blob() && content.len() as u64 == digest.size();
        if is_valid && !sent.contains_key(&digest) {
            sent.insert(digest, content.clone());
            items.push(Item { digest, content });
        }
    }
    let stored = many(store, Direction::Update, items).await;
    let result = |(digest, content): (Digest, Bytes)| {
        if content.len() as u64 != digest.size() {
            let actual = format_args!("{} bytes", content.len());
            return Err(Error::mismatch(&digest, actual));
        }
        match (stored.get(&digest), sent.get(&digest)) {
            (Some(_), Some(sent)) if *sent != content => {
                let actual = "not the content that the same batch has for it elsewhere";
                Err(Error::mismatch(&digest, actual))
            }
            (Some(stored), _) => stored.clone().map(|_| Put::Stored),
            // Only the empty blob is absent from `stored`.
            (None, _) => Ok(Put::Existed),
        }
    };
    blobs.into_iter().map(result).collect()
}

/// Transfers distinct blobs, none of them empty.
async fn many(
    store: &RemoteStore,
    direction: Direction,
    items: Vec<Item>,
) -> HashMap<Digest, Result<Bytes>> {
    if items.is_empty() {
        return HashMap::new();
    }
    let capabilities = match store.capabilities().await {
        Ok(capabilities) => capabilities,
        Err(error) => {
            let error = |digest: &Digest| store.unless_lacking(digest.function(), error.clone());
            let outcome = |item: Item| (item.digest, Err(error(&item.digest)));
            return items.into_iter().map(outcome).collect();
        }
    };
    let transfer = Transfer {
        store,
        capabilities,
        direction,
        is_last: false,
    };
    transfer.split(items).await.into_iter().collect()
}

/// Transfers one blob for which [`is_small`] holds.
pub(super) async fn one(
    store: &RemoteStore,
    capabilities: &Arc<RemoteCapabilities>,
    direction: Direction,
    digest: &Digest,
    content: Bytes,
) -> Result<Bytes> {
    let transfer = Transfer {
        store,
        capabilities: Arc::clone(capabilities),
        direction,
        is_last: false,
    };
    let item = Item {
        digest: *digest,
        content,
    };
    let outcome = transfer.split(vec![item]).await.pop();
    outcome.map_or(Err(Error::NotFound(*digest)), |(_, outcome)| outcome)
}

impl Transfer<'_> {
    /// Transfers distinct blobs in calls by function and size, as many at once as the peer may get.
    fn split(&self, items: Vec<Item>) -> BoxFuture<'_, Vec<BatchOutcome>> {
        let mut groups: HashMap<_, Vec<Item>> = HashMap::new();
        for item in items {
            let group = groups.entry(item.digest.function());
            group.or_default().push(item);
        }
        let mut calls: Vec<BoxFuture<'_, Vec<BatchOutcome>>> = Vec::new();
        for (function, items) in groups {
            if let Err(error) = self.capabilities.check(&self.store.peer, function) {
                let outcome = |item: Item| (item.digest, Err(error.clone()));
                let outcomes = items.into_iter().map(outcome).collect();
                calls.push(future::ready(outcomes).boxed());
                continue;
            }
            let limit = self.capabilities.max_batch_bytes;
            let (batches, alone) = packing::pack(items, |item| item.digest.size(), limit, LARGE);
            for items in batches {
                calls.push(self.batch(function, items).boxed());
            }
            for item in alone {
                calls.push(self.alone(item).boxed());
            }
        }
        let calls = stream::iter(calls).buffer_unordered(self.store.peer.max_calls);
        calls.concat().boxed()
    }

    /// Transfers a blob in a stream of its own.
    async fn alone(&self, item: Item) -> Vec<BatchOutcome> {
        let Item { digest, content } = item;
        let (store, capabilities) = (self.store, &self.capabilities);
        let outcome = match self.direction {
            Direction::Read => match download::start(store, capabilities, &digest, 0).await {
                Ok(blob) => blob.into_bytes().await,
                Err(error) => Err(error),
            },
            Direction::Update => {
                let put = upload::put(store, capabilities, &digest, Blob::Bytes(content)).await;
                put.map(|_| Bytes::new())
            }
        };
        vec![(digest, outcome)]
    }

    /// Transfers one batch. Retries the blobs that fail temporarily.
    async fn batch(&self, function: DigestFunction, mut items: Vec<Item>) -> Vec<BatchOutcome> {
        let peer = &self.store.peer;
        let mut outcomes = Vec::with_capacity(items.len());
        let mut retry = peer.retry();
        let end = peer.end(total(&items));
        while !items.is_empty() {
            let mut entries = match self.call(function, &items, end, &mut retry).await {
                Ok(entries) => entries,
                Err(failure) => {
                    outcomes.extend(self.refused(items, failure).await);
                    break;
                }
            };
            let mut failed = Vec::new();
            for item in items {
                match entries.remove(&item.digest) {
                    Some(Ok(content)) => outcomes.push((item.digest, Ok(content))),
                    Some(Err(failure)) => failed.push((item, failure)),
                    None => {
                        let why = "its answer omits the blob".to_owned();
                        failed.push((item, Failure::InvalidAnswer(why)));
                    }
                }
            }
            let may_pass = failed.iter().any(|(_, failure)| failure.is_retryable());
            let retries = may_pass && retry.pause(Duration::MAX).await;
            items = Vec::new();
            for (item, failure) in failed {
                if retries && failure.is_retryable() {
                    items.push(item);
                    continue;
                }
                let error = self.own_error(&item, &failure);
                let error = error.unwrap_or_else(|| self.error(&[item.digest], failure));
                outcomes.push((item.digest, Err(error)));
            }
        }
        outcomes
    }

    /// Returns the outcomes of a batch that was refused as a whole: those of smaller or uncompressed batches
    /// if these may succeed, else errors.
    async fn refused(&self, items: Vec<Item>, failure: Failure) -> Vec<BatchOutcome> {
        let own_errors = items.iter().map(|item| self.own_error(item, &failure));
        let own_errors: Vec<_> = own_errors.collect();
        if own_errors.iter().all(Option::is_none)
            && let Some(corrected) = self.corrected(&items, &failure)
        {
            return corrected.split(items).await;
        }
        let digests: Vec<_> = items.iter().map(|item| item.digest).collect();
        let error = self.error(&digests, failure);
        let error = |own: Option<Error>| Err(own.unwrap_or_else(|| error.clone()));
        let outcomes = items.iter().zip(own_errors);
        outcomes
            .map(|(item, own)| (item.digest, error(own)))
            .collect()
    }

    /// Corrects the peer's capabilities after it refused a batch: no compression, or smaller batches,
    /// which is the last correction. `None` if neither explains the refusal.
    fn corrected(&self, items: &[Item], failure: &Failure) -> Option<Self> {
        let correct = |is_last, change: &dyn Fn(&mut RemoteCapabilities)| {
            let mut capabilities = Arc::clone(&self.capabilities);
            change(Arc::make_mut(&mut capabilities));
            self.store.known.correct(change);
            Self {
                capabilities,
                is_last,
                ..*self
            }
        };
        if self.compresses() && failure.is_unknown_form() {
            return Some(correct(false, &|known| known.zstd_batches = false));
        }
        let half = (total(items) / 2).max(2 * SMALL);
        let smaller = |known: &mut RemoteCapabilities| {
            known.max_batch_bytes = known.max_batch_bytes.min(half);
        };
        let may_be_too_large = failure.is_too_large() && items.len() > 1;
        (may_be_too_large && !self.is_last).then(|| correct(true, &smaller))
    }

    fn compresses(&self) -> bool {
        self.direction == Direction::Update && self.store.zstd && self.capabilities.zstd_batches
    }

    /// Returns the error of a failure that concerns this blob alone. Content that the peer refuses may be
    /// corrupt.
    fn own_error(&self, item: &Item, failure: &Failure) -> Option<Error> {
        match (self.direction, failure.code()) {
            (Direction::Read, Some(Code::NotFound)) => Some(Error::NotFound(item.digest)),
            (Direction::Update, Some(Code::InvalidArgument)) => {
                let actual = item.digest.function().digest(&item.content);
                (actual != item.digest).then(|| Error::mismatch(&item.digest, actual))
            }
            _ => None,
        }
    }

    fn error(&self, blobs: &[Digest], failure: Failure) -> Error {
        let doing = match self.direction {
            Direction::Read => "reading",
            Direction::Update => "storing",
        };
        self.store.peer.error_of(doing, blobs, failure)
    }
}

fn total(items: &[Item]) -> u64 {
    items.iter().map(|item| item.digest.size()).sum()
}

/// Whether a blob travels in a batch even when it is alone.
pub(super) fn is_small(capabilities: &RemoteCapabilities, size: u64) -> bool {
    size <= SMALL && packing::fits(size, capabilities.max_batch_bytes)
}
