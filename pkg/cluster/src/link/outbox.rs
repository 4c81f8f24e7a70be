//! The frames that wait to be sent on a link.

use std::{collections::VecDeque, mem, sync::Arc, time::Duration};

use futures::{Stream, future::pending, stream};
use parking_lot::Mutex;
use prost::Message as _;
use reapi::gorego::cluster::{Bye, Frame, Ping, frame::Content};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{GOODBYE, How, MAX_FRAME, PING, SendError};

/// The most bytes of gossip, and of other frames, that wait on a link.
const GOSSIP_BYTES: usize = 512 * 1024;
const WORK_BYTES: usize = 4 * 1024 * 1024;

/// Creates a frame.
pub(crate) const fn frame(content: Content) -> Frame {
    Frame {
        content: Some(content),
    }
}

/// The queue of one link. Gossip overtakes other frames.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    gossip: Lane,
    work: Lane,
    state: State,
    /// The latest end of a link that is being closed.
    deadline: Option<Instant>,
    pings: Pings,
}

#[derive(Clone, Copy, Debug, Default)]
struct Pings {
    /// The number of the last ping.
    number: u64,
    /// The time of the last ping; `None` once it is answered.
    sent: Option<Instant>,
    round_trip: Option<Duration>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Open,
    /// Ends with `Bye` once the queue is empty.
    Closing(String),
    Ended(How),
}

#[derive(Debug, Default)]
struct Lane {
    frames: VecDeque<Frame>,
    bytes: usize,
}

impl Lane {
    fn push(&mut self, frame: Frame, len: usize, most: usize) -> bool {
        let bytes = self.bytes + cost(len);
        if bytes <= most {
            self.bytes = bytes;
            self.frames.push_back(frame);
        }
        bytes <= most
    }

    fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        self.bytes = self.bytes.saturating_sub(cost(frame.encoded_len()));
        Some(frame)
    }
}

/// Returns the number of bytes that a frame adds to the count.
const fn cost(len: usize) -> usize {
    len + size_of::<Frame>()
}

impl Outbox {
    /// Creates a queue with the first frame, which gossip must not overtake.
    pub(crate) fn new(first: Frame) -> Arc<Self> {
        let outbox = Self::default();
        let len = first.encoded_len();
        outbox.queue.lock().gossip.push(first, len, GOSSIP_BYTES);
        Arc::new(outbox)
    }

    /// Adds a frame. If there is no room, the link breaks.
    pub(crate) fn push(&self, frame: Frame) -> Result<(), SendError> {
        let len = frame.encoded_len();
        if len > MAX_FRAME {
            return Err(SendError::TooLarge(len));
        }
        let mut queue = self.queue.lock();
        if !matches!(queue.state, State::Open) {
            return Err(SendError::Down);
        }
        let pushed = match frame.content {
            Some(Content::Gossip(_) | Content::Ping(_)) => {
                queue.gossip.push(frame, len, GOSSIP_BYTES)
            }
            _ => queue.work.push(frame, len, WORK_BYTES),
        };
        drop(queue);
        if pushed {
            self.changed.notify_waiters();
            return Ok(());
        }
        self.end(How::Broken("the peer reads too slowly".to_owned()));
        Err(SendError::Full)
    }

    /// Answers a ping of the peer, or records an answer.
    pub(crate) fn pinged(&self, ping: Ping) {
        if ping.number != 0 {
            // This fails if the link is about to end.
            let _ = self.push(frame(Content::Ping(Ping {
                number: 0,
                answered: ping.number,
            })));
        }
        let pings = &mut self.queue.lock().pings;
        if ping.answered == pings.number
            && let Some(sent) = pings.sent.take()
        {
            pings.round_trip = Some(sent.elapsed());
        }
    }

    /// Returns the time between the last answered ping and its answer.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.queue.lock().pings.round_trip
    }

    fn next_ping(&self) -> Frame {
        let pings = &mut self.queue.lock().pings;
        pings.number += 1;
        pings.sent = Some(Instant::now());
        frame(Content::Ping(Ping {
            number: pings.number,
            answered: 0,
        }))
    }

    /// Ends the link with `Bye` after the waiting frames.
    pub(crate) fn close(&self, why: &str) {
        let mut queue = self.queue.lock();
        if matches!(queue.state, State::Open) {
            queue.state = State::Closing(why.to_owned());
            queue.deadline = Some(Instant::now() + GOODBYE);
        }
        drop(queue);
        self.changed.notify_waiters();
    }

    /// Ends the link at once, unless it has ended, and drops the waiting frames.
    pub(crate) fn end(&self, how: How) {
        let mut queue = self.queue.lock();
        if !matches!(queue.state, State::Ended(_)) {
            *queue = Queue {
                state: State::Ended(how),
                ..Queue::default()
            };
        }
        drop(queue);
        self.changed.notify_waiters();
    }

    /// Returns whether frames can be added.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.queue.lock().state, State::Open)
    }

    /// Waits until the link is to end: at once, or because `Bye` is sent.
    pub(crate) async fn ended(&self) -> How {
        self.when(|queue| match &queue.state {
            State::Ended(how) => Some(how.clone()),
            State::Open | State::Closing(_) => None,
        })
        .await
    }

    /// Waits until the link should have ended after it was closed.
    pub(crate) async fn overdue(&self) {
        sleep_until(self.when(|queue| queue.deadline).await).await;
    }

    /// Waits until `find` finds something in the queue.
    async fn when<T>(&self, find: impl Fn(&mut Queue) -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // The subscription precedes the read of the queue, so that no change is missed.
            changed.as_mut().enable();
            if let Some(found) = find(&mut self.queue.lock()) {
                return found;
            }
            changed.await;
        }
    }

    /// Returns the next frame to send: a ping at `ping_at`, gossip, or another. `None` at the end.
    async fn next(&self, ping_at: Option<Instant>) -> Option<Frame> {
        let next = self.when(|queue| {
            if let Some(frame) = queue.gossip.pop().or_else(|| queue.work.pop()) {
                return Some(Some(frame));
            }
            match &mut queue.state {
                State::Open => None,
                State::Closing(why) => {
                    let why = mem::take(why);
                    queue.state = State::Ended(How::Bye(why.clone()));
                    self.changed.notify_waiters();
                    Some(Some(frame(Content::Bye(Bye { why }))))
                }
                State::Ended(_) => Some(None),
            }
        });
        let ping = async {
            match ping_at {
                Some(ping_at) => sleep_until(ping_at).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = ping => Some(self.next_ping()),
            next = next => next,
        }
    }

    /// Returns the frames to send, in order. If the stream is dropped before its end, the link is broken.
    pub(crate) fn frames(self: Arc<Self>) -> impl Stream<Item = Frame> + Send + 'static {
        let sender = Sender(self);
        // The first frame comes before all pings.
        stream::unfold((sender, None), async |(sender, ping_at)| {
            let frame = sender.0.next(ping_at).await?;
            let is_ping = matches!(&frame.content, Some(Content::Ping(ping)) if ping.number != 0);
            let ping_at = ping_at.filter(|_| !is_ping);
            let ping_at = ping_at.unwrap_or_else(|| Instant::now() + PING);
            Some((frame, (sender, Some(ping_at))))
        })
    }
}

/// The stream of a queue. If it is dropped, the link is broken.
struct Sender(Arc<Outbox>);

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.end(How::Broken("the connection ended".to_owned()));
    }
}
