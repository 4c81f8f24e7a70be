//! Decorators that count what passes through a store.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use gorego_limits::Budget;
use gorego_storage::{
    ActionCache, Blob, BlobStore, BlobStream, CachedResult, Chunks, Digest, DigestFunction,
    Lookups, Put, Result, Traffic,
};
use reapi::v2::ActionResult;
use tokio::time::Instant;

use crate::{Call, durations::TracedSeconds};

/// The upper bounds of the buckets of durations, in seconds.
const BOUNDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// The operations of a backing cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    FindMissing,
    Read,
    ReadBatch,
    Write,
    WriteBatch,
    GetResult,
    PutResult,
}

impl Operation {
    /// All operations with their labels, in the order of the variants.
    pub(crate) const ALL: [(Self, &str); 7] = [
        (Self::FindMissing, "find_missing"),
        (Self::Read, "read"),
        (Self::ReadBatch, "read_batch"),
        (Self::Write, "write"),
        (Self::WriteBatch, "write_batch"),
        (Self::GetResult, "get_result"),
        (Self::PutResult, "put_result"),
    ];
}

/// Counts and durations of one operation.
#[derive(Debug)]
pub(crate) struct OperationCounts {
    pub(crate) ok: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) seconds: TracedSeconds,
}

impl Default for OperationCounts {
    fn default() -> Self {
        Self {
            ok: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            seconds: TracedSeconds::new(BOUNDS),
        }
    }
}

/// The calls of a backing cache, with their retries as one. A call of a batch failed if one of its blobs did.
/// Misses are no failures.
#[derive(Debug, Default)]
pub struct BackingCalls([OperationCounts; Operation::ALL.len()]);

impl BackingCalls {
    pub(crate) fn of(&self, operation: Operation) -> Option<&OperationCounts> {
        self.0.get(operation as usize)
    }
}

/// The counts that a [`Metered`] store keeps.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// The counts of the store's tier.
    pub traffic: Arc<Traffic>,
    /// The counts of another tier that answers every lookup: the lookups count in both.
    pub answering: Option<Arc<Traffic>>,
    /// The counts of the calls, if the store is the backing cache.
    pub calls: Option<Arc<BackingCalls>>,
}

impl Counts {
    fn tiers(&self) -> impl Iterator<Item = &Arc<Traffic>> {
        [&self.traffic].into_iter().chain(&self.answering)
    }

    /// Counts a lookup of `digest`. A client's lookup may be several tries in the backing cache.
    fn count<T>(&self, of: impl Fn(&Traffic) -> &Lookups, digest: &Digest, found: &Result<T>) {
        for tier in self.tiers() {
            if self.calls.is_some() {
                of(tier).record_try(digest, found, found);
            } else {
                of(tier).record(found);
            }
        }
    }

    fn blob<T>(&self, digest: &Digest, found: &Result<T>) {
        self.count(|tier| &tier.blobs, digest, found);
    }

    /// Begins a call; one that is measured if the store is the backing cache.
    fn begin(&self, operation: Operation) -> Timer<'_> {
        let counts = self.calls.as_ref().and_then(|calls| calls.of(operation));
        Timer(counts.map(|counts| (counts, Instant::now())))
    }
}

/// A call in progress, if it is measured.
struct Timer<'a>(Option<(&'a OperationCounts, Instant)>);

impl Timer<'_> {
    fn ended(self, has_failed: impl FnOnce() -> bool) {
        let Some((counts, started)) = self.0 else {
            return;
        };
        let trace = Call::current().and_then(|call| call.trace_id());
        counts.seconds.observe(started.elapsed(), trace);
        let total = if has_failed() {
            &counts.errors
        } else {
            &counts.ok
        };
        total.fetch_add(1, Relaxed);
    }
}

/// A store whose traffic is counted. Everything passes unchanged, so that content in memory and in files stays
/// there.
pub struct Metered<S: ?Sized> {
    inner: Arc<S>,
    counts: Counts,
}

impl<S: ?Sized> Metered<S> {
    /// Wraps `inner`.
    pub const fn new(inner: Arc<S>, counts: Counts) -> Self {
        Self { inner, counts }
    }
}

impl<S: fmt::Debug + ?Sized> fmt::Debug for Metered<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Metered").field(&&*self.inner).finish()
    }
}

