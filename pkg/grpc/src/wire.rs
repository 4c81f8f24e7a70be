//! The bytes of a connection between the socket and the HTTP/2 layer.
//!
//! Written frames are gathered, since each of 16 KiB would be a system call otherwise. The layer flushes after every
//! frame, so its flushes say nothing. Gathered bytes go out when there are enough of them, and when the connection
//! has nothing more to send for now: the future that drives it is wrapped. Copying costs a quarter of the saved
//! system calls.
//!
//! Frames are counted on their way, by [`CallCount`]. Where a client begins many calls at once, reading pauses until
//! the connection's task runs again, so that these calls are accepted or refused first: the HTTP/2 layer reads
//! everything that has arrived before it hands over the next call, and compressed headers may take a hundred times as
//! much memory as they did on the wire.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use gorego_limits::LogLimit;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::warn;

use crate::{frames::CallCount, greeting::PREFACE};

/// The bytes gathered before a write: four frames with their headers, which stay in the CPU's cache.
const ENOUGH: usize = 68 * 1024;
/// The largest buffer, in bytes, that a connection keeps when it has nothing left to send.
const KEPT: usize = 4 * 1024;
/// The bytes of headers after which reading pauses.
const HEADERS_AT_ONCE: usize = 16 * 1024;

/// A connection whose client has shown that it speaks HTTP/2. Clones share the connection.
#[derive(Debug)]
pub(crate) struct Wire<S>(Arc<Mutex<WireState<S>>>);

#[derive(Debug)]
struct WireState<S> {
    stream: S,
    peer: SocketAddr,
    /// The rest of the preface, which the greeting has taken off the stream and the HTTP/2 layer reads.
    unread: &'static [u8],
    calls: CallCount,
    /// True while reading pauses.
    paused: bool,
    gathered: Vec<u8>,
    /// The length of the written part of `gathered`.
    written: usize,
}

impl<S> Clone for Wire<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Wire<S> {
    pub(crate) fn new(stream: S, peer: SocketAddr) -> Self {
        Self(Arc::new(Mutex::new(WireState {
            stream,
            peer,
            unread: PREFACE,
            calls: CallCount::new(),
            paused: false,
            gathered: Vec::new(),
            written: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, WireState<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    /// Drives `connection`, which reads from and writes to a clone of this: ends the pause in reading before each
    /// turn, and writes out the gathered bytes after it.
    pub(crate) async fn drive<T, E: From<io::Error>>(
        self,
        connection: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let mut connection = pin!(connection);
        poll_fn(|cx| {
            self.lock().paused = false;
            let polled = connection.as_mut().poll(cx);
            match self.lock().poll_write_out(cx) {
                Poll::Ready(Err(error)) if polled.is_pending() => Poll::Ready(Err(error.into())),
                _ => polled,
            }
        })
        .await
    }
}

impl<S: AsyncRead + Unpin> WireState<S> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let len = self.unread.len().min(buffer.remaining());
            let (now, later) = self.unread.split_at_checked(len).unwrap_or_default();
            buffer.put_slice(now);
            self.unread = later;
            return Poll::Ready(Ok(()));
        }
        if self.calls.headers > HEADERS_AT_ONCE {
            self.calls.headers = 0;
            self.paused = true;
            cx.waker().wake_by_ref();
        }
        if self.paused {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_pending() {
            self.calls.headers = 0;
        }
        ready!(read)?;
        let arrived = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(if self.calls.received(arrived) {
            Ok(())
        } else {
            Err(self.too_many_cancelled())
        })
    }

    fn too_many_cancelled(&self) -> io::Error {
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

impl<S: AsyncWrite + Unpin> WireState<S> {
    /// Writes all gathered bytes.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.gathered.get(self.written..)
            && !rest.is_empty()
        {
            let len = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if len == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += len;
        }
        self.written = 0;
        self.gathered.clear();
        // There may be thousands of connections that send nothing more.
        self.gathered.shrink_to(KEPT);
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = slices.iter().map(|slice| slice.len()).sum();
        let mut taken = len;
        if self.gathered.len() + len > ENOUGH {
            ready!(self.poll_write_out(cx))?;
        }
        if len >= ENOUGH {
            taken = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        } else if len > KEPT {
            self.gathered.reserve_exact(ENOUGH - self.gathered.len());
        }
        let mut left = taken;
        for slice in slices {
            let slice = slice.get(..left.min(slice.len())).unwrap_or_default();
            left -= slice.len();
            self.calls.sent(slice);
            if len < ENOUGH {
                self.gathered.extend_from_slice(slice);
            }
        }
        Poll::Ready(Ok(taken))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.lock().poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lock().poll_write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.lock().poll_write(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing: [`Wire::drive`] writes out the gathered bytes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.lock();
        ready!(wire.poll_write_out(cx))?;
        Pin::new(&mut wire.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
