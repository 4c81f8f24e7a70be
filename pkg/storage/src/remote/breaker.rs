//! When to stop asking a peer that does not answer: a state machine without a clock or I/O.

use std::time::Duration;

use tokio::time::Instant;

use super::BreakerOptions;

/// All that was under way on a connection fails with it, a little apart.
const TOGETHER: Duration = Duration::from_millis(500);

/// Whether calls to a peer are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Calls are made.
    Closed,
    /// Calls fail at once, until the cool-down is over and another call comes.
    Open,
    /// One call is made to see how it fares; others fail at once.
    HalfOpen,
}

/// What may become of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Pass,
    /// As `Pass`; how it fares decides for all.
    Probe,
    Refuse,
}

#[derive(Debug)]
pub(super) struct Breaker {
    options: BreakerOptions,
    state: BreakerState,
    /// One after another, while closed.
    failures: u32,
    /// When the next probe may be made, while open.
    until: Option<Instant>,
    cool_down: Duration,
    /// When a failure was counted last.
    counted: Option<Instant>,
    probing: bool,
}

impl Breaker {
    pub(super) fn new(options: BreakerOptions) -> Self {
        Self {
            options,
            state: BreakerState::Closed,
            failures: 0,
            until: None,
            cool_down: options.cool_down,
            counted: None,
            probing: false,
        }
    }

    pub(super) const fn state(&self) -> BreakerState {
        self.state
    }

    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        match self.state {
            BreakerState::Closed => Admission::Pass,
            BreakerState::Open if self.until.is_some_and(|until| now < until) => Admission::Refuse,
            BreakerState::HalfOpen if self.probing => Admission::Refuse,
            BreakerState::Open | BreakerState::HalfOpen => {
                self.state = BreakerState::HalfOpen;
                self.probing = true;
                Admission::Probe
            }
        }
    }

    /// The peer answered. Answers to calls from before the breaker opened do not close it.
    pub(super) fn succeeded(&mut self, admission: Admission) {
        if admission == Admission::Probe {
            self.state = BreakerState::Closed;
            self.probing = false;
            self.cool_down = self.options.cool_down;
        }
        if self.state == BreakerState::Closed {
            self.failures = 0;
        }
    }

    /// The peer did not answer a call that began then. Calls that were under way together and fail
    /// together are one failure, however many they are.
    pub(super) fn failed(&mut self, admission: Admission, began: Instant, now: Instant) {
        if admission == Admission::Probe {
            self.probing = false;
            self.cool_down = (self.cool_down * 2).min(self.options.max_cool_down);
            self.open(now);
        } else if self.state == BreakerState::Closed && !self.is_counted(began, now) {
            self.counted = Some(now);
            self.failures += 1;
            if self.failures >= self.options.failures.max(1) {
                self.open(now);
            }
        }
    }

    /// Whether a failure now is of one kind with the last one, of a call that began before that.
    fn is_counted(&self, began: Instant, now: Instant) -> bool {
        self.counted
            .is_some_and(|counted| began < counted && now < counted + TOGETHER)
    }

    /// The call was given up before its outcome was known: the next one may be the probe.
    pub(super) fn abandoned(&mut self, admission: Admission) {
        if admission == Admission::Probe {
            self.probing = false;
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
            assert_eq!(breaker.admit(now), Admission::Pass);
            breaker.failed(Admission::Pass, now, now);
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
            breaker.failed(Admission::Pass, now, now);
            breaker.succeeded(Admission::Pass);
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn calls_that_fail_together_are_one_failure() {
        let began = Instant::now();
        let mut breaker = Breaker::new(BreakerOptions {
            failures: 3,
            ..BreakerOptions::default()
        });
        let mut now = began + SECOND;
        for failures in [100, 1, 1] {
            assert_eq!(breaker.state(), BreakerState::Closed);
            for _ in 0..failures {
                breaker.failed(Admission::Pass, began, now);
                now += TOGETHER / 200;
            }
            now += TOGETHER;
        }
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[test]
    fn one_probe_at_a_time_decides_after_the_cool_down() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.admit(now + SECOND / 2), Admission::Refuse);
        assert_eq!(breaker.admit(now + SECOND), Admission::Probe);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert_eq!(breaker.admit(now + 9 * SECOND), Admission::Refuse);
        breaker.succeeded(Admission::Probe);
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert_eq!(breaker.admit(now + SECOND), Admission::Pass);
    }

    #[test]
    fn the_cool_down_grows_to_its_bound_and_shrinks_after_success() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        now += SECOND;
        for cool_down in [2, 3, 3] {
            assert_eq!(breaker.admit(now), Admission::Probe);
            breaker.failed(Admission::Probe, now, now);
            let early = now + cool_down * SECOND - SECOND / 2;
            assert_eq!(breaker.admit(early), Admission::Refuse);
            now += cool_down * SECOND;
        }
        assert_eq!(breaker.admit(now), Admission::Probe);
        breaker.succeeded(Admission::Probe);
        for _ in 0..3 {
            breaker.failed(Admission::Pass, now, now);
        }
        assert_eq!(breaker.admit(now + SECOND), Admission::Probe);
    }

    #[test]
    fn late_outcomes_change_nothing_and_an_abandoned_probe_makes_room() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.succeeded(Admission::Pass);
        breaker.failed(Admission::Pass, now, now + SECOND);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert_eq!(breaker.admit(now + SECOND), Admission::Probe);
        breaker.abandoned(Admission::Probe);
        assert_eq!(breaker.admit(now + SECOND), Admission::Probe);
    }
}
