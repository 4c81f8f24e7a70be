//! Calls to a peer: how many at once, how long, how often, and whether at all.

use std::{fmt, sync::Arc, time::Duration};

use gorego_limits::{Budget, Permit};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{self, Instant},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::{Response, Status, service::interceptor::InterceptedService};

use super::{
    RemoteError, RemoteHeaders, RemoteOptions,
    answers::Answers,
    breaker::Since,
    capabilities,
    connect::{self, Headers, Link},
    failure::{Backoff, Failure},
    foreign::Foreign,
    gate::{Attempt, Gate},
    pool::Pool,
};
use gorego_storage::{BreakerState, Chain, Digest, Error, Result};

/// What a peer moves at least, in bytes a second: calls that move more have more time.
const SLOWEST: u64 = 1 << 20;

/// One in so many bytes of a download's window is counted.
const COUNTED: u64 = 4;

/// A peer and what is known of it.
pub(super) struct Peer {
    name: Arc<str>,
    pool: Pool,
    /// Notified when a connection ends.
    lost: Arc<Notify>,
    foreign: Arc<Foreign>,
    headers: watch::Receiver<RemoteHeaders>,
    chain: Arc<Chain>,
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    /// The budget of downloads' receive windows.
    windows: Budget,
    gate: Gate,
    timeout: Duration,
    retries: u32,
    max_calls: usize,
    /// Uploads, which may outlive the puts they are of by a little.
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop: DropGuard,
}

/// What a call is to its caller, which tells what becomes of it while the breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The first one: fails at once.
    First,
    /// One more after others, which should not have been in vain: waits for the cool-down to end.
    Again,
}

