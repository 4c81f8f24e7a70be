//! Transfers of many small blobs: `BatchReadBlobs` and `BatchUpdateBlobs`, driven alike.

mod read;
mod update;

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future, future::BoxFuture, stream};
use reapi::v2;
use tokio::time::Instant;

pub(super) use self::{read::get, update::put};
use super::{
    RemoteCapabilities, RemoteStore, failure::Failure, methods::Limits, packing, retry::Retry,
    store::SMALL,
};
use gorego_storage::{Digest, DigestFunction, Error, Result};

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
/// The answers about the blobs of one batch.
type Entries = HashMap<Digest, Result<Bytes, Failure>>;

/// A transfer of blobs to or from a peer with these capabilities.
struct Transfer<'a> {
    store: &'a RemoteStore,
    capabilities: Arc<RemoteCapabilities>,
    direction: Direction,
    /// Whether what a refusal shows of the capabilities was corrected for the last time.
    is_last: bool,
}

/// Transfers blobs, none of them empty. Returns their outcomes in order.
async fn transfer(
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
    let items = blobs.into_iter().enumerate();
    let items = items.map(|(place, (digest, content))| Item {
        place,
        digest,
        content,
    });
    let transfer = Transfer {
        store,
        capabilities,
        direction,
        is_last: false,
    };
    let mut outcomes = transfer.split(items.collect()).await;
    outcomes.sort_unstable_by_key(|(place, _)| *place);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
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
        place: 0,
        digest: *digest,
        content,
    };
    let outcome = transfer.split(vec![item]).await.pop();
    outcome.map_or(Err(Error::NotFound(*digest)), |(_, outcome)| outcome)
}

impl Transfer<'_> {
    /// Transfers blobs in calls by function and size, as many at once as the peer may be asked.
    fn split(&self, items: Vec<Item>) -> BoxFuture<'_, Vec<Outcome>> {
        // Answers go by digest: none is in a batch twice.
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

    async fn alone(&self, item: Item) -> Vec<Outcome> {
        let (place, store, capabilities) = (item.place, self.store, &self.capabilities);
        let outcome = match self.direction {
            Direction::Read => read::alone(store, capabilities, &item.digest).await,
            Direction::Update => update::alone(store, capabilities, item).await,
        };
        vec![(place, outcome)]
    }

    /// Transfers one batch. Blobs that fail for the moment are sent or requested again.
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
                        let why = "its answer leaves it out".to_owned();
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

    async fn call(
        &self,
        function: DigestFunction,
        items: &[Item],
        end: Instant,
        retry: &mut Retry,
    ) -> Result<Entries, Failure> {
        match self.direction {
            Direction::Read => read::call(self, function, items, end, retry).await,
            Direction::Update => update::call(self, function, items, end, retry).await,
        }
    }

    /// Returns the outcomes of a batch that was refused as a whole: those of smaller or uncompressed batches
    /// if these may pass, else errors.
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

    /// Corrects what the peer is known to accept after it refused a batch: no compression, or smaller
    /// batches, which is the last correction. `None` if neither explains the refusal.
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

    /// Whether content is sent compressed.
    fn compresses(&self) -> bool {
        self.direction == Direction::Update && self.store.zstd && self.capabilities.zstd_batches
    }

    /// The error of a failure that is due to this blob alone.
    fn own_error(&self, item: &Item, failure: &Failure) -> Option<Error> {
        match self.direction {
            Direction::Read => read::own_error(item, failure),
            Direction::Update => update::own_error(item, failure),
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

/// Returns the entries of an answer by digest.
fn keyed<T>(
    function: DigestFunction,
    entries: Vec<T>,
    digest: impl Fn(&T) -> Option<&v2::Digest>,
) -> impl Iterator<Item = (Digest, T)> {
    entries.into_iter().filter_map(move |entry| {
        let digest = Digest::from_field(Some(function), digest(&entry)).ok()?;
        Some((digest, entry))
    })
}

fn total(items: &[Item]) -> u64 {
    items.iter().map(|item| item.digest.size()).sum()
}

/// The limits of an answer about `count` blobs with `content` bytes.
fn limits(count: usize, content: u64) -> Limits {
    const ENCODED: usize = 2048;
    const DECODED: usize = 4096;
    let content = usize::try_from(content).unwrap_or(usize::MAX);
    Limits {
        // Compression may make content longer by a little.
        encoded: content
            .saturating_add(content / 16)
            .saturating_add(ENCODED.saturating_mul(count)),
        decoded: DECODED.saturating_mul(count),
    }
}

/// Whether a blob travels in a batch even when it is alone.
pub(super) fn is_small(capabilities: &RemoteCapabilities, size: u64) -> bool {
    size <= SMALL && packing::fits(size, capabilities.max_batch_bytes)
}
