//! When to stop calling a peer that does not answer: a state machine without a clock or I/O.

use tokio::time::Instant;

use gorego_storage::BreakerState;

use super::BreakerOptions;

/// Permission for one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Pass,
    /// The outcome of this call decides for all.
    Probe,
}

/// Until when calls are refused at least; `None` until the outcome of a probe is known.
pub(super) type Refusal = Option<Instant>;

/// The failures and answers of a peer before a call began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Since {
    incidents: u64,
    answers: u64,
}

impl Since {
    /// Returns this for a call that has been answered by `now`: a failure before that still counts once.
    pub(super) const fn answered(self, now: Self) -> Self {
        Self {
            incidents: self.incidents,
            answers: now.answers,
        }
    }
}

#[derive(Debug)]
pub(super) struct Breaker {
    options: BreakerOptions,
    state: BreakerState,
    /// Consecutive failures while closed.
    failures: u32,
    /// The time of the next probe, while open.
    until: Option<Instant>,
    cool_down: std::time::Duration,
    probing: bool,
    now: Since,
}

impl Breaker {
    pub(super) fn new(options: BreakerOptions) -> Self {
        Self {
            options,
            state: BreakerState::Closed,
            failures: 0,
            until: None,
            cool_down: options.cool_down,
            probing: false,
            now: Since::default(),
        }
    }

    pub(super) const fn state(&self) -> BreakerState {
        self.state
    }

    pub(super) const fn since(&self) -> Since {
        self.now
    }

    pub(super) fn admit(&mut self, now: Instant) -> Result<Admission, Refusal> {
        if self.state == BreakerState::Closed {
            return Ok(Admission::Pass);
        }
        if let Some(refusal) = self.refuses(now) {
            return Err(refusal);
        }
        self.state = BreakerState::HalfOpen;
        self.probing = true;
        Ok(Admission::Probe)
    }

    /// Returns the refusal that [`Self::admit`] would answer now, if it would.
    pub(super) fn refuses(&self, now: Instant) -> Option<Refusal> {
        match self.state {
            BreakerState::Open => self.until.filter(|until| now < *until).map(Some),
            BreakerState::HalfOpen => self.probing.then_some(None),
            BreakerState::Closed => None,
        }
    }

    /// Records an answer. Answers to calls from before the breaker opened do not close it.
    pub(super) const fn succeeded(&mut self, admission: Admission) {
        self.now.answers += 1;
        if matches!(admission, Admission::Probe) {
            self.state = BreakerState::Closed;
            self.probing = false;
            self.cool_down = self.options.cool_down;
        }
        if matches!(self.state, BreakerState::Closed) {
            self.failures = 0;
        }
    }

    /// Records that a call from `since` got no answer. A failure that many calls share counts once:
    /// of the calls that were under way at the last failure none counts, unless the peer was `silent`
    /// to all of them.
    pub(super) fn failed(
        &mut self,
        admission: Admission,
        since: Since,
        silent: bool,
        now: Instant,
    ) {
        let is_new =
            since.incidents == self.now.incidents || silent && since.answers == self.now.answers;
        if admission == Admission::Probe {
            self.now.incidents += 1;
            self.probing = false;
            self.cool_down = (self.cool_down * 2).min(self.options.max_cool_down);
            self.open(now);
        } else if self.state == BreakerState::Closed && is_new {
            self.now.incidents += 1;
            self.failures += 1;
            if self.failures >= self.options.failures.max(1) {
                self.open(now);
            }
        }
    }

    /// Records that a call was cancelled. If it was the probe, the next call may be one.
    pub(super) fn abandoned(&mut self, admission: Admission) {
        if admission == Admission::Probe {
            self.probing = false;
            // The cool-down is over.
            self.state = BreakerState::Open;
        }
    }

    fn open(&mut self, now: Instant) {
        self.state = BreakerState::Open;
        self.failures = 0;
        self.until = Some(now + self.cool_down);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(BreakerOptions {
            failures: 3,
            cool_down: SECOND,
            max_cool_down: 3 * SECOND,
        });
        for state in [
            BreakerState::Closed,
            BreakerState::Closed,
            BreakerState::Open,
        ] {
            assert_eq!(breaker.admit(now), Ok(Admission::Pass));
            breaker.failed(Admission::Pass, breaker.since(), false, now);
            assert_eq!(breaker.state(), state);
        }
        breaker
    }

    #[test]
    fn an_answer_between_failures_keeps_it_closed() {
        let now = Instant::now();
        let mut breaker = Breaker::new(BreakerOptions {
            failures: 2,
            ..BreakerOptions::default()
        });
        for _ in 0..10 {
            breaker.failed(Admission::Pass, breaker.since(), false, now);
            breaker.succeeded(Admission::Pass);
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn what_many_calls_meet_together_counts_once() {
        let now = Instant::now();
        let options = BreakerOptions {
            failures: 3,
            ..BreakerOptions::default()
        };
        let mut breaker = Breaker::new(options);
        for _ in 0..2 {
            let since = breaker.since();
            for _ in 0..10 {
                breaker.failed(Admission::Pass, since, false, now);
            }
            assert_eq!(breaker.state(), BreakerState::Closed);
        }
        breaker.failed(Admission::Pass, breaker.since(), false, now);
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[test]
    fn silence_counts_for_each_call_unless_another_was_answered() {
        let now = Instant::now();
        for (answered, state) in [(true, BreakerState::Closed), (false, BreakerState::Open)] {
            let mut breaker = Breaker::new(BreakerOptions::default());
            let since = breaker.since();
            if answered {
                breaker.succeeded(Admission::Pass);
            }
            for _ in 0..10 {
                breaker.failed(Admission::Pass, since, true, now);
            }
            assert_eq!(breaker.state(), state);
        }
    }

    #[test]
    fn one_probe_at_a_time_decides_after_the_cool_down() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(breaker.admit(now + SECOND / 2).is_err());
        assert_eq!(breaker.admit(now + SECOND), Ok(Admission::Probe));
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert!(breaker.admit(now + 9 * SECOND).is_err());
        breaker.succeeded(Admission::Probe);
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert_eq!(breaker.admit(now + SECOND), Ok(Admission::Pass));
    }

    #[test]
    fn the_cool_down_grows_to_its_bound_and_shrinks_after_success() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        now += SECOND;
        for cool_down in [2, 3, 3] {
            assert_eq!(breaker.admit(now), Ok(Admission::Probe));
            breaker.failed(Admission::Probe, breaker.since(), false, now);
            let early = now + cool_down * SECOND - SECOND / 2;
            assert!(breaker.admit(early).is_err());
            now += cool_down * SECOND;
        }
        assert_eq!(breaker.admit(now), Ok(Admission::Probe));
        breaker.succeeded(Admission::Probe);
        for _ in 0..3 {
            breaker.failed(Admission::Pass, breaker.since(), false, now);
        }
        assert_eq!(breaker.admit(now + SECOND), Ok(Admission::Probe));
    }

    #[test]
    fn late_outcomes_change_nothing_and_an_abandoned_probe_makes_room() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.succeeded(Admission::Pass);
        breaker.failed(Admission::Pass, breaker.since(), false, now + SECOND);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert_eq!(breaker.admit(now + SECOND), Ok(Admission::Probe));
        breaker.abandoned(Admission::Probe);
        assert_eq!(breaker.admit(now + SECOND), Ok(Admission::Probe));
    }
}
