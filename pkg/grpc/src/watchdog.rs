//! Ends responses that their client does not take.
//!
//! While a client leaves no room in its flow-control window, the HTTP/2 layer does not poll the
//! response's body, so the body cannot notice. What can is the future that drives the whole
//! stream: it is wrapped here. The body tells the wrapper, through a thread-local since both run
//! inside one poll, whether it handed out data or is itself waiting for more. Data that went out
//! without the body being polled again for the whole time-out means a stalled client: the stream's
//! future is dropped, which resets the stream and frees what it held. So it is when the client is
//! merely slow, but others wait for what the response holds.

use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::FutureExt as _;
use gorego_limits::{Call, Client, Pace};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::{deadline::Timed, idle::Activity, status::too_slow};

/// What the body says during one poll of its stream.
#[derive(Clone, Copy, Default)]
struct Report {
    signal: Signal,
    /// How much it handed out, in bytes.
    sent: usize,
}

#[derive(Clone, Copy, Default)]
enum Signal {
    /// The body was not polled.
    #[default]
    None,
    /// The body handed out data that the client has to take.
    Sent,
    /// The body waits for its own source.
    Waiting,
}

thread_local! {
    static REPORT: Cell<Report> = const {
        Cell::new(Report { signal: Signal::None, sent: 0 })
    };
}

fn report(change: impl FnOnce(&mut Report)) {
    let mut report = REPORT.take();
    change(&mut report);
    REPORT.set(report);
}

/// Says that the body being polled hands out this many bytes.
pub(crate) fn sent(bytes: usize) {
    report(|report| {
        report.signal = Signal::Sent;
        report.sent += bytes;
    });
}

/// Says that the body being polled has nothing to hand out yet.
pub(crate) fn waiting() {
    report(|report| report.signal = Signal::Waiting);
}

pin_project! {
    /// A stream's future, dropped when its client takes nothing for too long.
    pub(crate) struct Watched<F> {
        #[pin]
        stream: Option<F>,
        // Boxed, since most responses are taken at once and never need it.
        timer: Option<Pin<Box<Sleep>>>,
        armed: bool,
        idle_timeout: Duration,
        pace: Pace,
    }
}

impl<F> Watched<F> {
    /// The future of a stream that answers `call`.
    pub(crate) const fn new(stream: F, idle_timeout: Duration, call: Call) -> Self {
        Self {
            stream: Some(stream),
            timer: None,
            armed: false,
            idle_timeout,
            pace: Pace::new(call),
        }
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut me = self.project();
        let Some(stream) = me.stream.as_mut().as_pin_mut() else {
            return Poll::Ready(());
        };
        REPORT.take();
        if stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let report = REPORT.take();
        if matches!(report.signal, Signal::Sent | Signal::Waiting) {
            me.pace.moved(report.sent);
        }
        match report.signal {
            Signal::None => {}
            Signal::Waiting => *me.armed = false,
            Signal::Sent => {
                *me.armed = true;
                let deadline = Instant::now() + *me.idle_timeout;
                match me.timer {
                    Some(timer) => timer.as_mut().reset(deadline),
                    None => *me.timer = Some(Box::pin(tokio::time::sleep_until(deadline))),
                }
            }
        }
        if !*me.armed {
            return Poll::Pending;
        }
        if me.pace.poll_too_slow(cx).is_ready() {
            debug!("a response is dropped: {}", too_slow().message());
            me.stream.set(None);
            return Poll::Ready(());
        }
        if let Some(timer) = me.timer {
            ready!(timer.as_mut().poll(cx));
            debug!(
                "a client took nothing of a response for {:?}, it is dropped",
                me.idle_timeout
            );
            me.stream.set(None);
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// Runs the streams of a connection, each of them watched.
#[derive(Clone, Debug)]
pub(crate) struct StreamExecutor {
    pub(crate) tasks: TaskTracker,
    pub(crate) activity: Activity,
    pub(crate) client: Client,
    pub(crate) idle_timeout: Duration,
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let call = self.client.call();
        let watched = Watched::new(Timed::new(stream), self.idle_timeout, call.clone());
        let running = self.activity.call();
        // An async block would have room for the stream twice.
        let watched = watched.map(|()| drop(running));
        self.tasks.spawn(call.scope(watched));
    }
}

#[cfg(test)]
mod tests {
    use std::{future, sync::Arc};

    use super::*;

    const IDLE: Duration = Duration::from_mins(1);

    /// Runs `body` each time the stream is polled; never ends by itself.
    fn stream(mut body: impl FnMut(&mut Context<'_>)) -> impl Future<Output = ()> {
        future::poll_fn(move |cx| {
            body(cx);
            Poll::Pending
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_nobody_takes_is_dropped_after_the_time_out() {
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
        Watched::new(stalled, IDLE, Call::current()).await;
        assert_eq!(start.elapsed(), IDLE);
        assert_eq!(Arc::strong_count(&held), 1, "what the stream held is freed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_is_taken_slowly_goes_on() {
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
        Watched::new(slow, IDLE, Call::current()).await;
        assert!(start.elapsed() > IDLE * 2, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_waits_for_its_own_source_is_left_alone() {
        let mut polls = 0;
        let quiet = stream(move |_| {
            polls += 1;
            if polls == 1 {
                sent(1);
                waiting();
            }
        });
        let outcome =
            tokio::time::timeout(IDLE * 10, Watched::new(quiet, IDLE, Call::current())).await;
        assert!(outcome.is_err(), "it must still be there");
    }
}
