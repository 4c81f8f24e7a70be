//! Transfers of many small blobs: `BatchReadBlobs` and `BatchUpdateBlobs`, driven alike.

mod wire;

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future, future::BoxFuture, stream};
use tonic::Code;

use super::{
    RemoteCapabilities, RemoteStore, download,
    failure::{Failure, mismatch},
    missing::unique,
    packing,
    store::SMALL,
    upload,
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
    /// Its place among the blobs of the caller.
    place: usize,
    digest: Digest,
    /// Empty where the blob is read.
    content: Bytes,
}

/// The outcome of one item, with its place. The content is empty where the blob was stored.
type Outcome = (usize, Result<Bytes>);

/// A transfer of blobs to or from a peer with these capabilities.
struct Transfer<'a> {
    store: &'a RemoteStore,
    capabilities: Arc<RemoteCapabilities>,
    direction: Direction,
    /// Set after the last correction of the capabilities.
    is_last: bool,
}

/// Reads several blobs. Returns a result each, in order; a blob named twice is read once.
pub(super) async fn get(store: &RemoteStore, digests: &[Digest]) -> Vec<Result<Bytes>> {
    let unique = unique(digests);
    let blobs = unique.iter().map(|digest| (*digest, Bytes::new()));
    let read = many(store, Direction::Read, blobs.collect()).await;
    let read: HashMap<_, _> = unique.into_iter().zip(read).collect();
    // Only the empty blob is not read.
    let result = |digest| read.get(digest).cloned().unwrap_or(Ok(Bytes::new()));
    digests.iter().map(result).collect()
}

/// Stores several blobs. Returns a result each, in order.
pub(super) async fn put(store: &RemoteStore, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
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
    let stored = many(store, Direction::Update, good).await;
    let mut stored = stored.into_iter().map(|stored| stored.map(|_| Put::Stored));
    let lost = || Err(Error::Unavailable("a blob was left out".to_owned()));
    let checked = checked.into_iter();
    checked
        .map(|known| known.or_else(|| stored.next()).unwrap_or_else(lost))
        .collect()
}

/// Transfers blobs, none of them empty. Returns their outcomes in order.
async fn many(
    store: &RemoteStore,
    direction: Direction,
    blobs: Vec<(Digest, Bytes)>,
) -> Vec<Result<Bytes>> {
    if blobs.is_empty() {
        return Vec::new();
    }
    let capabilities = match store.capabilities().await {
        Ok(capabilities) => capabilities,
        Err(error) => {
            let functions = blobs.iter().map(|(digest, _)| digest.function());
            let error = |function| Err(store.unless_lacking(function, error.clone()));
            return functions.map(error).collect();
        }
    };
    let transfer = Transfer::new(store, &capabilities, direction);
    transfer.run(blobs).await
}

/// Transfers one blob for which [`is_small`] holds.
pub(super) async fn one(
    store: &RemoteStore,
    capabilities: &Arc<RemoteCapabilities>,
    direction: Direction,
    digest: &Digest,
    content: Bytes,
) -> Result<Bytes> {
    let transfer = Transfer::new(store, capabilities, direction);
    let outcome = transfer.run(vec![(*digest, content)]).await.pop();
    outcome.unwrap_or(Err(Error::NotFound(*digest)))
}

impl<'a> Transfer<'a> {
    fn new(
        store: &'a RemoteStore,
        capabilities: &Arc<RemoteCapabilities>,
        direction: Direction,
    ) -> Self {
        Self {
            store,
            capabilities: Arc::clone(capabilities),
            direction,
            is_last: false,
        }
    }

    /// Transfers blobs. Returns their outcomes in order.
    async fn run(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Bytes>> {
        let item = |(place, (digest, content))| Item {
            place,
            digest,
            content,
        };
        let items = blobs.into_iter().enumerate().map(item);
        let mut outcomes = self.split(items.collect()).await;
        outcomes.sort_unstable_by_key(|(place, _)| *place);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// Transfers blobs in calls by function and size, as many at once as the peer may get.
    fn split(&self, items: Vec<Item>) -> BoxFuture<'_, Vec<Outcome>> {
        // Answers are matched by digest, so that no batch may name one twice.
        let mut mentions: HashMap<Digest, usize> = HashMap::new();
        let mut groups: HashMap<_, Vec<Item>> = HashMap::new();
        for item in items {
            let mention = mentions.entry(item.digest).or_default();
            *mention += 1;
            let group = groups.entry((item.digest.function(), *mention));
            group.or_default().push(item);
        }
        let mut calls: Vec<BoxFuture<'_, Vec<Outcome>>> = Vec::new();
        for ((function, _), items) in groups {
            if let Err(error) = self.capabilities.check(&self.store.peer, function) {
                let outcomes = items
                    .into_iter()
                    .map(|item| (item.place, Err(error.clone())));
                calls.push(future::ready(outcomes.collect()).boxed());
                continue;
            }
            let (size, limit) = (
                |item: &Item| item.digest.size(),
                self.capabilities.max_batch_bytes,
            );
            let (batches, alone) = packing::pack(items, size, limit, LARGE);
            calls.extend(
                batches
                    .into_iter()
                    .map(|items| self.batch(function, items).boxed()),
            );
            calls.extend(alone.into_iter().map(|item| self.alone(item).boxed()));
        }
        let calls = stream::iter(calls).buffer_unordered(self.store.peer.max_calls);
        calls.concat().boxed()
    }

    /// Transfers a blob in a stream of its own.
    async fn alone(&self, item: Item) -> Vec<Outcome> {
        let (place, digest, content) = (item.place, item.digest, item.content);
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
        vec![(place, outcome)]
    }

    /// Transfers one batch. Retries the blobs that fail temporarily.
    async fn batch(&self, function: DigestFunction, mut items: Vec<Item>) -> Vec<Outcome> {
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
                    Some(Ok(content)) => outcomes.push((item.place, Ok(content))),
                    Some(Err(failure)) => failed.push((item, failure)),
                    None => {
                        let why = "its answer omits the blob".to_owned();
                        failed.push((item, Failure::Nonsense(why)));
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
                outcomes.push((item.place, Err(error)));
            }
        }
        outcomes
    }

    /// Returns the outcomes of a batch that was refused as a whole: those of smaller or uncompressed batches
    /// if these may succeed, else errors.
    async fn refused(&self, items: Vec<Item>, failure: Failure) -> Vec<Outcome> {
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
            .map(|(item, own)| (item.place, error(own)))
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
                (actual != item.digest).then(|| mismatch(&item.digest, actual))
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
