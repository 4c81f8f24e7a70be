//! A bound on the calls that a client makes only to cancel them.
//!
//! Cancelling is cheap for a client, and a call that is cancelled no longer counts as one of those that it may
//! have at a time. The HTTP/2 layer bounds what waits for it, but not what was cancelled over time,
//! and tells nobody. So the frames of the client are counted on their way to it.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Duration, Instant},
};

use tracing::warn;

use crate::seldom::Seldom;

/// The calls that a client may have cancelled beyond those that were answered. Bazel has up to 100 at
/// a time on a connection, what multiplexes clients up to 256: it may cancel all of them several
/// times in a row.
const ALLOWED: u32 = 2048;
/// Cancelled calls that are forgiven each second.
const FORGIVEN: u32 = 100;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
/// The length in bytes of what precedes each frame, and of what precedes the first.
const HEADER_LEN: usize = 9;
const PREFACE_LEN: usize = 24;

/// A connection that fails once its client has cancelled too many calls and waited for too few.
#[derive(Debug)]
pub(crate) struct ResetGuard<S> {
    stream: S,
    peer: Option<SocketAddr>,
    frames: Frames,
    cancelled: Cancelled,
}

impl<S> ResetGuard<S> {
    /// Guards a connection from its preface on.
    pub(crate) fn new(stream: S, peer: Option<SocketAddr>) -> Self {
        Self {
            stream,
            peer,
            frames: Frames {
                skip: PREFACE_LEN,
                header: [0; HEADER_LEN],
                len: 0,
            },
            cancelled: Cancelled {
                calls: 0,
                since: Instant::now(),
            },
        }
    }

    /// The end of a connection whose client does little but cancel.
    fn refuse(&self) -> io::Error {
        static WARNING: Seldom = Seldom::new();
        if WARNING.is_due() {
            let peer = self.peer.map(|peer| peer.to_string()).unwrap_or_default();
            warn!(
                peer,
                "connection closed: its client cancels nearly all of its calls; if it is a proxy,                  give it more connections; further ones are not logged for a minute"
            );
        }
        io::Error::other("too many cancelled calls")
    }
}

/// The frames of a connection, found by their headers.
#[derive(Debug)]
struct Frames {
    /// How many bytes come before the next header.
    skip: usize,
    /// The beginning of the next header.
    header: [u8; HEADER_LEN],
    /// Its length.
    len: usize,
}

impl Frames {
    /// The kind of the next frame that begins in these bytes, which are taken up to its content.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<u8> {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            *bytes = bytes.get(skipped..)?;
            let (byte, rest) = bytes.split_first()?;
            *self.header.get_mut(self.len)? = *byte;
            self.len += 1;
            *bytes = rest;
            if self.len == HEADER_LEN {
                let [l0, l1, l2, kind, ..] = self.header;
                self.skip = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
                self.len = 0;
                return Some(kind);
            }
        }
    }
}

/// Cancelled calls that were not made up for.
#[derive(Debug)]
struct Cancelled {
    calls: u32,
    /// The time up to which calls were forgiven.
    since: Instant,
}

impl Cancelled {
    /// Counts a frame of the client. False once there are too many cancelled calls.
    fn count(&mut self, kind: u8) -> bool {
        match kind {
            // A call makes up for one that was cancelled, unless it is cancelled, too.
            HEADERS => self.calls = self.calls.saturating_sub(1),
            RST_STREAM => {
                self.calls += 2;
                if self.calls > ALLOWED {
                    self.forgive();
                }
            }
            _ => {}
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

impl<S: AsyncRead + Unpin> AsyncRead for ResetGuard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut me.stream).poll_read(cx, buffer))?;
        let mut read = buffer.filled().get(before..).unwrap_or_default();
        while let Some(kind) = me.frames.next(&mut read) {
            if !me.cancelled.count(kind) {
                return Poll::Ready(Err(me.refuse()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ResetGuard<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
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
    use super::*;

    const ANSWERED: &[u8] = &[HEADERS];
    const CANCELLED: &[u8] = &[HEADERS, RST_STREAM];

    fn fresh() -> Cancelled {
        Cancelled {
            calls: 0,
            since: Instant::now(),
        }
    }

    /// The number of these calls that are allowed, up to a million.
    fn allowed(cancelled: &mut Cancelled, calls: &[&[u8]]) -> usize {
        let calls = calls.iter().copied().cycle().take(1_000_000);
        calls
            .take_while(|frames| frames.iter().all(|kind| cancelled.count(*kind)))
            .count()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_only_cancels_is_stopped_and_has_more_after_a_while() {
        let mut cancelled = fresh();
        let first = allowed(&mut cancelled, &[CANCELLED]);
        assert!((2000..2100).contains(&first), "{first}");
        tokio::time::advance(Duration::from_secs(10)).await;
        let later = allowed(&mut cancelled, &[CANCELLED]);
        assert!((990..1010).contains(&later), "{later}");
    }

    #[tokio::test(start_paused = true)]
    async fn every_other_call_may_be_cancelled() {
        let all = allowed(&mut fresh(), &[ANSWERED, CANCELLED]);
        assert_eq!(all, 1_000_000);
    }

    #[tokio::test]
    async fn frames_are_found_however_they_are_cut() {
        let frame = |len: u8, kind| {
            let header = [0, 0, len, kind, 0, 0, 0, 0, 1];
            // The content looks like frames of another kind.
            [header.as_slice(), &vec![RST_STREAM; len.into()]].concat()
        };
        let sent = [vec![1; PREFACE_LEN], frame(0, 4), frame(30, 1), frame(4, 3)].concat();
        for cut in 1..sent.len() {
            let mut frames = ResetGuard::new((), None).frames;
            let mut found = Vec::new();
            for mut piece in sent.chunks(cut) {
                while let Some(kind) = frames.next(&mut piece) {
                    found.push(kind);
                }
            }
            assert_eq!(found, [4, 1, 3], "in pieces of {cut}");
        }
    }
}
