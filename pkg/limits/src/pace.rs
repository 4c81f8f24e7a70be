//! The minimum pace of clients that hold permits which others wait for.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::{Call, budget::Grant};

/// The minimum pace of a connection while others wait for its permits, in bytes a second.
pub const MIN_PACE: u32 = 64 * 1024;
/// The number of graces over which the pace is averaged: the most credit that bytes can buy.
const AVERAGED: u32 = 30;
/// The longest interval between two checks whether others wait.
const CHECK: Duration = Duration::from_secs(1);
/// The time without waiting calls after which a connection gets a new grace. Longer than `CHECK`, so
/// that a check of one call does not miss those that wait for another's permits.
const CALM: Duration = Duration::from_secs(2);

/// The time that the process still spends waiting for a client while others wait for the permits of
/// its connection. Bytes that the client moves add to it.
#[derive(Debug)]
pub(crate) struct Credit {
    grace: Duration,
    left: Duration,
    /// The number of permits that calls of the connection hold, of any budget, except detached calls.
    held: usize,
    /// The number of calls that hold permits and wait for the client.
    waiting: usize,
    /// The time up to which waiting has been charged.
    since: Instant,
    /// The last check at which others waited for permits of the connection.
    wanted: Option<Instant>,
}

impl Credit {
    pub(crate) fn new(grace: Duration) -> Self {
        Self {
            grace,
            left: grace,
            held: 0,
            waiting: 0,
            since: Instant::now(),
            wanted: None,
        }
    }

    /// Records that a call got a permit. A connection that held none has at least one grace from now
    /// on. Further permits add no time: a stalled client could prolong its calls by asking for more.
    pub(crate) fn take(&mut self) {
        self.charge();
        if self.held == 0 {
            self.left = self.left.max(self.grace);
        }
        self.held += 1;
    }

    /// Records that a permit was dropped.
    pub(crate) fn give_back(&mut self) {
        self.held = self.held.saturating_sub(1);
    }

    fn moved(&mut self, bytes: usize) {
        self.charge();
        let most = self.grace.saturating_mul(AVERAGED);
        let bought = Duration::from_secs(bytes as u64) / MIN_PACE;
        self.left = self.left.saturating_add(bought).min(most);
    }

    fn wait(&mut self) {
        self.charge();
        self.waiting += 1;
    }

    fn rest(&mut self) {
        self.charge();
        self.waiting -= 1;
    }

    /// Charges the time spent waiting for the client, once for all calls of the connection.
    fn charge(&mut self) {
        let now = Instant::now();
        if self.waiting > 0 {
            self.left = self.left.saturating_sub(now - self.since);
        }
        self.since = now;
    }

    /// Returns the time that is left, and the time until the next check. The time left is at least one
    /// grace if no check has found others waiting for `CALM`.
    fn left(&mut self, wanted: bool) -> (Duration, Duration) {
        self.charge();
        let now = self.since;
        if self.wanted.is_none_or(|last| now - last > CALM) {
            self.left = self.left.max(self.grace);
        }
        if wanted {
            self.wanted = Some(now);
        }
        let next = if self.left.is_zero() {
            self.grace
        } else {
            self.left
        };
        (self.left, next.min(CHECK))
    }
}

/// The speed at which a client moves the bytes of one call. The calls of a connection count together, so that many
/// calls over a slow link are no worse than one. Only time spent waiting for the client counts, not for the disk or the
/// backing cache.
#[derive(Debug)]
pub struct Pace {
    call: Call,
    waiting: bool,
    /// The timer of the next check, created when the call first waits while holding permits.
    check: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Creates the pace of `call`.
    pub const fn new(call: Call) -> Self {
        Self {
            call,
            waiting: false,
            check: None,
        }
    }

    /// Records that the client sent or received this many bytes.
    pub fn moved(&mut self, bytes: usize) {
        self.rest();
        if bytes > 0 && self.call.holds() {
            self.call.client().credit().moved(bytes);
        }
    }

    /// Records that the call no longer waits for the client.
    pub fn rest(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.call.client().credit().rest();
        }
    }

    /// Records that the call waits for the client. Completes when the call has to end, since others wait for its
    /// permits.
    pub fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.call.holds() {
            return Poll::Pending;
        }
        if !self.waiting {
            self.waiting = true;
            self.call.client().credit().wait();
        }
        loop {
            let wanted = self.call.any(Grant::is_wanted);
            let (left, next) = self.call.client().credit().left(wanted);
            if left.is_zero() && self.call.any(Grant::give_way) {
                return Poll::Ready(());
            }
            let check = self
                .check
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(next)));
            ready!(check.as_mut().poll(cx));
            check.as_mut().reset(Instant::now() + next);
        }
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.rest();
    }
}

#[cfg(test)]
mod tests;
