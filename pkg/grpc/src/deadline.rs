//! The end of calls whose client takes nothing, when the time is over that it gave them.
//!
//! In time a call ends with a status: its handler and its response see to that. A response whose client leaves
//! no room for it is not asked, though. The future of its stream knows no deadline, so the call hands
//! it over in a thread-local, since both run inside one poll.

use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::debug;

/// The time in which the status can be sent before the stream is reset.
const LATE: Duration = Duration::from_secs(1);

thread_local! {
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Ends the stream that is being polled soon after `deadline`.
pub(crate) fn end_at(deadline: Instant) {
    DEADLINE.set(Some(deadline));
}

pin_project! {
    /// A stream's future, dropped soon after the deadline of its call.
    pub(crate) struct Timed<F> {
        #[pin]
        stream: Option<F>,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F> Timed<F> {
    pub(crate) const fn new(stream: F) -> Self {
        Self {
            stream: Some(stream),
            timer: None,
        }
    }
}

impl<F: Future<Output = ()>> Future for Timed<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut me = self.project();
        let Some(stream) = me.stream.as_mut().as_pin_mut() else {
            return Poll::Ready(());
        };
        DEADLINE.take();
        if stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let given = DEADLINE.take().and_then(|at| at.checked_add(LATE));
        if let Some(at) = given {
            *me.timer = Some(Box::pin(sleep_until(at)));
        }
        let Some(timer) = me.timer else {
            return Poll::Pending;
        };
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        debug!("a call is dropped: its deadline has passed, and its client takes nothing");
        me.stream.set(None);
        Poll::Ready(())
    }
}
