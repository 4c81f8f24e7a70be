//! The request of a `ByteStream.Write`: content on its way to a peer.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, task::AtomicWaker};
use reapi::bytestream::WriteRequest;
use tokio::{sync::Notify, time};

use super::compression::Compressing;
use gorego_storage::{Chunks, Digest, Error, Result};

/// The most that goes into one message: a quarter of what peers take at least.
const MAX_MESSAGE: usize = 1 << 20;
/// How long a peer may take to notice that an upload breaks off.
const PARTING: Duration = Duration::from_secs(5);

/// What is sent.
pub(super) struct Plan {
    pub(super) digest: Digest,
    pub(super) name: String,
    /// Where in the blob the content starts, in bytes.
    pub(super) start: u64,
    /// How much is to come.
    pub(super) len: u64,
    /// Whether the content is known to end there: a stream may go on, or fail, after its last byte.
    pub(super) ends: bool,
    pub(super) compressing: Option<Compressing>,
}

/// An upload's content, shared by who sends it and who waits for it.
pub(super) struct Sending {
    state: Mutex<State>,
    waker: AtomicWaker,
    closed: Notify,
}

struct State {
    plan: Plan,
    source: Chunks,
    progress: Progress,
    /// What is left of a piece, in the form in which it is sent.
    rest: Bytes,
    error: Option<Error>,
    closed: bool,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes that came from the source.
    pub(super) taken: u64,
    /// Bytes that went out, compressed if that is so.
    pub(super) sent: u64,
    /// The source has ended, or went on for too long.
    pub(super) ended: bool,
    /// Messages that went out.
    messages: u64,
    phase: Phase,
}

/// Who is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// The peer, to take more.
    #[default]
    Peer,
    /// The source, to bring more.
    Source,
    /// The peer, to answer: the last message went out.
    Finished,
    /// The peer, to answer: no more will come, although it did not have all.
    Over,
}

impl Progress {
    /// Whether the last message went out.
    pub(super) fn finished(&self) -> bool {
        self.phase == Phase::Finished
    }

    fn over(&mut self) {
        if !self.finished() {
            self.phase = Phase::Over;
        }
    }
}

impl Sending {
    pub(super) fn new(plan: Plan, source: Chunks) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                progress: Progress {
                    ended: plan.ends && plan.len == 0,
                    ..Progress::default()
                },
                plan,
                source,
                rest: Bytes::new(),
                error: None,
                closed: false,
            }),
            waker: AtomicWaker::new(),
            closed: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn progress(&self) -> Progress {
        self.state().progress
    }

    /// The error that the source ended with.
    pub(super) fn take_error(&self) -> Option<Error> {
        self.state().error.take()
    }

    /// The source, if nothing was taken from it yet.
    pub(super) fn take_source(&self) -> Option<Chunks> {
        let mut state = self.state();
        let untouched = state.progress.taken == 0 && !state.progress.ended && state.error.is_none();
        untouched.then(|| std::mem::replace(&mut state.source, futures::stream::empty().boxed()))
    }

    /// Lets go of the source, whoever holds on to the request.
    fn discard_source(&self) {
        let empty = futures::stream::empty().boxed();
        let source = std::mem::replace(&mut self.state().source, empty);
        drop(source);
    }

    /// Ends the request without finishing the upload.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.progress.over();
        drop(state);
        self.waker.wake();
        self.closed.notify_one();
    }

    /// The messages.
    pub(super) fn messages(self: Arc<Self>) -> Messages {
        Messages(self)
    }

    /// Completes when the peer took nothing for `patience`, or, once it has all, did not answer for
    /// `last`.
    pub(super) async fn stalled(&self, patience: Duration, last: Duration) -> Duration {
        loop {
            let before = self.progress();
            let wait = match before.phase {
                Phase::Peer | Phase::Source => patience,
                Phase::Finished => last,
                Phase::Over => patience.min(PARTING),
            };
            tokio::select! {
                () = time::sleep(wait) => {}
                // Less patience from now on.
                () = self.closed.notified() => continue,
            }
            let now = self.progress();
            if now == before && now.phase != Phase::Source {
                return wait;
            }
        }
    }
}