#[async_trait]
impl<S: BlobStore + ?Sized> BlobStore for Metered<S> {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let timer = self.counts.begin(Operation::FindMissing);
        let found = self.inner.find_missing(digests).await;
        timer.ended(|| failed(&found));
        if let Ok(missing) = &found {
            // As in `count`: a blob that is missing under the first of two digest functions is looked up again.
            let repeats =
                |digest: &&Digest| self.counts.calls.is_some() && digest.other().is_some();
            let repeated = missing.iter().filter(repeats).count();
            let traffic = &self.counts.traffic;
            traffic.add_presence(digests.len() - repeated, missing.len() - repeated);
        }
        found
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        let timer = self.counts.begin(Operation::Read);
        let found = self.inner.get(digest, offset).await;
        timer.ended(|| failed(&found));
        self.counts.blob(digest, &found);
        Ok(counted_read(found?, &self.counts.traffic))
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        let traffic = &self.counts.traffic;
        let whole = match &blob {
            Blob::Bytes(content) => content.len() as u64,
            Blob::File(file) => file.len,
            Blob::Stream(_) => 0,
        };
        let blob = match blob {
            Blob::Stream(stream) => Blob::Stream(BlobStream {
                chunks: counted(stream.chunks, traffic, Traffic::add_written),
                ..stream
            }),
            whole => whole,
        };
        let timer = self.counts.begin(Operation::Write);
        let put = self.inner.put(digest, blob).await;
        timer.ended(|| failed(&put));
        if matches!(put, Ok(Put::Stored)) {
            traffic.add_written(whole);
        }
        put
    }

    async fn digest_functions(&self) -> Vec<DigestFunction> {
        self.inner.digest_functions().await
    }

    fn outages(&self) -> u64 {
        self.inner.outages()
    }

    /// Counts only what cannot be read: the caller reads the rest with [`Self::get_batch`].
    async fn fetch_batch(&self, digests: &[Digest]) -> Vec<Result<Digest>> {
        let fetched = self.inner.fetch_batch(digests).await;
        let failures = digests.iter().zip(&fetched);
        for (digest, found) in failures.filter(|(_, found)| found.is_err()) {
            self.counts.blob(digest, found);
        }
        fetched
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        let timer = self.counts.begin(Operation::ReadBatch);
        let read = self.inner.get_batch(digests).await;
        timer.ended(|| any_failed(&read));
        let mut bytes = 0;
        for (digest, found) in digests.iter().zip(&read) {
            self.counts.blob(digest, found);
            bytes += found.as_ref().map_or(0, |content| content.len() as u64);
        }
        self.counts.traffic.add_read(bytes);
        read
    }

    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        let sizes: Vec<u64> = blobs.iter().map(|(digest, _)| digest.size()).collect();
        let timer = self.counts.begin(Operation::WriteBatch);
        let put = self.inner.put_batch(blobs).await;
        timer.ended(|| any_failed(&put));
        let stored = put.iter().zip(sizes);
        let stored = stored.filter(|(put, _)| matches!(put, Ok(Put::Stored)));
        let bytes = stored.map(|(_, size)| size).sum();
        self.counts.traffic.add_written(bytes);
        put
    }
}

#[async_trait]
impl<A: ActionCache + ?Sized> ActionCache for Metered<A> {
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        let timer = self.counts.begin(Operation::GetResult);
        let found = self.inner.get(instance, action, memory).await;
        timer.ended(|| failed(&found));
        self.counts.count(|tier| &tier.results, action, &found);
        found
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let timer = self.counts.begin(Operation::PutResult);
        let put = self.inner.put(instance, action, result).await;
        timer.ended(|| failed(&put));
        put
    }
}

fn failed<T>(answer: &Result<T>) -> bool {
    answer.as_ref().is_err_and(|error| !error.is_miss())
}

fn any_failed<T>(answers: &[Result<T>]) -> bool {
    answers.iter().any(failed)
}

/// Returns the same content, counted as it is read.
fn counted_read(blob: Blob, traffic: &Arc<Traffic>) -> Blob {
    match blob {
        Blob::Bytes(content) => {
            traffic.add_read(content.len() as u64);
            Blob::Bytes(content)
        }
        Blob::File(mut file) => {
            file.guard = Some(traffic.guard(file.guard.take()));
            Blob::File(file)
        }
        Blob::Stream(stream) => Blob::Stream(BlobStream {
            chunks: counted(stream.chunks, traffic, Traffic::add_read),
            ..stream
        }),
    }
}

fn counted(chunks: Chunks, traffic: &Arc<Traffic>, add: fn(&Traffic, u64)) -> Chunks {
    let traffic = Arc::clone(traffic);
    let count = move |chunk: &Result<Bytes>| {
        if let Ok(chunk) = chunk {
            add(&traffic, chunk.len() as u64);
        }
    };
    chunks.inspect(count).boxed()
}

#[cfg(test)]
mod tests;
