//! Ends responses that their client does not take.
//!
//! While a client leaves no room in its flow-control window, the HTTP/2 layer does not poll the response's body,
//! so the body cannot notice. The future that drives the whole stream can, and is wrapped here. The call reports
//! to the wrapper through a thread-local, since both run inside one poll. A response that is not taken for the
//! whole time-out, or until shortly after the call's deadline, is dropped: that resets the stream and frees its
//! memory. So is a slow response while others wait for that memory.

use std::{
    cell::Cell,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::FutureExt as _;
use gorego_limits::{Call, Client, Pace};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::{idle::Activity, placement::Placement, status::too_slow};

/// The time after its deadline for which a call may still send its status.
const LATE: Duration = Duration::from_secs(1);

thread_local! {
    /// The bytes that the body handed out in this poll of its stream, which the client has to take.
    static SENT: Cell<usize> = const { Cell::new(0) };
    /// True if the body now waits for its own source.
    static WAITING: Cell<bool> = const { Cell::new(false) };
    /// The deadline of the call, if it was reported in this poll.
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Reports that the body being polled hands out this many bytes.
pub(crate) fn sent(bytes: usize) {
    SENT.set(SENT.get() + bytes);
}

/// Reports that the body being polled has nothing to hand out yet.
pub(crate) fn waiting() {
    WAITING.set(true);
}

/// Reports the deadline of the call being polled.
pub(crate) fn end_at(deadline: Instant) {
    DEADLINE.set(Some(deadline));
}

pin_project! {
    /// A stream's future, dropped when its client takes nothing for too long.
    pub(crate) struct StreamWatchdog<F> {
        #[pin]
        stream: Option<F>,
        // Boxed, since most responses are taken at once and never need it.
        timer: Option<Pin<Box<Sleep>>>,
        late: Option<Instant>,
        stalled: Option<Instant>,
        idle_timeout: Duration,
        pace: Pace,
    }
}

impl<F> StreamWatchdog<F> {
    /// Wraps the future of a stream that answers `call`.
    pub(crate) const fn new(stream: F, idle_timeout: Duration, call: Call) -> Self {
        Self {
            stream: Some(stream),
            timer: None,
            late: None,
            stalled: None,
            idle_timeout,
            pace: Pace::new(call),
        }
    }
}

impl<F: Future<Output = ()>> Future for StreamWatchdog<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut me = self.project();
        let Some(stream) = me.stream.as_mut().as_pin_mut() else {
            return Poll::Ready(());
        };
        let take = || (SENT.take(), WAITING.take(), DEADLINE.take());
        take();
        if stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let (sent, waiting, deadline) = take();
        if let Some(deadline) = deadline {
            *me.late = deadline.checked_add(LATE);
        }
        if waiting || sent > 0 {
            me.pace.moved(sent);
            *me.stalled = (!waiting).then(|| Instant::now() + *me.idle_timeout);
        }
        if me.stalled.is_some() && me.pace.poll_too_slow(cx).is_ready() {
            debug!("response dropped: {}", too_slow().message());
        } else {
            let Some(due) = me.late.iter().chain(me.stalled.iter()).min().copied() else {
                return Poll::Pending;
            };
            let timer = me.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            ready!(timer.as_mut().poll(cx));
            debug!("response dropped: its client takes nothing, or its deadline has passed");
        }
        me.stream.set(None);
        Poll::Ready(())
    }
}

/// The executor of a connection's streams, each of them watched.
#[derive(Clone, Debug)]
pub(crate) struct StreamExecutor {
    pub(crate) tasks: TaskTracker,
    pub(crate) activity: Arc<Activity>,
    pub(crate) client: Client,
    pub(crate) idle_timeout: Duration,
    pub(crate) placement: Placement,
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let call = self.client.call();
        let watched = StreamWatchdog::new(stream, self.idle_timeout, call.clone());
        let running = self.activity.call();
        // An async block would have room for the stream twice.
        let watched = watched.map(|()| drop(running));
        self.placement.spawn(&self.tasks, call.scope(watched));
    }
}

#[cfg(test)]
mod tests {
    use std::future;

    use super::*;

    const IDLE: Duration = Duration::from_mins(1);

    /// A stream that runs `body` at each poll and never ends.
    fn stream(mut body: impl FnMut(&mut Context<'_>)) -> impl Future<Output = ()> {
        future::poll_fn(move |cx| {
            body(cx);
            Poll::Pending
        })
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_response_is_dropped_after_the_idle_timeout() {
        let held = Arc::new(());
        let content = Arc::clone(&held);
        let mut first = true;
        let stalled = stream(move |_| {
            let _ = &content;
            if std::mem::take(&mut first) {
                sent(1);
            }
        });
        let start = Instant::now();
        StreamWatchdog::new(stalled, IDLE, Call::current()).await;
        assert_eq!(start.elapsed(), IDLE);
        assert_eq!(
            Arc::strong_count(&held),
            1,
            "the memory of the stream is freed"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn slowly_taken_response_is_not_dropped() {
        let mut pieces = 0;
        let mut pause: Option<Pin<Box<Sleep>>> = None;
        let slow = stream(move |cx| {
            loop {
                if let Some(pause) = &mut pause
                    && pause.as_mut().poll(cx).is_pending()
                {
                    return;
                }
                pieces += 1;
                if pieces > 3 {
                    return;
                }
                sent(1);
                pause = Some(Box::pin(tokio::time::sleep(IDLE * 9 / 10)));
            }
        });
        let start = Instant::now();
        StreamWatchdog::new(slow, IDLE, Call::current()).await;
        assert!(start.elapsed() > IDLE * 2, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn response_waiting_for_its_source_is_not_dropped() {
        let mut polls = 0;
        let quiet = stream(move |_| {
            polls += 1;
            if polls == 1 {
                sent(1);
                waiting();
            }
        });
        let outcome =
            tokio::time::timeout(IDLE * 10, StreamWatchdog::new(quiet, IDLE, Call::current()))
                .await;
        assert!(outcome.is_err(), "the response was dropped");
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_response_is_dropped_after_its_deadline() {
        let mut first = true;
        let stalled = stream(move |_| {
            if std::mem::take(&mut first) {
                end_at(Instant::now() + IDLE / 2);
                sent(1);
            }
        });
        let start = Instant::now();
        StreamWatchdog::new(stalled, IDLE, Call::current()).await;
        assert_eq!(start.elapsed(), IDLE / 2 + LATE);
    }
}