/// Ends a request with the put that it belongs to.
pub(super) struct CloseOnDrop(pub(super) Arc<Sending>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Lets go of a source that nobody is going to read to its end.
pub(super) struct DiscardOnDrop(pub(super) Arc<Sending>);

impl Drop for DiscardOnDrop {
    fn drop(&mut self) {
        self.0.discard_source();
    }
}

pub(super) struct Messages(Arc<Sending>);

impl Stream for Messages {
    type Item = WriteRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<WriteRequest>> {
        self.0.waker.register(cx.waker());
        let mut state = self.0.state();
        let message = state.poll_message(cx);
        if matches!(message, Poll::Ready(None)) {
            state.progress.over();
        }
        message
    }
}

impl State {
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<WriteRequest>> {
        if self.closed || self.progress.finished() || self.error.is_some() {
            return Poll::Ready(None);
        }
        while self.rest.is_empty() && !self.progress.ended {
            match self.poll_source(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.error = Some(error);
                    return Poll::Ready(None);
                }
                // The name alone lets a peer that has the blob say so.
                Poll::Pending if self.progress.messages == 0 => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Some(self.message()))
    }

    /// Takes a piece from the source.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.progress.phase = Phase::Source;
        let piece = ready!(self.source.poll_next_unpin(cx));
        self.progress.phase = Phase::Peer;
        let Some(piece) = piece.transpose()? else {
            self.progress.ended = true;
            return Poll::Ready(self.check_size());
        };
        let mut piece = piece;
        // Of what is too long, so much that the peer sees it.
        let most = (self.plan.len - self.progress.taken).saturating_add(1);
        piece.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        self.progress.taken += piece.len() as u64;
        let whole = self.progress.taken == self.plan.len;
        self.progress.ended = self.progress.taken > self.plan.len || self.plan.ends && whole;
        if self.progress.ended {
            self.check_size()?;
        }
        self.rest = match &mut self.plan.compressing {
            Some(compressing) => compressing.next(&piece, whole).map_err(|why| {
                let digest = self.plan.digest;
                Error::Unavailable(format!("compressing {digest}: {why}"))
            })?,
            None => piece,
        };
        Poll::Ready(Ok(()))
    }

    /// What is to become of content of another size is up to the peer, unless it is compressed: a
    /// frame says how much is in it, and cannot be ended.
    fn check_size(&self) -> Result<()> {
        if self.plan.compressing.is_none() || self.progress.taken == self.plan.len {
            return Ok(());
        }
        let (taken, Plan { digest, len, .. }) = (self.progress.taken, &self.plan);
        let why = format!("{taken} bytes of {digest} came instead of {len}");
        Err(Error::Unavailable(why))
    }

    fn message(&mut self) -> WriteRequest {
        let len = self.rest.len().min(MAX_MESSAGE);
        let data = self.rest.split_to(len);
        let offset = self.plan.start + self.progress.sent;
        self.progress.sent += data.len() as u64;
        self.progress.messages += 1;
        if self.progress.ended && self.rest.is_empty() {
            self.progress.phase = Phase::Finished;
        }
        WriteRequest {
            resource_name: if self.progress.messages == 1 {
                std::mem::take(&mut self.plan.name)
            } else {
                String::new()
            },
            write_offset: i64::try_from(offset).unwrap_or(i64::MAX),
            finish_write: self.progress.finished(),
            data,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gorego_storage::DigestFunction;

    #[tokio::test]
    async fn content_that_ends_too_early_is_named() {
        let digest = DigestFunction::Sha256.digest(b"content");
        let plan = Plan {
            digest,
            name: String::new(),
            start: 0,
            len: digest.size(),
            ends: false,
            compressing: Some(Compressing::new(digest.size()).unwrap()),
        };
        let source = futures::stream::iter([Ok(Bytes::from_static(b"cont"))]);
        let sending = Sending::new(plan, source.boxed());
        let messages: Vec<_> = Arc::clone(&sending).messages().collect().await;
        assert!(messages.iter().all(|message| !message.finish_write));
        let error = sending.take_error().unwrap().to_string();
        assert!(error.contains(&digest.to_string()), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_has_less_time_from_when_the_upload_was_given_up() {
        let plan = Plan {
            digest: DigestFunction::Sha256.digest(b"content"),
            name: String::new(),
            start: 0,
            len: 1,
            ends: true,
            compressing: None,
        };
        let sending = Sending::new(plan, futures::stream::pending().boxed());
        let minute = Duration::from_mins(1);
        let began = time::Instant::now();
        let close = async {
            time::sleep(Duration::from_secs(1)).await;
            sending.close();
        };
        let (wait, ()) = tokio::join!(sending.stalled(minute, minute), close);
        assert_eq!(wait, PARTING);
        assert_eq!(began.elapsed(), PARTING + Duration::from_secs(1));
    }
}
