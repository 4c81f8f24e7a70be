//! The store of both tiers: what it is made of, and reading from it.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future;
use gorego_limits::Call;
use gorego_storage::{
    Blob, BlobStore, CHUNK_SIZE, Digest, DigestFunction, Error, Evictable as _, Put, Result,
    UploadId, Uploads,
};
use gorego_storage_local::LocalStore;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    existence::{Epoch, Existence},
    fetch::{Fetches, Joined},
    flow::{Flow, Waiter},
    memory::Memory,
    outbox::{Outbox, upload},
    prefetch::{self, Wanted},
    push::Pushes,
};

/// How the two tiers work together.
#[derive(Clone, Debug)]
pub struct Options {
    /// For how long the backing cache's word that it has a blob is believed.
    pub existence_ttl: Duration,
    /// Whether nothing is written to the backing cache.
    pub read_only: bool,
    /// Whether the outputs of a result are fetched as soon as it is a hit.
    pub prefetch: bool,
    /// What happens while the backing cache is down.
    pub on_outage: OnOutage,
    /// How long a pending write is retried while the backing cache accepts others.
    pub outbox_retry: Duration,
    /// Budgets for the memory that clients can make the proxy hold.
    pub memory: Memory,
}

/// What happens while the backing cache is down. What is here is served in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOutage {
    /// Misses and writes fail.
    Fail,
    /// Misses are misses, and writes are pending in the outbox.
    Degrade,
}

/// The backing cache.
#[derive(Clone, Debug)]
pub struct Backing {
    /// Its blobs; it verifies what it gives as a whole.
    pub blobs: Arc<dyn BlobStore>,
    /// Its action results.
    pub actions: Arc<dyn gorego_storage::ActionCache>,
}

/// Blobs of two tiers. What is read is fetched once and kept locally; what is written is in the
/// backing cache before anybody hears that it is stored, or sees it here.
#[derive(Clone)]
pub struct ProxyStore {
    pub(crate) tiers: Arc<Tiers>,
}

/// What all parts of the proxy share.
pub(crate) struct Tiers {
    pub(crate) local: Arc<LocalStore>,
    pub(crate) backing: Arc<dyn BlobStore>,
    pub(crate) actions: Arc<dyn gorego_storage::ActionCache>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) options: Options,
    pub(crate) existence: Existence,
    pub(crate) fetches: Fetches,
    pub(crate) pushes: Pushes,
    /// When a client was last told that something is there which may be only here.
    pub(crate) promised: Mutex<Option<Instant>>,
    /// Where outputs of results are fetched before anybody asks for them.
    pub(crate) wanted: Option<Wanted>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl ProxyStore {
    /// Puts `local` in front of `backing`, and uploads the writes that are pending in `outbox`. Call
    /// within a Tokio runtime.
    pub fn new(
        local: Arc<LocalStore>,
        backing: Backing,
        outbox: Arc<Outbox>,
        options: Options,
    ) -> Self {
        let existence = Existence::new(options.existence_ttl, Arc::clone(&backing.blobs));
        let capacity = local.usage().limit;
        let (wanted, queue) = options.prefetch.then(|| Wanted::new(capacity)).unzip();
        let fetches = Fetches::new(options.memory.pieces.clone());
        let tiers = Tiers {
            local,
            backing: backing.blobs,
            actions: backing.actions,
            outbox,
            options,
            existence,
            fetches,
            pushes: Pushes::default(),
            promised: Mutex::default(),
            wanted,
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
        };
        let tiers = Arc::new(tiers);
        if let Some(queue) = queue {
            tiers.spawn(prefetch::run(Arc::clone(&tiers), queue));
        }
        if !tiers.options.read_only {
            tiers.spawn(upload::run(Arc::clone(&tiers)));
        }
        Self { tiers }
    }

    /// Ends what goes on in the background: fetches and uploads that others wait for fail.
    pub async fn close(&self) {
        self.tiers.cancel.cancel();
        self.tiers.tracker.close();
        self.tiers.tracker.wait().await;
    }
}

