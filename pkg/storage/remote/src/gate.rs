//! Who may call a peer, by its breaker, and who has to wait.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tracing::{info, warn};

use super::{
    BreakerOptions,
    breaker::{Admission, Breaker, Refusal, Since},
    failure::Failure,
    pool::Pool,
};
use gorego_storage::BreakerState;

/// A peer's breaker, and who is told of it.
pub(super) struct Gate {
    name: Arc<str>,
    breaking: Mutex<Breaking>,
    state: watch::Sender<BreakerState>,
    /// Counts the times after which the peer may be another server, or may have lost its blobs: failures
    /// to reach it, and losses of a blob that were noticed.
    outages: AtomicU64,
}

struct Breaking {
    breaker: Breaker,
    last_error: Arc<str>,
}

impl Gate {
    pub(super) fn new(name: Arc<str>, options: BreakerOptions) -> Self {
        Self {
            name,
            breaking: Mutex::new(Breaking {
                breaker: Breaker::new(options),
                last_error: Arc::from(""),
            }),
            state: watch::channel(BreakerState::Closed).0,
            outages: AtomicU64::new(0),
        }
    }

    pub(super) fn state(&self) -> watch::Receiver<BreakerState> {
        self.state.subscribe()
    }

    pub(super) fn outages(&self) -> u64 {
        self.outages.load(Relaxed)
    }

    pub(super) fn lost_blobs(&self) {
        self.outages.fetch_add(1, Relaxed);
    }

    /// Leave to call now, over a connection of `pool`.
    pub(super) fn admit<'a>(&'a self, pool: &'a Pool) -> Result<Attempt<'a>, Failure> {
        self.change(|breaking| {
            let admission = breaking.breaker.admit(Instant::now());
            if admission == Admission::Refuse {
                return Err(Failure::Open(Arc::clone(&breaking.last_error)));
            }
            Ok(Attempt {
                gate: self,
                pool,
                admission: Some(admission),
                since: breaking.breaker.since(),
            })
        })
    }

    /// Whether [`Self::admit`] would refuse, as things are, and how long at least.
    fn refusal(&self) -> Option<(Refusal, Failure)> {
        let breaking = self.lock();
        let refusal = breaking.breaker.refuses(Instant::now())?;
        Some((refusal, Failure::Open(Arc::clone(&breaking.last_error))))
    }

    /// Fails where a call would be refused.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.refusal().map_or(Ok(()), |(_, failure)| Err(failure))
    }

    /// Waits until a call might not be refused; not beyond `end`.
    pub(super) async fn opened(&self, end: Instant) -> Result<(), Failure> {
        let mut state = self.state();
        while let Some((refusal, failure)) = self.refusal() {
            let until = match refusal {
                Refusal::Until(until) => until.min(end),
                Refusal::Probing => end,
            };
            tokio::select! {
                _ = state.changed() => {}
                () = time::sleep_until(until) => {}
            }
            if Instant::now() >= end {
                return Err(failure);
            }
        }
        Ok(())
    }

    /// A download broke off that had begun at `since`.
    pub(super) fn broke_off(&self, pool: &Pool, since: Since, failure: &Failure) {
        if failure.is_outage() {
            self.failed(pool, Admission::Pass, since, failure);
        }
    }

    fn failed(&self, pool: &Pool, admission: Admission, since: Since, failure: &Failure) {
        let silent = matches!(failure, Failure::TimedOut(_));
        pool.rotate();
        let cause = failure.to_string();
        self.change(|breaking| {
            breaking.last_error = cause.into();
            let was_open = breaking.breaker.state() == BreakerState::Open;
            let now = Instant::now();
            breaking.breaker.failed(admission, since, silent, now);
            let opens = !was_open && breaking.breaker.state() == BreakerState::Open;
            // A peer that says nothing was not replaced by another one, unless that goes on.
            if !failure.asks_to_slow_down() && (opens || !silent) {
                self.outages.fetch_add(1, Relaxed);
            }
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Breaking> {
        self.breaking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the breaker, and tells of it.
    fn change<T>(&self, change: impl FnOnce(&mut Breaking) -> T) -> T {
        let mut breaking = self.lock();
        let before = breaking.breaker.state();
        let outcome = change(&mut breaking);
        let after = breaking.breaker.state();
        if before != after {
            match after {
                BreakerState::Open if before == BreakerState::Closed => warn!(
                    peer = &*self.name,
                    error = &*breaking.last_error,
                    "calls to the backing cache fail; they are suspended for a while"
                ),
                BreakerState::Closed => {
                    info!(
                        peer = &*self.name,
                        "calls to the backing cache succeed again"
                    );
                }
                BreakerState::Open | BreakerState::HalfOpen => {}
            }
            self.state.send_replace(after);
        }
        outcome
    }
}

/// Leave to make one call. Says how it went, or was given up when dropped.
pub(super) struct Attempt<'a> {
    gate: &'a Gate,
    pool: &'a Pool,
    admission: Option<Admission>,
    since: Since,
}

impl Attempt<'_> {
    /// Whether all others wait for how this one fares.
    pub(super) fn decides(&self) -> bool {
        self.admission == Some(Admission::Probe)
    }

    /// How it went: `None` when the peer answered as it should. What is to be held against the peer
    /// should it break off later begins there.
    pub(super) fn ended(mut self, failure: Option<&Failure>) -> Since {
        let gate = self.gate;
        if let Some(admission) = self.admission.take() {
            match failure.filter(|failure| failure.is_outage()) {
                Some(failure) => gate.failed(self.pool, admission, self.since, failure),
                None => gate.change(|breaking| breaking.breaker.succeeded(admission)),
            }
        }
        self.since.answered(gate.lock().breaker.since())
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(admission) = self.admission {
            self.gate
                .change(|breaking| breaking.breaker.abandoned(admission));
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gate").field(&*self.state.borrow()).finish()
    }
}
