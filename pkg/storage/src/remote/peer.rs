//! Calls to a peer: how many at once, how long, how often, and whether at all.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{self, Instant},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::{Response, Status, service::interceptor::InterceptedService};
use tracing::{info, warn};

use super::{
    BreakerState, RemoteError, RemoteOptions,
    breaker::{Admission, Breaker},
    connect::{self, Headers, Link},
    failure::{Backoff, Failure},
    pool::Pool,
};
use crate::{Error, Result};

/// What a peer moves at least, in bytes a second: calls that move more have more time.
const SLOWEST: u64 = 1 << 20;

/// A permit stands for this many bytes under way.
const UNIT: u64 = 64 << 10;
/// What all downloads together may have under way, in permits: 512 MiB.
const WINDOWS: usize = 8192;

/// A peer and what is known of it.
pub(super) struct Peer {
    name: Arc<str>,
    pool: Pool,
    headers: Headers,
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// What downloads may have under way, in permits of [`UNIT`] bytes.
    windows: Arc<Semaphore>,
    breaker: Mutex<Breaking>,
    state: watch::Sender<BreakerState>,
    /// Counts failures to reach the peer, after which it may be another one.
    outages: AtomicU64,
    timeout: Duration,
    retries: u32,
    max_calls: usize,
    /// Uploads, which may outlive the puts they are of by a little.
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop: DropGuard,
}

struct Breaking {
    breaker: Breaker,
    last_error: Arc<str>,
}

impl Peer {
    pub(super) fn new(options: &RemoteOptions) -> Result<Self, RemoteError> {
        tokio::runtime::Handle::try_current().map_err(|_| RemoteError::NoRuntime)?;
        let max_calls = options.max_calls.clamp(1, Semaphore::MAX_PERMITS);
        let stop = CancellationToken::new();
        Ok(Self {
            name: options.address.to_string().into(),
            pool: Pool::new(connect::channels(options)?),
            headers: Headers::parse(&options.headers)?,
            calls: Arc::new(Semaphore::new(max_calls)),
            streams: Arc::new(Semaphore::new(max_calls)),
            windows: Arc::new(Semaphore::new(WINDOWS)),
            breaker: Mutex::new(Breaking {
                breaker: Breaker::new(options.breaker),
                last_error: Arc::from(""),
            }),
            state: watch::channel(BreakerState::Closed).0,
            outages: AtomicU64::new(0),
            timeout: options.timeout,
            retries: options.retries,
            max_calls,
            tasks: TaskTracker::new(),
            _stop: stop.clone().drop_guard(),
            stop,
        })
    }