impl Tiers {
    /// Runs work that nobody waits for, until the store is closed.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        // It goes on when the call ends, but waits its turn among those of the same connection.
        let call = Call::current().detached();
        self.tracker.spawn(call.scope(async move {
            cancel.run_until_cancelled(work).await;
        }));
    }

    /// Carries out to the end what must not be left half done when the caller goes away: the write of a
    /// blob or of an action's result.
    pub(crate) async fn see_through<T: Send + 'static>(
        &self,
        digest: Digest,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let cut_off = |error| Error::Unavailable(format!("writing {digest} was cut off: {error}"));
        let work = Call::current().scope(work);
        self.tracker.spawn(work).await.map_err(cut_off)?
    }

    /// The backing cache has taken these blobs, of which there is one at least, since `epoch`.
    pub(crate) fn took<'a>(&self, epoch: Epoch, digests: impl IntoIterator<Item = &'a Digest>) {
        self.existence.insert(epoch, digests);
        self.outbox.accepted();
    }

    /// Whether an error of the backing cache is one to do without it for.
    pub(crate) fn degrades(&self, error: &Error) -> bool {
        self.options.on_outage == OnOutage::Degrade && matches!(error, Error::Unavailable(_))
    }

    /// A miss instead of an error, where the backing cache is to be done without.
    fn or_missing<T>(&self, digest: &Digest, found: Result<T>) -> Result<T> {
        found.map_err(|error| {
            if self.degrades(&error) {
                Error::NotFound(*digest)
            } else {
                error
            }
        })
    }

    /// What is here, or what the local store's error is worth in view of the other tier.
    fn locally<T>(digest: &Digest, found: Result<T>) -> Option<Result<T>> {
        match found {
            Err(Error::NotFound(_)) => None,
            Err(error @ Error::Io { .. }) => {
                tracing::warn!(%digest, %error, "reading from the backing cache instead");
                None
            }
            found => Some(found),
        }
    }

    pub(crate) async fn get(self: &Arc<Self>, digest: &Digest, offset: u64) -> Result<Blob> {
        let found = self.local.get(digest, offset).await;
        if let Some(found) = Self::locally(digest, found) {
            return found;
        }
        if offset > digest.size() {
            // There is nothing to fetch for this.
            let digest = *digest;
            return Err(Error::OffsetPastEnd { digest, offset });
        }
        if digest.size() <= CHUNK_SIZE as u64 {
            let content = self.fetch_whole(digest).await;
            let mut content = self.or_missing(digest, content)?;
            let at = usize::try_from(offset).unwrap_or(usize::MAX);
            return Ok(Blob::Bytes(content.split_off(at.min(content.len()))));
        }
        let joined = self.fetches.join(digest, |flow| flow.read(offset));
        let Some((joined, blob)) = joined else {
            return Err(Error::NotFound(*digest));
        };
        let started = self.run(joined).started().await;
        self.or_missing(digest, started)?;
        Ok(blob)
    }

    /// The fetch that was joined, under way.
    pub(crate) fn run(self: &Arc<Self>, joined: Joined) -> Arc<Flow> {
        match joined {
            Joined::Running(flow) => flow,
            Joined::New(flow) => {
                self.start(Arc::clone(&flow));
                flow
            }
        }
    }

    async fn fetch_whole(self: &Arc<Self>, digest: &Digest) -> Result<Bytes> {
        let Some((joined, blob)) = self.fetches.join(digest, |flow| flow.read(0)) else {
            return Err(Error::NotFound(*digest));
        };
        self.run(joined);
        blob.into_bytes().await
    }

    /// Fetches blobs that the local tier lacks and stores them there. A blob that cannot be stored is
    /// fetched again when read.
    async fn bring(self: &Arc<Self>, digests: &[Digest]) -> Vec<Result<Digest>> {
        let here = self.local.fetch_batch(digests).await;
        let wait = |flow: &Arc<Flow>| Some((*flow.digest(), Waiter::new(Arc::clone(flow))));
        let end = |(digest, waiter): (Digest, Waiter)| async move {
            waiter.verified().await.map(|()| digest)
        };
        self.join_all(digests, here, wait, end).await
    }

    pub(crate) async fn get_batch(self: &Arc<Self>, digests: &[Digest]) -> Vec<Result<Bytes>> {
        let here = self.local.get_batch(digests).await;
        let read = |flow: &Arc<Flow>| flow.read(0);
        self.join_all(digests, here, read, Blob::into_bytes).await
    }

    /// Replaces what `here` lacks by the outcomes of fetches: `join` joins one, and `end` waits for it.
    async fn join_all<T, J, F: Future<Output = Result<T>>>(
        self: &Arc<Self>,
        digests: &[Digest],
        here: Vec<Result<T>>,
        join: impl Fn(&Arc<Flow>) -> Option<J>,
        end: impl Fn(J) -> F,
    ) -> Vec<Result<T>> {
        let here = here.into_iter().zip(digests);
        let mut found: Vec<Option<Result<T>>> = here
            .map(|(found, digest)| Self::locally(digest, found))
            .collect();
        let mut fetches = Vec::new();
        let mut new = Vec::new();
        for (place, digest) in found.iter_mut().zip(digests) {
            if place.is_some() {
                continue;
            }
            let Some((joined, joint)) = self.fetches.join(digest, &join) else {
                continue;
            };
            if let Joined::New(flow) = joined {
                new.push(flow);
            }
            let ended = end(joint);
            fetches.push(async move {
                *place = Some(self.or_missing(digest, ended.await));
            });
        }
        if !new.is_empty() {
            self.start_batch(new);
        }
        // All at once: nobody waits for a reader that stands still.
        future::join_all(fetches).await;
        let missing = |(found, digest): (Option<Result<T>>, &Digest)| {
            found.unwrap_or(Err(Error::NotFound(*digest)))
        };
        found.into_iter().zip(digests).map(missing).collect()
    }
}

#[async_trait]
impl BlobStore for ProxyStore {
    /// Those of the backing cache, which is asked for whatever is not here.
    async fn digest_functions(&self) -> Vec<DigestFunction> {
        self.tiers.backing.digest_functions().await
    }

    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        self.tiers.find_missing(digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        self.tiers.get(digest, offset).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        self.tiers.put(digest, blob).await
    }

    async fn fetch_batch(&self, digests: &[Digest]) -> Vec<Result<Digest>> {
        self.tiers.bring(digests).await
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        self.tiers.get_batch(digests).await
    }

    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        self.tiers.put_batch(blobs).await
    }
}

#[async_trait]
impl Uploads for ProxyStore {
    async fn committed(&self, digest: &Digest, upload: &UploadId) -> Result<u64> {
        self.tiers.local.committed(digest, upload).await
    }
}

impl fmt::Debug for ProxyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyStore")
            .field("local", &self.tiers.local)
            .field("backing", &self.tiers.backing)
            .finish_non_exhaustive()
    }
}
