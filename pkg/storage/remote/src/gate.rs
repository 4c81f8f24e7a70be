//! The gate before a peer: its breaker admits calls, and is told how they end.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
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

/// A peer's connections and the breaker that guards them.
pub(super) struct Gate {
    peer: Arc<str>,
    pub(super) pool: Pool,
    breaking: Mutex<Breaking>,
    pub(super) state: watch::Sender<BreakerState>,
    /// Counts the times after which the peer may be another server, or may have lost its blobs: failures
    /// to reach it, and losses of a blob that were noticed.
    outages: AtomicU64,
}

struct Breaking {
    breaker: Breaker,
    last_error: Arc<str>,
}

impl Gate {
    pub(super) fn new(peer: Arc<str>, pool: Pool, options: BreakerOptions) -> Self {
        Self {
            peer,
            pool,
            breaking: Mutex::new(Breaking {
                breaker: Breaker::new(options),
                last_error: Arc::from(""),
            }),
            state: watch::channel(BreakerState::Closed).0,
            outages: AtomicU64::new(0),
        }
    }

    pub(super) fn outages(&self) -> u64 {
        self.outages.load(Relaxed)
    }

    /// Records that the peer lacks a blob that it had.
    pub(super) fn lost_blobs(&self) {
        self.outages.fetch_add(1, Relaxed);
    }

    /// Admits a call now, or fails.
    pub(super) fn admit(&self) -> Result<Attempt<'_>, Failure> {
        self.change(|breaking| match breaking.breaker.admit(Instant::now()) {
            Ok(admission) => Ok(Attempt {
                gate: self,
                admission: Some(admission),
                since: breaking.breaker.since(),
            }),
            Err(_) => Err(Failure::Open(Arc::clone(&breaking.last_error))),
        })
    }

    fn refusal(&self) -> Option<(Refusal, Failure)> {
        let breaking = self.lock();
        let refusal = breaking.breaker.refuses(Instant::now())?;
        Some((refusal, Failure::Open(Arc::clone(&breaking.last_error))))
    }

    /// Fails where a call would be refused.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.refusal().map_or(Ok(()), |(_, failure)| Err(failure))
    }

    /// Waits until a call might be admitted, but not beyond `end`.
    pub(super) async fn opened(&self, end: Instant) -> Result<(), Failure> {
        let mut state = self.state.subscribe();
        while let Some((refusal, failure)) = self.refusal() {
            let until = refusal.map_or(end, |until| until.min(end));
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

    /// Records that a call that was answered at `since` broke off later.
    pub(super) fn broke_off(&self, since: Since, failure: &Failure) {
        if failure.is_outage() {
            self.failed(Admission::Pass, since, failure);
        }
    }

    fn failed(&self, admission: Admission, since: Since, failure: &Failure) {
        let silent = matches!(failure, Failure::TimedOut(_));
        self.pool.rotate();
        self.change(|breaking| {
            breaking.last_error = failure.to_string().into();
            let was_open = breaking.breaker.state() == BreakerState::Open;
            let now = Instant::now();
            breaking.breaker.failed(admission, since, silent, now);
            let opens = !was_open && breaking.breaker.state() == BreakerState::Open;
            // A silent peer was not replaced by another one, unless the silence lasts.
            if !failure.asks_to_slow_down() && (opens || !silent) {
                self.outages.fetch_add(1, Relaxed);
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Breaking> {
        self.breaking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the breaker, and reports a new state.
    fn change<T>(&self, change: impl FnOnce(&mut Breaking) -> T) -> T {
        let mut breaking = self.lock();
        let before = breaking.breaker.state();
        let outcome = change(&mut breaking);
        let after = breaking.breaker.state();
        let (peer, error) = (&*self.peer, &*breaking.last_error);
        match (before, after) {
            _ if before == after => return outcome,
            (BreakerState::Closed, BreakerState::Open) => warn!(
                peer,
                error, "calls to the backing cache fail; they are suspended for a while"
            ),
            (_, BreakerState::Closed) => info!(peer, "calls to the backing cache succeed again"),
            _ => {}
        }
        self.state.send_replace(after);
        outcome
    }
}

/// An admitted call. It counts as cancelled when it is dropped without an end.
pub(super) struct Attempt<'a> {
    gate: &'a Gate,
    admission: Option<Admission>,
    since: Since,
}

impl Attempt<'_> {
    /// Whether all other calls wait for the outcome of this one.
    pub(super) fn decides(&self) -> bool {
        self.admission == Some(Admission::Probe)
    }

    /// Records the outcome. Returns the time from which a later failure of this call counts.
    pub(super) fn ended(mut self, failure: Option<&Failure>) -> Since {
        let gate = self.gate;
        if let Some(admission) = self.admission.take() {
            match failure.filter(|failure| failure.is_outage()) {
                Some(failure) => gate.failed(admission, self.since, failure),
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
