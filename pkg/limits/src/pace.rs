//! The pace that is asked of clients that hold what others wait for.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::Call;

/// Fewer bytes a second than this are too few while others wait.
pub const SLOWEST: u32 = 64 * 1024;
/// For how many graces the bytes of a fast connection last: its pace is an average over that time.
const AVERAGED: u32 = 30;
/// The longest interval between two checks whether others wait.
const LOOK: Duration = Duration::from_secs(1);
/// A connection for whose permits nobody waited for this long has a new grace. Longer than the interval
/// between two checks, so that no check of one call overlooks those who wait for another.
const CALM: Duration = Duration::from_secs(2);

/// The time for which a connection may still be waited for, while others wait for permits of its
/// calls.
#[derive(Debug)]
pub(crate) struct Credit {
    grace: Duration,
    left: Duration,
    /// The number of permits that its calls hold, of any budget, without those of detached ones.
    held: usize,
    /// The number of its calls that hold permits and wait for the client.
    waiting: usize,
    /// The time up to which waiting has been charged, while any call waits.
    since: Instant,
    /// The last check at which others waited for its permits.
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
    /// on. Others get no time for it: a client that stalls could buy as much as it likes.
    pub(crate) fn take(&mut self) {
        self.pay();
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
        self.pay();
        let most = self.grace.saturating_mul(AVERAGED);
        let bought = Duration::from_secs(bytes as u64) / SLOWEST;
        self.left = self.left.saturating_add(bought).min(most);
    }

    fn wait(&mut self) {
        self.pay();
        self.waiting += 1;
    }

    fn rest(&mut self) {
        self.pay();
        self.waiting -= 1;
    }

    /// Charges the time that passed while the client was waited for, once for all of its calls.
    fn pay(&mut self) {
        let now = Instant::now();
        if self.waiting > 0 {
            self.left = self.left.saturating_sub(now - self.since);
        }
        self.since = now;
    }

    /// Returns the time that is left, and the time until the next check. It is at least one grace
    /// when this check is the first to find that others wait, or finds that they no longer do.
    fn left(&mut self, wanted: bool) -> (Duration, Duration) {
        self.pay();
        let now = self.since;
        if self.wanted.is_none_or(|last| now - last > CALM) {
            self.left = self.left.max(self.grace);
        }
        if wanted {
            self.wanted = Some(now);
        }
        let look = if self.left.is_zero() {
            self.grace
        } else {
            self.left
        };
        (self.left, look.min(LOOK))
    }
}

/// Watches how fast a client moves the bytes of one call. All calls of a connection that hold
/// something count together, so that many on a slow link are no worse than one. Time in which the
/// process waits for itself, for its disk say, does not count.
#[derive(Debug)]
pub struct Pace {
    call: Call,
    waiting: bool,
    /// The timer of the next check. Created at the first wait of a call that holds permits.
    look: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Watches the client of this call.
    pub const fn new(call: Call) -> Self {
        Self {
            call,
            waiting: false,
            look: None,
        }
    }

    /// Records that the client sent or took this many bytes.
    pub fn moved(&mut self, bytes: usize) {
        self.rest();
        if bytes > 0 && self.call.holds() {
            self.call.client().credit().moved(bytes);
        }
    }

    /// Records that the client is not waited for.
    pub fn rest(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.call.client().credit().rest();
        }
    }

    /// Records that the client is waited for. Ready when its call has to end because others wait.
    pub fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.call.holds() {
            return Poll::Pending;
        }
        if !self.waiting {
            self.waiting = true;
            self.call.client().credit().wait();
        }
        loop {
            let wanted = self.call.is_wanted();
            let (left, next) = self.call.client().credit().left(wanted);
            if left.is_zero() && self.call.give_way() {
                return Poll::Ready(());
            }
            let look = self
                .look
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(next)));
            ready!(look.as_mut().poll(cx));
            look.as_mut().reset(Instant::now() + next);
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
