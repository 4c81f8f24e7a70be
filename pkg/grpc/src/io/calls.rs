//! Bounds on the calls that a client begins: how many it makes only to cancel them, and how many
//! headers are read before the calls that they begin are accepted.
//!
//! Cancelling is cheap for a client, and a call that is cancelled no longer counts as one of those that it may
//! have at a time. The HTTP/2 layer bounds what waits for it, but not what was cancelled over time,
//! and tells nobody. So frames are counted on their way: those by which the client cancels, and those by
//! which calls are answered. Many clients also reset a call that was answered before its request had ended.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use gorego_limits::LogLimit;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Duration, Instant},
};

use tracing::warn;

/// The most cancelled calls of a client in excess of its answered calls. Bazel has up to 100 calls
/// at a time on a connection, a multiplexing proxy up to 256: it may cancel all of them several
/// times in a row.
const ALLOWED: u32 = 2048;
/// Cancelled calls that are forgiven each second.
const FORGIVEN: u32 = 100;

/// The bytes of headers after which reading pauses until the connection's task runs again, so that the
/// calls that they begin are accepted or refused first. The HTTP/2 layer reads whatever has arrived
/// before it hands over the next call, and compressed headers may take a hundred times as much memory as
/// they did on the wire.
const HEADERS_AT_ONCE: usize = 16 * 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
/// The flag of the last frame of a request or a response.
const END_STREAM: u8 = 1;
/// The length in bytes of what precedes each frame, and of what precedes the first.
const HEADER_LEN: usize = 9;
const PREFACE_LEN: usize = 24;

/// A connection that fails once its client has cancelled too many calls, and few were answered, and
/// that pauses where a client begins many calls at once.
#[derive(Debug)]
pub(crate) struct CallGuard<S> {
    stream: S,
    peer: SocketAddr,
    received: Frames,
    sent: Frames,
    cancelled: Cancelled,
    /// The bytes of headers received since reading last paused.
    headers: usize,
    pause: Pause,
}

/// A pause in reading from a connection, until its task runs again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pause(Arc<AtomicBool>);

impl Pause {
    /// Runs the connection, and ends the pause before each turn.
    pub(crate) async fn end_at_each_turn<F: Future>(self, connection: F) -> F::Output {
        let mut connection = pin!(connection);
        poll_fn(|cx| {
            self.0.store(false, Relaxed);
            connection.as_mut().poll(cx)
        })
        .await
    }
}

impl<S> CallGuard<S> {
    /// Guards a connection from its preface on.
    pub(crate) fn new(stream: S, peer: SocketAddr) -> Self {
        Self {
            stream,
            peer,
            received: Frames::after(PREFACE_LEN),
            sent: Frames::after(0),
            cancelled: Cancelled {
                calls: 0,
                since: Instant::now(),
            },
            headers: 0,
            pause: Pause::default(),
        }
    }

    /// The pause of this connection, which [`Pause::end_at_each_turn`] ends.
    pub(crate) fn pause(&self) -> Pause {
        self.pause.clone()
    }

    /// Counts the calls that these bytes begin and cancel. False once there are too many of the latter.
    fn read(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((kind, _)) = self.received.next(&mut bytes) {
            match kind {
                HEADERS | CONTINUATION => self.headers += self.received.skip,
                RST_STREAM if !self.cancelled.cancel() => return false,
                _ => {}
            }
        }
        true
    }

    /// Counts the calls whose answers end in these bytes.
    fn wrote(&mut self, mut bytes: &[u8]) {
        while let Some((kind, flags)) = self.sent.next(&mut bytes) {
            if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                self.cancelled.answered();
            }
        }
    }

    /// The end of a connection whose client does little but cancel.
    fn refuse(&self) -> io::Error {
        static WARNING: LogLimit = LogLimit::new();
        if WARNING.is_due() {
            warn!(
                peer = %self.peer,
                "connection closed: its client cancels nearly all of its calls; if it is a proxy, \
                 give it more connections; further ones are not logged for a minute"
            );
        }
        io::Error::other("too many cancelled calls")
    }
}

/// The frames of a connection, found by their headers.
#[derive(Debug)]
struct Frames {
    /// The number of bytes before the next header.
    skip: usize,
    /// The beginning of the next header.
    header: [u8; HEADER_LEN],
    /// Its length.
    len: usize,
}

impl Frames {
    /// The frames after so many bytes of something else.
    const fn after(skip: usize) -> Self {
        Self {
            skip,
            header: [0; HEADER_LEN],
            len: 0,
        }
    }

    /// The kind and the flags of the next frame that begins in these bytes, which are taken up to its
    /// content.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<(u8, u8)> {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            *bytes = bytes.get(skipped..)?;
            let (byte, rest) = bytes.split_first()?;
            *self.header.get_mut(self.len)? = *byte;
            self.len += 1;
            *bytes = rest;
            if self.len == HEADER_LEN {
                let [l0, l1, l2, kind, flags, ..] = self.header;
                self.skip = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
                self.len = 0;
                return Some((kind, flags));
            }
        }
    }
}

/// Cancelled calls beyond those that were answered.
#[derive(Debug)]
struct Cancelled {
    calls: u32,
    /// The time up to which calls were forgiven.
    since: Instant,
}

impl Cancelled {
    fn answered(&mut self) {
        self.calls = self.calls.saturating_sub(1);
    }