    pub(super) const fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) const fn max_calls(&self) -> usize {
        self.max_calls
    }

    pub(super) fn state(&self) -> watch::Receiver<BreakerState> {
        self.state.subscribe()
    }

    pub(super) fn outages(&self) -> u64 {
        self.outages.load(Ordering::Relaxed)
    }

    pub(super) const fn backoff(&self) -> Backoff {
        Backoff::new(self.retries)
    }

    /// As what the caller is told that `what` came to nothing.
    pub(super) fn error(&self, what: &dyn fmt::Display, failure: Failure) -> Error {
        failure.into_error(&self.name, what)
    }

    /// How long a call that moves this many bytes may take.
    pub(super) fn deadline(&self, bytes: u64) -> Duration {
        self.timeout
            .saturating_add(Duration::from_secs(bytes / SLOWEST))
    }

    /// Runs on its own, but not longer than the store.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<Option<T>> {
        let stop = self.stop.clone();
        self.tasks.spawn(stop.run_until_cancelled_owned(task))
    }

    /// A connection, for a call that ends after `timeout`; in use as long as that is kept.
    fn link(&self, timeout: Option<Duration>) -> Result<Link, Failure> {
        let taken = self.pool.take();
        let (channel, lease) =
            taken.ok_or_else(|| Failure::Nonsense("no connection".to_owned()))?;
        let headers = self.headers.of(lease, timeout);
        Ok(InterceptedService::new(channel, headers))
    }

    /// A call that moves up to `bytes`, tried until it succeeds or time is up.
    pub(super) async fn call<T, F>(
        &self,
        bytes: u64,
        attempt: impl Fn(Link) -> F + Send + Sync,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        self.call_within(&mut self.backoff(), bytes, attempt).await
    }

    /// The same as a part of something that is itself tried again, with the tries that it has left.
    pub(super) async fn call_within<T, F>(
        &self,
        backoff: &mut Backoff,
        bytes: u64,
        attempt: impl Fn(Link) -> F + Send + Sync,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let limit = self.deadline(bytes);
        let end = Instant::now() + limit * 2;
        loop {
            let permit = acquire(&self.calls, 1, limit).await?;
            let left = end.saturating_duration_since(Instant::now());
            let failure = match self.once(limit.min(left), &attempt).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            drop(permit);
            match backoff.after(&failure) {
                // Too little time would look like an outage.
                Some(delay) if Instant::now() + delay + limit / 2 < end => time::sleep(delay).await,
                _ => return Err(failure),
            }
        }
    }

    async fn once<T, F>(&self, limit: Duration, attempt: impl Fn(Link) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let tried = self.admit()?;
        let started = Instant::now();
        let answer = attempt(self.link(Some(limit))?);
        let outcome = match time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            // The peer and the connection watch the time, too, and may be the first to notice.
            Ok(Err(status)) if started.elapsed() < limit => Err(Failure::Status(status)),
            Ok(Err(_)) | Err(_) => Err(Failure::TimedOut(limit)),
        };
        tried.ended(outcome.as_ref().err());
        outcome
    }

    /// A connection for a stream, and leave to have it; without a time limit.
    pub(super) fn open(&self) -> Result<(Link, Attempt<'_>), Failure> {
        let attempt = self.admit()?;
        Ok((self.link(None)?, attempt))
    }

    /// A download that had begun then broke off.
    pub(super) fn broke_off(&self, began: Instant, failure: &Failure) {
        let attempt = Attempt {
            peer: self,
            began,
            admission: failure.is_outage().then_some(Admission::Pass),
        };
        attempt.ended(Some(failure));
    }

    /// Waits until another download or upload may start.
    pub(super) async fn stream_permit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        acquire(&self.streams, 1, self.timeout).await
    }

    /// Waits until a download of `bytes` may have a window's worth of them under way.
    pub(super) async fn window_permit(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Failure> {
        let window = bytes.min(u64::from(connect::STREAM_WINDOW));
        let permits = u32::try_from(window.div_ceil(UNIT)).unwrap_or(u32::MAX);
        acquire(&self.windows, permits, self.timeout).await
    }

    fn admit(&self) -> Result<Attempt<'_>, Failure> {
        let began = Instant::now();
        let (admission, cause) = self.change(|breaking| {
            let admission = breaking.breaker.admit(began);
            (admission, Arc::clone(&breaking.last_error))
        });
        if admission == Admission::Refuse {
            return Err(Failure::Open(cause));
        }
        Ok(Attempt {
            peer: self,
            began,
            admission: Some(admission),
        })
    }

    /// Changes the breaker, and tells of it.
    fn change<T>(&self, change: impl FnOnce(&mut Breaking) -> T) -> T {
        let mut breaking = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        let before = breaking.breaker.state();
        let outcome = change(&mut breaking);
        let after = breaking.breaker.state();
        if before != after {
            match after {
                BreakerState::Open if before == BreakerState::Closed => warn!(
                    peer = &*self.name,
                    error = &*breaking.last_error,
                    "the backing cache does not answer; it is left alone for a while"
                ),
                BreakerState::Closed => {
                    info!(peer = &*self.name, "the backing cache answers again");
                }
                BreakerState::Open | BreakerState::HalfOpen => {}
            }
            self.state.send_replace(after);
        }
        outcome
    }
}

async fn acquire(
    semaphore: &Arc<Semaphore>,
    permits: u32,
    patience: Duration,
) -> Result<OwnedSemaphorePermit, Failure> {
    match time::timeout(patience, Arc::clone(semaphore).acquire_many_owned(permits)).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(Failure::Busy(patience)),
    }
}

/// Leave to make one call. Says how it went, or was given up when dropped.
pub(super) struct Attempt<'a> {
    peer: &'a Peer,
    began: Instant,
    admission: Option<Admission>,
}

impl Attempt<'_> {
    /// How it went: `None` when the peer answered as it should.
    pub(super) fn ended(mut self, failure: Option<&Failure>) {
        let Some(admission) = self.admission.take() else {
            return;
        };
        match failure.filter(|failure| failure.is_outage()) {
            Some(failure) => {
                self.peer.outages.fetch_add(1, Ordering::Relaxed);
                self.peer.pool.rotate();
                let cause = failure.to_string();
                let now = Instant::now();
                // Each that waited in vain for all that time tells for itself.
                let alone = matches!(failure, Failure::TimedOut(_));
                let began = if alone { now } else { self.began };
                self.peer.change(|breaking| {
                    breaking.last_error = cause.into();
                    breaking.breaker.failed(admission, began, now);
                });
            }
            None => self
                .peer
                .change(|breaking| breaking.breaker.succeeded(admission)),
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(admission) = self.admission {
            self.peer
                .change(|breaking| breaking.breaker.abandoned(admission));
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("name", &self.name)
            .field("breaker", &*self.state.borrow())
            .finish_non_exhaustive()
    }
}
