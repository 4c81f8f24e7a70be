//! The circuit breaker of a peer: it admits calls, and suspends them while the peer does not answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use gorego_limits::LogLimit;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tracing::{info, warn};

use super::{BreakerOptions, failure::Failure, pool::Pool};
use gorego_storage::BreakerState;

/// The counts of failures and answers when a call began.
#[derive(Clone, Copy, Debug, Default)]
struct CallStart {
    incidents: u64,
    answers: u64,
}

/// The state of a breaker, without a clock or I/O.
#[derive(Debug)]
struct Circuit {
    options: BreakerOptions,
    /// Half open while the probe has no outcome.
    state: BreakerState,
    failures: u32,
    /// The time of the next probe, while open.
    until: Option<Instant>,
    cool_down: Duration,
    now: CallStart,
    /// Counts the events after which the peer may be another server or may have lost blobs: failures to
    /// reach it, and losses of a blob that were noticed.
    outages: u64,
    last_error: String,
}

impl Circuit {
    fn new(options: BreakerOptions) -> Self {
        Self {
            options,
            state: BreakerState::Closed,
            failures: 0,
            until: None,
            cool_down: options.cool_down,
            now: CallStart::default(),
            outages: 0,
            last_error: String::new(),
        }
    }

    /// Admits a call. Returns `true` for the probe, whose outcome decides for all calls.
    fn admit(&mut self, now: Instant) -> Option<bool> {
        if self.refusal(now).is_some() {
            return None;
        }
        let is_probe = self.state != BreakerState::Closed;
        if is_probe {
            self.state = BreakerState::HalfOpen;
        }
        Some(is_probe)
    }

    /// Returns the time until which calls are refused, unless the state changes; `None` if they are admitted.
    fn refusal(&self, now: Instant) -> Option<Instant> {
        match self.state {
            BreakerState::Open => self.until.filter(|until| now < *until),
            BreakerState::HalfOpen => Some(now + self.options.max_cool_down),
            BreakerState::Closed => None,
        }
    }

    /// Records an answer. Answers to calls from before the breaker opened do not close it.
    const fn succeeded(&mut self, is_probe: bool) {
        self.now.answers += 1;
        if is_probe {
            self.state = BreakerState::Closed;
            self.cool_down = self.options.cool_down;
        }
        if matches!(self.state, BreakerState::Closed) {
            self.failures = 0;
        }
    }

    /// Records that a call that began at `since` failed. A failure that several calls share counts once: a call that
    /// ran during the last failure does not count, unless it is `silent` (it timed out) and the peer has answered no
    /// call since it began.
    fn failed(&mut self, is_probe: bool, since: CallStart, silent: bool, now: Instant) {
        let is_new =
            since.incidents == self.now.incidents || silent && since.answers == self.now.answers;
        if is_probe {
            self.cool_down = (self.cool_down * 2).min(self.options.max_cool_down);
        } else if self.state == BreakerState::Closed && is_new {
            self.failures += 1;
        } else {
            return;
        }
        self.now.incidents += 1;
        if is_probe || self.failures >= self.options.failures.max(1) {
            self.state = BreakerState::Open;
            self.failures = 0;
            self.until = Some(now + self.cool_down);
        }
    }
}

/// A peer's connections and the breaker that guards them.
pub(super) struct Breaker {
    peer: Arc<str>,
    pub(super) pool: Pool,
    circuit: Mutex<Circuit>,
    pub(super) state: watch::Sender<BreakerState>,
    transitions: [(BreakerState, AtomicU64); 3],
    logged: LogLimit,
}

impl Breaker {
    pub(super) fn new(peer: Arc<str>, pool: Pool, options: BreakerOptions) -> Self {
        Self {
            peer,
            pool,
            circuit: Mutex::new(Circuit::new(options)),
            state: watch::channel(BreakerState::Closed).0,
            transitions: [
                BreakerState::Closed,
                BreakerState::Open,
                BreakerState::HalfOpen,
            ]
            .map(|state| (state, AtomicU64::new(0))),
            logged: LogLimit::default(),
        }
    }

