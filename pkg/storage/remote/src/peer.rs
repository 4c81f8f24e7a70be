//! Calls to a peer: how many at once, how long each may take, and the retries.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use gorego_limits::Permit;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{self, Instant},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::Status;

use super::{
    RemoteCapabilities, RemoteError, RemoteOptions,
    breaker::{Attempt, Breaker},
    canary::{self, Canary},
    capabilities::CapabilityCache,
    connect,
    failure::Failure,
    grpc::Link,
    methods::{Call, Request, capabilities},
    pool::Pool,
    retry::Retry,
};
use gorego_storage::{InstanceName, Result};

/// The least that a peer moves, in bytes a second: calls that move more have more time.
const MIN_TRANSFER_RATE: u64 = 1 << 20;
/// The ratio of a download's window to its counted part.
const COUNTED: u64 = 4;
/// The size from which blobs are worth compressing, in bytes.
pub(super) const WORTH_COMPRESSING: u64 = 1024;
/// The number of compressed downloads and uploads at a time. A download may take a window of 8 MiB.
const MAX_COMPRESSED: usize = 64;

/// The permits of a download or upload, the second for its window.
pub(super) type StreamPermits = (OwnedSemaphorePermit, Permit);

/// A peer, its connections and its limits.
pub(super) struct Peer {
    pub(super) options: RemoteOptions,
    pub(super) name: Arc<str>,
    pub(super) instance: InstanceName,
    pub(super) breaker: Arc<Breaker>,
    pub(super) known: CapabilityCache,
    pub(super) canary: Canary,
    pub(super) retries: Arc<AtomicU64>,
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// Limits compressed downloads and uploads, each of which takes memory.
    compressed: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop: DropGuard,
}

impl Peer {
    pub(super) fn new(options: &RemoteOptions) -> Result<Arc<Self>, RemoteError> {
        tokio::runtime::Handle::try_current().map_err(|_| RemoteError::NoRuntime)?;
        let options = RemoteOptions {
            max_calls: options.max_calls.clamp(1, Semaphore::MAX_PERMITS),
            ..options.clone()
        };
        let (canary, stop) = (Canary::default(), CancellationToken::new());
        let name: Arc<str> = options.address.to_string().into();
        let lost = Arc::clone(&canary.lost);
        let pool = Pool::new(connect::channels(&options, &lost)?);
        let peer = Arc::new(Self {
            breaker: Arc::new(Breaker::new(Arc::clone(&name), pool, options.breaker)),
            name,
            instance: InstanceName::parse(&options.instance_name)?,
            known: CapabilityCache::default(),
            retries: Arc::default(),
            canary,
            calls: Arc::new(Semaphore::new(options.max_calls)),
            streams: Arc::new(Semaphore::new(options.max_calls)),
            compressed: Arc::new(Semaphore::new(MAX_COMPRESSED)),
            options,
            tasks: TaskTracker::new(),
            _stop: stop.clone().drop_guard(),
            stop,
        });
        drop(peer.spawn(canary::watch(Arc::downgrade(&peer), lost)));
        Ok(peer)
    }

    pub(super) fn retry(&self) -> Retry {
        Retry::new(self.options.retries, Arc::clone(&self.retries))
    }

    /// Returns the time limit of a call that moves `bytes` bytes.
    pub(super) fn deadline(&self, bytes: u64) -> Duration {
        let transfer = Duration::from_secs(bytes / MIN_TRANSFER_RATE);
        self.options.timeout.saturating_add(transfer)
    }

