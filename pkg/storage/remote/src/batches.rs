//! Transfers of many small blobs: `BatchReadBlobs` and `BatchUpdateBlobs`, driven alike.

mod read;
mod update;

use std::{collections::HashMap, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future, future::BoxFuture, stream};
use prost::Message;
use reapi::v2;

pub(super) use self::{
    read::{Read, get},
    update::{Update, put},
};
use super::{
    RemoteCapabilities, RemoteStore,
    failure::Failure,
    methods::{Limits, Method},
    packing,
    peer::Peer,
    store::SMALL,
};
use gorego_storage::{Digest, DigestFunction, Error, Result};

/// The largest blob in a batch, in bytes: a larger one has a stream of its own, which can be resumed.
const LARGE: u64 = 1 << 20;

/// A direction in which blobs are transferred.
pub(super) trait Direction: 'static {
    /// A blob to transfer.
    type Blob: Send + Sync;
    type Output: Send;
    type Request: Message + 'static;
    type Answer: Message + Default + 'static;
    /// The answer about one blob.
    type Entry: Send;

    const METHOD: Method<Self::Request, Self::Answer>;
    /// The operation's name in errors.
    const DOING: &'static str;
    /// Whether requests hold content, which may be compressed.
    const UPLOADS: bool;

    fn digest(blob: &Self::Blob) -> Digest;

    /// The request for these blobs, all of one function.
    fn request(
        store: &RemoteStore,
        capabilities: &RemoteCapabilities,
        blobs: &[(usize, Self::Blob)],
        function: DigestFunction,
    ) -> Self::Request;

    fn entries(answer: Self::Answer) -> impl Iterator<Item = (Option<v2::Digest>, Self::Entry)>;

    fn outcome(peer: &Peer, blob: &Self::Blob, entry: Self::Entry)
    -> Result<Self::Output, Failure>;

    /// The error of a failure that is due to this blob alone.
    fn own_error(blob: &Self::Blob, failure: &Failure) -> Option<Error>;

    /// Transfers a blob that is too large for a batch.
    fn alone<'a>(
        store: &'a RemoteStore,
        capabilities: &'a RemoteCapabilities,
        blob: Self::Blob,
    ) -> BoxFuture<'a, Result<Self::Output>>;
}

/// The blobs of one call, each with its place among those of the caller.
type Placed<D> = Vec<(usize, <D as Direction>::Blob)>;
type Outcomes<D> = Vec<(usize, Result<<D as Direction>::Output>)>;

/// Transfers blobs, none of them empty. Returns their outcomes in order.
async fn transfer<D: Direction>(
    store: &RemoteStore,
    blobs: Vec<D::Blob>,
) -> Vec<Result<D::Output>> {
    if blobs.is_empty() {
        return Vec::new();
    }
    let capabilities = match store.capabilities().await {
        Ok(capabilities) => capabilities,
        Err(error) => {
            let functions = blobs.iter().map(|blob| D::digest(blob).function());
            let error = |function| Err(store.unless_lacking(function, error.clone()));
            return functions.map(error).collect();
        }
    };
    let blobs = blobs.into_iter().enumerate().collect();
    let mut outcomes = split::<D>(store, &capabilities, blobs, true).await;
    outcomes.sort_unstable_by_key(|(place, _)| *place);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// Transfers one blob for which [`is_small`] holds.
pub(super) async fn transfer_one<D: Direction>(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    blob: D::Blob,
) -> Result<D::Output> {
    let digest = D::digest(&blob);
    let outcomes = split::<D>(store, capabilities, vec![(0, blob)], true).await;
    let outcome = outcomes.into_iter().next().map(|(_, outcome)| outcome);
    outcome.unwrap_or(Err(Error::NotFound(digest)))
}

/// Transfers blobs in calls by function and size, as many at once as the peer may be asked. A batch that
/// is refused as a whole is split differently if `again`.
fn split<'a, D: Direction>(
    store: &'a RemoteStore,
    capabilities: &'a RemoteCapabilities,
    blobs: Placed<D>,
    again: bool,
) -> BoxFuture<'a, Outcomes<D>> {
    // Answers go by digest: none is in a batch twice.
    let mut mentions: HashMap<Digest, usize> = HashMap::new();
    let mut groups: HashMap<_, Placed<D>> = HashMap::new();
    for (place, blob) in blobs {
        let digest = D::digest(&blob);
        let mention = mentions.entry(digest).or_default();
        *mention += 1;
        let group = groups.entry((digest.function(), *mention)).or_default();
        group.push((place, blob));
    }
    let mut calls: Vec<BoxFuture<'a, Outcomes<D>>> = Vec::new();
    for ((function, _), blobs) in groups {
        if let Err(error) = capabilities.check(&store.peer, function) {
            let refused = blobs
                .into_iter()
                .map(|(place, _)| (place, Err(error.clone())));
            calls.push(future::ready(refused.collect()).boxed());
            continue;
        }
        let size = |(_, blob): &(usize, D::Blob)| D::digest(blob).size();
        let (batches, alone) = packing::pack(blobs, size, capabilities.max_batch_bytes, LARGE);
        for blobs in batches {
            calls.push(batch::<D>(store, capabilities, blobs, function, again).boxed());
        }
        for (place, blob) in alone {
            let outcome = D::alone(store, capabilities, blob);
            calls.push(outcome.map(move |outcome| vec![(place, outcome)]).boxed());
        }
    }
    let calls = stream::iter(calls).buffer_unordered(store.peer.max_calls);
    calls.concat().boxed()
}