    /// Returns how often the breaker changed to each state.
    pub(super) fn transitions(&self) -> [(BreakerState, u64); 3] {
        let entered = self.transitions.each_ref();
        entered.map(|(state, total)| (*state, total.load(Relaxed)))
    }

    pub(super) fn outages(&self) -> u64 {
        self.circuit.lock().outages
    }

    /// Records an outage that no call met.
    pub(super) fn count_outage(&self) {
        self.circuit.lock().outages += 1;
    }

    /// Fails if a call would be refused now.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let circuit = self.circuit.lock();
        let error = &circuit.last_error;
        match circuit.refusal(Instant::now()) {
            Some(_) => Err(Failure::NotMade(format!(
                "calls are suspended after a recent error: {error}"
            ))),
            None => Ok(()),
        }
    }

    /// Admits a call as soon as calls are admitted, or fails at `end`.
    pub(super) async fn admit(self: &Arc<Self>, end: Instant) -> Result<Attempt, Failure> {
        let mut state = self.state.subscribe();
        loop {
            let (admitted, since) = self.change(|circuit| {
                let admitted = circuit.admit(Instant::now());
                (admitted, circuit.now)
            });
            if let Some(is_probe) = admitted {
                let breaker = Arc::clone(self);
                return Ok(Attempt {
                    breaker,
                    is_probe,
                    since,
                });
            }
            if Instant::now() >= end {
                self.check()?;
            }
            let refusal = self.circuit.lock().refusal(Instant::now());
            if let Some(until) = refusal {
                let _ = time::timeout_at(until.min(end), state.changed()).await;
            }
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut Circuit) -> T) -> T {
        let mut circuit = self.circuit.lock();
        let before = circuit.state;
        let outcome = change(&mut circuit);
        let after = circuit.state;
        if before == after {
            return outcome;
        }
        self.state.send_replace(after);
        let entered = self.transitions.iter().find(|(state, _)| *state == after);
        if let Some((_, total)) = entered {
            total.fetch_add(1, Relaxed);
        }
        let (peer, error) = (&*self.peer, circuit.last_error.clone());
        // Every call takes the lock, and the log may block.
        drop(circuit);
        match (before, after) {
            (BreakerState::Closed, BreakerState::Open) => warn!(
                peer,
                error, "calls to the backing cache fail; suspending them"
            ),
            (_, BreakerState::Closed) => info!(peer, "calls to the backing cache succeed again"),
            _ => {}
        }
        outcome
    }
}

/// An admitted call. A probe that is dropped without an outcome counts as cancelled.
pub(super) struct Attempt {
    breaker: Arc<Breaker>,
    /// Set if all other calls wait for the outcome of this one.
    pub(super) is_probe: bool,
    since: CallStart,
}

