//! When to stop asking a peer that does not answer: a state machine without a clock or I/O.

use tokio::time::Instant;

use gorego_storage::BreakerState;

use super::BreakerOptions;

/// What may become of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Pass,
    /// As `Pass`; how it fares decides for all.
    Probe,
    Refuse,
}

/// How long calls are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Until the cool-down is over.
    Until(Instant),
    /// Until it is known how one call fares.
    Probing,
}

/// When a call began, in the peer's failures and answers until then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Since {
    incidents: u64,
    answers: u64,
}

impl Since {
    /// Of a call that has been answered by `now`: what broke down before that still counts once.
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
    /// One after another, while closed.
    failures: u32,
    /// When the next probe may be made, while open.
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

    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        match (self.state, self.refuses(now)) {
            (BreakerState::Closed, _) => Admission::Pass,
            (_, Some(_)) => Admission::Refuse,
            (BreakerState::Open | BreakerState::HalfOpen, None) => {
                self.state = BreakerState::HalfOpen;
                self.probing = true;
                Admission::Probe
            }
        }
    }

    /// Whether a call would be refused, and if so until when at least, unless the state changes.
    pub(super) fn refuses(&self, now: Instant) -> Option<Refusal> {
        match self.state {
            BreakerState::Open => self.until.filter(|until| now < *until).map(Refusal::Until),
            BreakerState::HalfOpen if self.probing => Some(Refusal::Probing),
            BreakerState::Closed | BreakerState::HalfOpen => None,
        }
    }

    /// The peer answered. Answers to calls from before the breaker opened do not close it.
    pub(super) fn succeeded(&mut self, admission: Admission) {
        self.now.answers += 1;
        if admission == Admission::Probe {
            self.state = BreakerState::Closed;
            self.probing = false;
            self.cool_down = self.options.cool_down;
        }
        if self.state == BreakerState::Closed {
            self.failures = 0;
        }
    }

    /// The peer did not answer a call from `since`. What many calls meet together counts once: of
    /// those under way when one failed no other counts, unless the peer was `silent` to all of them.
    pub(super) fn failed(
        &mut self,
        admission: Admission,
        since: Since,
        silent: bool,
        now: Instant,
    ) {
        let another =
            since.incidents == self.now.incidents || silent && since.answers == self.now.answers;
        if admission == Admission::Probe {
            self.now.incidents += 1;
            self.probing = false;
            self.cool_down = (self.cool_down * 2).min(self.options.max_cool_down);
            self.open(now);
        } else if self.state == BreakerState::Closed && another {
            self.now.incidents += 1;
            self.failures += 1;
            if self.failures >= self.options.failures.max(1) {
                self.open(now);
            }
        }
    }

    /// The call was given up before its outcome was known: the next one may be the probe.
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
            assert_eq!(breaker.admit(now), Admission::Pass);
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
            breaker.failed(Admission::Probe, breaker.since(), false, now);
            let early = now + cool_down * SECOND - SECOND / 2;
            assert_eq!(breaker.admit(early), Admission::Refuse);
            now += cool_down * SECOND;
        }
        assert_eq!(breaker.admit(now), Admission::Probe);
        breaker.succeeded(Admission::Probe);
        for _ in 0..3 {
            breaker.failed(Admission::Pass, breaker.since(), false, now);
        }
        assert_eq!(breaker.admit(now + SECOND), Admission::Probe);
    }

    #[test]
    fn late_outcomes_change_nothing_and_an_abandoned_probe_makes_room() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.succeeded(Admission::Pass);
        breaker.failed(Admission::Pass, breaker.since(), false, now + SECOND);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert_eq!(breaker.admit(now + SECOND), Admission::Probe);
        breaker.abandoned(Admission::Probe);
        assert_eq!(breaker.admit(now + SECOND), Admission::Probe);
    }
}