/// Transfers one batch. Blobs that fail for the moment are sent or requested again.
async fn batch<D: Direction>(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    mut blobs: Placed<D>,
    function: DigestFunction,
    again: bool,
) -> Outcomes<D> {
    let peer = &store.peer;
    let mut outcomes = Vec::with_capacity(blobs.len());
    let mut retry = peer.retry();
    let end = peer.end(bytes::<D>(&blobs));
    loop {
        let request = D::request(store, capabilities, &blobs, function);
        let bytes = bytes::<D>(&blobs);
        let limits = limits(blobs.len(), if D::UPLOADS { 0 } else { bytes });
        let mut call = D::METHOD.call(request, limits);
        call.bytes = bytes;
        let answer = match peer.call_until(&call, end, &mut retry).await {
            Ok(answer) => answer,
            Err(failure) => {
                outcomes.extend(refused::<D>(store, capabilities, blobs, failure, again).await);
                return outcomes;
            }
        };
        let mut entries: HashMap<Digest, D::Entry> = D::entries(answer)
            .filter_map(|(digest, entry)| {
                let digest = Digest::from_field(Some(function), digest.as_ref()).ok()?;
                Some((digest, entry))
            })
            .collect();
        let mut failed = Vec::new();
        for (place, blob) in blobs {
            let outcome = match entries.remove(&D::digest(&blob)) {
                Some(entry) => D::outcome(peer, &blob, entry),
                None => Err(Failure::Nonsense("its answer leaves it out".to_owned())),
            };
            match outcome {
                Ok(output) => outcomes.push((place, Ok(output))),
                Err(failure) => failed.push((place, blob, failure)),
            }
        }
        let is_retryable = |failed: &(usize, D::Blob, Failure)| failed.2.is_retryable();
        let retries = failed.iter().any(is_retryable) && retry.pause(Duration::MAX).await;
        blobs = Vec::new();
        for (place, blob, failure) in failed {
            if retries && failure.is_retryable() {
                blobs.push((place, blob));
                continue;
            }
            let error = D::own_error(&blob, &failure);
            let error =
                error.unwrap_or_else(|| peer.error_of(D::DOING, &[D::digest(&blob)], failure));
            outcomes.push((place, Err(error)));
        }
        if blobs.is_empty() {
            return outcomes;
        }
    }
}

/// Returns the outcomes of a batch that was refused as a whole: those of smaller or uncompressed batches
/// if these may pass, else errors.
async fn refused<D: Direction>(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    blobs: Placed<D>,
    failure: Failure,
    again: bool,
) -> Outcomes<D> {
    let own_errors = blobs.iter().map(|(_, blob)| D::own_error(blob, &failure));
    let own_errors: Vec<_> = own_errors.collect();
    if again
        && own_errors.iter().all(Option::is_none)
        && let Some((capabilities, again)) = corrected::<D>(store, capabilities, &blobs, &failure)
    {
        return split::<D>(store, &capabilities, blobs, again).await;
    }
    let digests: Vec<_> = blobs.iter().map(|(_, blob)| D::digest(blob)).collect();
    let error = store.peer.error_of(D::DOING, &digests, failure);
    let places = blobs.into_iter().map(|(place, _)| place);
    places
        .zip(own_errors)
        .map(|(place, own)| (place, Err(own.unwrap_or_else(|| error.clone()))))
        .collect()
}

/// Corrects what the peer is known to accept after it refused a batch: no compression, or smaller batches,
/// which is the last correction. `None` if neither explains the refusal.
fn corrected<D: Direction>(
    store: &RemoteStore,
    capabilities: &RemoteCapabilities,
    blobs: &Placed<D>,
    failure: &Failure,
) -> Option<(RemoteCapabilities, bool)> {
    let correct = |change: &dyn Fn(&mut RemoteCapabilities)| {
        let mut corrected = capabilities.clone();
        change(&mut corrected);
        store.known.correct(change);
        corrected
    };
    let compressed = D::UPLOADS && store.zstd && capabilities.zstd_batches;
    if compressed && failure.is_unknown_form() {
        return Some((correct(&|known| known.zstd_batches = false), true));
    }
    let half = (bytes::<D>(blobs) / 2).max(2 * SMALL);
    let smaller = |known: &mut RemoteCapabilities| {
        known.max_batch_bytes = known.max_batch_bytes.min(half);
    };
    (failure.is_too_large() && blobs.len() > 1).then(|| (correct(&smaller), false))
}

fn bytes<D: Direction>(blobs: &Placed<D>) -> u64 {
    blobs.iter().map(|(_, blob)| D::digest(blob).size()).sum()
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