impl Attempt {
    /// Records the outcome. The failure of an answer in progress may be recorded after its beginning.
    pub(super) fn record(&mut self, failure: Option<&Failure>) {
        let breaker = &self.breaker;
        if let Some(Failure::Page(page)) = failure
            && breaker.logged.is_due()
        {
            let (peer, page) = (&*breaker.peer, page.message());
            warn!(peer, "the backing cache answered with {page}");
        }
        let outage = failure.filter(|failure| failure.is_outage());
        if outage.is_some() {
            breaker.pool.rotate();
        }
        let (is_probe, since) = (self.is_probe, self.since);
        self.since.answers = breaker.change(|circuit| {
            if let Some(failure) = outage {
                let silent = matches!(failure, Failure::TimedOut(_));
                let was_open = circuit.state == BreakerState::Open;
                circuit.last_error = failure.to_string();
                circuit.failed(is_probe, since, silent, Instant::now());
                let opens = !was_open && circuit.state == BreakerState::Open;
                // A silent peer was not replaced by another one, unless the silence lasts.
                let is_counted = !failure.asks_to_slow_down() && (opens || !silent);
                circuit.outages += u64::from(is_counted);
            } else {
                circuit.succeeded(is_probe);
            }
            circuit.now.answers
        });
        self.is_probe = false;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.is_probe {
            // The cool-down is over, so the next call is a probe.
            self.breaker
                .change(|circuit| circuit.state = BreakerState::Open);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn opened(now: Instant) -> Circuit {
        let mut circuit = Circuit::new(BreakerOptions {
            failures: 3,
            cool_down: SECOND,
            max_cool_down: 3 * SECOND,
        });
        for state in [
            BreakerState::Closed,
            BreakerState::Closed,
            BreakerState::Open,
        ] {
            assert_eq!(circuit.admit(now), Some(false));
            circuit.failed(false, circuit.now, false, now);
            assert_eq!(circuit.state, state);
        }
        circuit
    }

    #[test]
    fn an_answer_between_failures_keeps_the_breaker_closed() {
        let now = Instant::now();
        let mut circuit = Circuit::new(BreakerOptions {
            failures: 2,
            ..BreakerOptions::default()
        });
        for _ in 0..10 {
            circuit.failed(false, circuit.now, false, now);
            circuit.succeeded(false);
        }
        assert_eq!(circuit.state, BreakerState::Closed);
    }

    #[test]
    fn a_failure_shared_by_many_calls_counts_once() {
        let now = Instant::now();
        let options = BreakerOptions {
            failures: 3,
            ..BreakerOptions::default()
        };
        let mut circuit = Circuit::new(options);
        for _ in 0..2 {
            let since = circuit.now;
            for _ in 0..10 {
                circuit.failed(false, since, false, now);
            }
            assert_eq!(circuit.state, BreakerState::Closed);
        }
        circuit.failed(false, circuit.now, false, now);
        assert_eq!(circuit.state, BreakerState::Open);
    }

    #[test]
    fn silence_counts_for_each_call_unless_another_was_answered() {
        let now = Instant::now();
        for (answered, state) in [(true, BreakerState::Closed), (false, BreakerState::Open)] {
            let mut circuit = Circuit::new(BreakerOptions::default());
            let since = circuit.now;
            if answered {
                circuit.succeeded(false);
            }
            for _ in 0..10 {
                circuit.failed(false, since, true, now);
            }
            assert_eq!(circuit.state, state);
        }
    }

    #[test]
    fn one_probe_at_a_time_decides_after_the_cool_down() {
        let now = Instant::now();
        let mut circuit = opened(now);
        assert!(circuit.admit(now + SECOND / 2).is_none());
        assert_eq!(circuit.admit(now + SECOND), Some(true));
        assert_eq!(circuit.state, BreakerState::HalfOpen);
        assert!(circuit.admit(now + 9 * SECOND).is_none());
        circuit.succeeded(true);
        assert_eq!(circuit.state, BreakerState::Closed);
        assert_eq!(circuit.admit(now + SECOND), Some(false));
    }

    #[test]
    fn the_cool_down_grows_to_its_bound_and_shrinks_after_success() {
        let mut now = Instant::now();
        let mut circuit = opened(now);
        now += SECOND;
        for cool_down in [2, 3, 3] {
            assert_eq!(circuit.admit(now), Some(true));
            circuit.failed(true, circuit.now, false, now);
            let early = now + cool_down * SECOND - SECOND / 2;
            assert!(circuit.admit(early).is_none());
            now += cool_down * SECOND;
        }
        assert_eq!(circuit.admit(now), Some(true));
        circuit.succeeded(true);
        for _ in 0..3 {
            circuit.failed(false, circuit.now, false, now);
        }
        assert_eq!(circuit.admit(now + SECOND), Some(true));
    }

    #[test]
    fn late_outcomes_are_ignored_and_a_cancelled_probe_is_replaced() {
        let now = Instant::now();
        let mut circuit = opened(now);
        circuit.succeeded(false);
        circuit.failed(false, circuit.now, false, now + SECOND);
        assert_eq!(circuit.state, BreakerState::Open);
        assert_eq!(circuit.admit(now + SECOND), Some(true));
        // As when the probe is dropped.
        circuit.state = BreakerState::Open;
        assert_eq!(circuit.admit(now + SECOND), Some(true));
    }
}