    /// Spawns a task that ends with the store at the latest.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<Option<T>> {
        let stop = self.stop.clone();
        self.tasks.spawn(stop.run_until_cancelled_owned(task))
    }

    /// Leases a connection for one call, with the headers that it carries.
    fn link(&self, timeout: Option<Duration>) -> Result<Link, Failure> {
        let leased = self.breaker.pool.lease();
        let (channel, lease) = leased.ok_or_else(|| Status::internal("no connection"))?;
        Ok(Link {
            channel,
            headers: connect::headers(&self.options, timeout),
            lease,
        })
    }

    pub(super) async fn call<Q: Request>(&self, call: &Call<Q>) -> Result<Q::Answer, Failure> {
        self.call_until(call, &mut self.retry()).await
    }

    /// Makes a call until it succeeds, the retries of its operation are used up, or twice its time is over.
    pub(super) async fn call_until<Q: Request>(
        &self,
        call: &Call<Q>,
        retry: &mut Retry,
    ) -> Result<Q::Answer, Failure> {
        let Call(.., bytes) = call;
        let limit = self.deadline(*bytes);
        let end = Instant::now() + limit * 2;
        let left = || end.saturating_duration_since(Instant::now());
        // A call that had less than half its time would look like an outage.
        let spare = || left().saturating_sub(limit / 2);
        loop {
            if !retry.has_begun {
                self.breaker.check()?;
            }
            let permit = Arc::clone(&self.calls).acquire_owned();
            let permit = self::permit(limit.min(spare()), permit).await?;
            let attempt = self.admit(retry, spare()).await?;
            let failure = match self.attempt(attempt, call, limit.min(left())).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            drop(permit);
            if !failure.is_retryable() || !retry.pause(spare()).await {
                return Err(failure);
            }
        }
    }

    /// Admits a call. A retry waits up to `patience` for that.
    async fn admit(&self, retry: &Retry, patience: Duration) -> Result<Attempt, Failure> {
        let now = Instant::now();
        let end = if retry.has_begun { now + patience } else { now };
        self.breaker.admit(end).await
    }

    async fn attempt<Q: Request>(
        &self,
        mut attempt: Attempt,
        call: &Call<Q>,
        limit: Duration,
    ) -> Result<Q::Answer, Failure> {
        let started = Instant::now();
        let answer = time::timeout(limit, call.send(self.link(Some(limit))?)).await;
        let outcome = match answer {
            Ok(Ok(answer)) => Ok(answer),
            // The peer and the connection enforce the limit, too, and may be the first to do so.
            Ok(Err(failure)) if started.elapsed() < limit => Err(failure),
            Ok(Err(_)) | Err(_) => Err(Failure::TimedOut(limit)),
        };
        attempt.record(outcome.as_ref().err());
        outcome
    }

    /// Opens a connection for a stream, whose outcome may take long. If the breaker needs a probe, makes a short
    /// call before.
    pub(super) async fn open(&self, retry: &Retry) -> Result<(Link, Attempt), Failure> {
        loop {
            let attempt = self.admit(retry, self.options.timeout).await?;
            if !attempt.is_probe {
                return Ok((self.link(None)?, attempt));
            }
            let probe = capabilities("");
            if let Err(failure) = self.attempt(attempt, &probe, self.options.timeout).await
                && failure.is_outage()
            {
                return Err(failure);
            }
        }
    }

    /// Waits until another download or upload may start, and may have a window of `bytes` in flight, if it is a
    /// download. Counts a part of the window only, since it fills only while the reader is slower than the peer.
    pub(super) async fn stream_permits(&self, bytes: u64) -> Result<StreamPermits, Failure> {
        let patience = self.options.timeout;
        let stream = permit(patience, Arc::clone(&self.streams).acquire_owned()).await?;
        let window = bytes.min(u64::from(connect::STREAM_WINDOW));
        let window = self.options.windows.reserve(window / COUNTED);
        Ok((stream, permit(patience, window).await?))
    }

    /// Permits compression of a stream of `bytes` bytes if it is enabled, supported, worth it, and few
    /// other streams are compressed.
    pub(super) fn compress(
        &self,
        capabilities: &RemoteCapabilities,
        bytes: u64,
    ) -> Option<OwnedSemaphorePermit> {
        if !self.options.zstd || !capabilities.zstd_streams || bytes < WORTH_COMPRESSING {
            return None;
        }
        Arc::clone(&self.compressed).try_acquire_owned().ok()
    }
}

async fn permit<P, E>(
    patience: Duration,
    permit: impl Future<Output = Result<P, E>>,
) -> Result<P, Failure> {
    let permit = time::timeout(patience, permit).await.ok();
    permit
        .and_then(Result::ok)
        .ok_or_else(|| Failure::NotMade(format!("too many calls in progress for {patience:?}")))
}

#[cfg(test)]
mod tests {
    use super::{super::RemoteAddress, *};

    #[tokio::test]
    async fn a_call_that_moves_more_has_more_time() {
        let options = RemoteOptions {
            timeout: Duration::from_secs(5),
            ..RemoteOptions::new(RemoteAddress::Tcp("127.0.0.1:1".to_owned()))
        };
        let peer = Peer::new(&options).unwrap();
        for (bytes, seconds) in [(0, 5), (4 << 20, 9), (1 << 30, 5 + 1024)] {
            assert_eq!(peer.deadline(bytes), Duration::from_secs(seconds));
        }
        assert!(peer.deadline(u64::MAX) > Duration::from_hours(1));
    }
}