impl Peer {
    pub(super) fn new(options: &RemoteOptions) -> Result<Self, RemoteError> {
        tokio::runtime::Handle::try_current().map_err(|_| RemoteError::NoRuntime)?;
        let max_calls = options.max_calls.clamp(1, Semaphore::MAX_PERMITS);
        let stop = CancellationToken::new();
        let name: Arc<str> = options.address.to_string().into();
        let lost = Arc::<Notify>::default();
        Ok(Self {
            gate: Gate::new(Arc::clone(&name), options.breaker),
            foreign: Foreign::new(Arc::clone(&name)),
            name,
            pool: Pool::new(connect::channels(options, &lost)?),
            lost,
            headers: options.headers.clone(),
            chain: Arc::clone(&options.chain),
            calls: Arc::new(Semaphore::new(max_calls)),
            streams: Arc::new(Semaphore::new(max_calls)),
            windows: options.windows.clone(),
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
        self.gate.state()
    }

    pub(super) fn outages(&self) -> u64 {
        self.gate.outages()
    }

    pub(super) const fn lost(&self) -> &Arc<Notify> {
        &self.lost
    }

    /// The peer turned out to lack a blob that it had.
    pub(super) fn lost_blobs(&self) {
        self.gate.lost_blobs();
    }

    pub(super) const fn backoff(&self) -> Backoff {
        Backoff::new(self.retries)
    }

    /// As what the caller is told that `what` came to nothing.
    pub(super) fn error(&self, what: &dyn fmt::Display, failure: Failure) -> Error {
        failure.into_error(&self.name, what)
    }

    /// The same of something done with several blobs at once; a single one is named.
    pub(super) fn error_of(&self, doing: &str, blobs: &[Digest], failure: Failure) -> Error {
        match blobs {
            [one] => self.error(&format_args!("{doing} {one}"), failure),
            many => self.error(&format_args!("{doing} {} blobs", many.len()), failure),
        }
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
        let headers = Headers::new(self.headers.borrow().clone(), lease, &self.chain, timeout);
        let foreign = Arc::clone(&self.foreign);
        Ok(InterceptedService::new(
            Answers { channel, foreign },
            headers,
        ))
    }

    /// When what is asked of a store has to be done that moves `bytes`, however often it is tried.
    pub(super) fn end(&self, bytes: u64) -> Instant {
        Instant::now() + self.deadline(bytes) * 2
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
        let end = self.end(bytes);
        self.call_until(end, Turn::First, bytes, attempt).await
    }

    /// As [`Self::call`], for what has to be done by `end`.
    pub(super) async fn call_until<T, F>(
        &self,
        end: Instant,
        mut turn: Turn,
        bytes: u64,
        attempt: impl Fn(Link) -> F + Send + Sync,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let limit = self.deadline(bytes);
        let left = || end.saturating_duration_since(Instant::now());
        // A call that had less than half its time would look like an outage.
        let spare = || left().saturating_sub(limit / 2);
        let mut backoff = self.backoff();
        loop {
            if turn == Turn::Again {
                self.gate.opened(Instant::now() + spare()).await?;
            }
            let permit = acquire(&self.calls, 1, limit.min(spare())).await?;
            let failure = match self.once(limit.min(left()), &attempt).await {
                Ok(answer) => return Ok(answer),
                // Another one was faster.
                Err(Failure::Open(_)) if turn == Turn::Again => continue,
                Err(failure) => failure,
            };
            drop(permit);
            if !failure.is_retryable() {
                return Err(failure);
            }
            match backoff.next_delay() {
                Some(delay) if delay < spare() => time::sleep(delay).await,
                _ => return Err(failure),
            }
            turn = Turn::Again;
        }
    }

    /// A call that is tried once.
    pub(super) async fn once<T, F>(
        &self,
        limit: Duration,
        attempt: impl Fn(Link) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let tried = self.gate.admit(&self.pool)?;
        let started = Instant::now();
        let answer = attempt(self.link(Some(limit))?);
        let outcome = match time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            // The peer and the connection watch the time, too, and may be the first to notice.
            Ok(Err(status)) if started.elapsed() < limit => Err(status.into()),
            Ok(Err(_)) | Err(_) => Err(Failure::TimedOut(limit)),
        };
        tried.ended(outcome.as_ref().err());
        outcome
    }

    /// A connection for a stream, and leave to have it; without a time limit.
    pub(super) async fn open(&self, turn: Turn) -> Result<(Link, Attempt<'_>), Failure> {
        let end = Instant::now() + self.timeout;
        loop {
            if turn == Turn::Again {
                self.gate.opened(end).await?;
            }
            match self.gate.admit(&self.pool) {
                Ok(attempt) => return Ok((self.link(None)?, attempt)),
                // Another one was faster.
                Err(Failure::Open(_)) if turn == Turn::Again => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    /// As [`Self::open`], for a stream of which only the end tells how it fares. Where all others wait
    /// for that, a short call goes before it.
    pub(super) async fn open_long(&self, turn: Turn) -> Result<(Link, Attempt<'_>), Failure> {
        loop {
            let (link, attempt) = self.open(turn).await?;
            if !attempt.decides() {
                return Ok((link, attempt));
            }
            let answer = match time::timeout(self.timeout, capabilities::probe(link)).await {
                Ok(answer) => answer.map_err(Failure::from),
                Err(_) => Err(Failure::TimedOut(self.timeout)),
            };
            attempt.ended(answer.as_ref().err());
            if let Err(failure) = answer
                && failure.is_outage()
            {
                return Err(failure);
            }
        }
    }

    /// Fails where a call would fail at once.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.gate.check()
    }

    /// A download broke off that had begun at `since`.
    pub(super) fn broke_off(&self, since: Since, failure: &Failure) {
        self.gate.broke_off(&self.pool, since, failure);
    }

    /// Waits until another download or upload may start.
    pub(super) async fn stream_permit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        acquire(&self.streams, 1, self.timeout).await
    }

    /// Waits until a download of `bytes` may have a window's worth of them in flight. Only a part
    /// of the window is counted, since it fills only while the reader is slower than the peer.
    pub(super) async fn window_permit(&self, bytes: u64) -> Result<Permit, Failure> {
        let window = bytes.min(u64::from(connect::STREAM_WINDOW));
        let reserve = self.windows.reserve(window / COUNTED);
        match time::timeout(self.timeout, reserve).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Failure::Busy(self.timeout)),
        }
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

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("name", &self.name)
            .field("gate", &self.gate)
            .finish_non_exhaustive()
    }
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