    /// Counts a call that the client cancels. False once there are too many.
    fn cancel(&mut self) -> bool {
        self.calls += 1;
        if self.calls > ALLOWED {
            self.forgive();
        }
        self.calls <= ALLOWED
    }

    fn forgive(&mut self) {
        let seconds = self.since.elapsed().as_secs();
        self.since += Duration::from_secs(seconds);
        let forgiven = u32::try_from(seconds).unwrap_or(u32::MAX);
        self.calls = self.calls.saturating_sub(forgiven.saturating_mul(FORGIVEN));
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CallGuard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.headers > HEADERS_AT_ONCE {
            me.headers = 0;
            me.pause.0.store(true, Relaxed);
            cx.waker().wake_by_ref();
        }
        if me.pause.0.load(Relaxed) {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut me.stream).poll_read(cx, buffer);
        if read.is_pending() {
            me.headers = 0;
        }
        ready!(read)?;
        if me.read(buffer.filled().get(before..).unwrap_or_default()) {
            Poll::Ready(Ok(()))
        } else {
            Poll::Ready(Err(me.refuse()))
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CallGuard<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let len = ready!(Pin::new(&mut me.stream).poll_write(cx, bytes))?;
        me.wrote(bytes.get(..len).unwrap_or_default());
        Poll::Ready(Ok(len))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let len = ready!(Pin::new(&mut me.stream).poll_write_vectored(cx, slices))?;
        let mut left = len;
        for slice in slices {
            let part = slice.get(..left.min(slice.len())).unwrap_or_default();
            me.wrote(part);
            left -= part.len();
        }
        Poll::Ready(Ok(len))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    fn frame(len: u8, kind: u8, flags: u8) -> Vec<u8> {
        let header = [0, 0, len, kind, flags, 0, 0, 0, 1];
        // The content looks like frames of another kind.
        [header.as_slice(), &vec![RST_STREAM; len.into()]].concat()
    }

    /// A connection whose client has sent its preface.
    async fn guarded() -> (CallGuard<DuplexStream>, DuplexStream) {
        let (server, mut client) = duplex(1024);
        let mut guard = CallGuard::new(server, SocketAddr::from(([127, 0, 0, 1], 1)));
        client.write_all(&[1; PREFACE_LEN]).await.unwrap();
        guard.read_exact(&mut [0; PREFACE_LEN]).await.unwrap();
        (guard, client)
    }

    /// Has the client cancel up to 10,000 calls, each after `answers` others were answered; the number
    /// of those that are allowed.
    async fn cancel(
        (guard, client): &mut (CallGuard<DuplexStream>, DuplexStream),
        answers: usize,
    ) -> usize {
        let reset = frame(4, RST_STREAM, 0);
        let answer = [frame(30, DATA, 0), frame(9, HEADERS, END_STREAM)].concat();
        let mut read = [0; 1024];
        for done in 0..10_000 {
            for _ in 0..answers {
                guard.write_all(&answer).await.unwrap();
                client.read_exact(&mut read[..answer.len()]).await.unwrap();
            }
            client.write_all(&reset).await.unwrap();
            if guard.read_exact(&mut read[..reset.len()]).await.is_err() {
                return done;
            }
        }
        10_000
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_only_cancels_is_stopped_and_has_more_after_a_while() {
        let mut connection = guarded().await;
        assert_eq!(cancel(&mut connection, 0).await, ALLOWED as usize);
        tokio::time::advance(Duration::from_secs(10)).await;
        let later = cancel(&mut connection, 0).await;
        assert!((990..1010).contains(&later), "{later}");
    }

    #[tokio::test(start_paused = true)]
    async fn every_other_call_may_be_cancelled() {
        assert_eq!(cancel(&mut guarded().await, 1).await, 10_000);
    }

    #[tokio::test]
    async fn reading_pauses_where_many_calls_begin() {
        let (server, mut client) = duplex(1 << 20);
        let mut guard = CallGuard::new(server, SocketAddr::from(([127, 0, 0, 1], 1)));
        client.write_all(&[1; PREFACE_LEN]).await.unwrap();
        for _ in 0..400 {
            client.write_all(&frame(200, HEADERS, 0)).await.unwrap();
        }
        drop(client);
        let pause = guard.pause();
        let mut reads = vec![0];
        let mut buffer = [0; 1024];
        let turns = poll_fn(|cx| {
            // As the HTTP/2 layer does, which reads again after each call that it hands over.
            for _ in 0..100 {
                let mut buffer = ReadBuf::new(&mut buffer);
                match Pin::new(&mut guard).poll_read(cx, &mut buffer) {
                    Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Poll::Ready(()),
                    Poll::Ready(read) => *reads.last_mut().unwrap() += read.map_or(0, |()| 1),
                    Poll::Pending => {}
                }
            }
            reads.push(0);
            Poll::Pending
        });
        pause.end_at_each_turn(turns).await;
        assert_eq!(reads, [17, 17, 17, 17, 14]);
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let sent = [
            vec![1; PREFACE_LEN],
            frame(0, 4, 1),
            frame(30, 1, 4),
            frame(4, 3, 0),
        ]
        .concat();
        for cut in 1..sent.len() {
            let mut frames = Frames::after(PREFACE_LEN);
            let mut found = Vec::new();
            for mut piece in sent.chunks(cut) {
                while let Some(frame) = frames.next(&mut piece) {
                    found.push(frame);
                }
            }
            assert_eq!(found, [(4, 1), (1, 4), (3, 0)], "in pieces of {cut}");
        }
    }
}
