//! Gathers what the HTTP/2 layer writes, which is a system call for each frame of 16 KiB otherwise.
//!
//! The layer flushes after each frame, so its flushes say nothing. What is gathered goes out when
//! there is enough of it, and whenever the connection has nothing more to say for now: the future
//! that drives it is wrapped. Copying costs a quarter of what the saved system calls do.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How many bytes are gathered: four frames with their headers, which stay in the CPU's cache.
const ENOUGH: usize = 68 * 1024;
/// The largest buffer, in bytes, that a connection keeps when it has nothing left to send.
const KEPT: usize = 4 * 1024;

/// A connection that writes in larger pieces.
#[derive(Debug)]
pub(crate) struct Coalesced<S> {
    shared: Arc<Mutex<Shared<S>>>,
}

#[derive(Debug)]
struct Shared<S> {
    stream: S,
    gathered: Vec<u8>,
    /// How much of that is written.
    written: usize,
}

impl<S> Clone for Coalesced<S> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<S: AsyncWrite + Unpin> Coalesced<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            shared: Arc::new(Mutex::new(Shared {
                stream,
                gathered: Vec::new(),
                written: 0,
            })),
        }
    }

    /// Drives `connection`, which writes to a clone of this, and writes out what it gathered.
    pub(crate) async fn drive<T, E: From<io::Error>>(
        self,
        connection: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let mut connection = pin!(connection);
        poll_fn(|cx| {
            let polled = connection.as_mut().poll(cx);
            match self.lock().poll_write_out(cx) {
                Poll::Ready(Err(error)) if polled.is_pending() => Poll::Ready(Err(error.into())),
                _ => polled,
            }
        })
        .await
    }
}

impl<S> Coalesced<S> {
    fn lock(&self) -> MutexGuard<'_, Shared<S>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Shared<S> {
    /// Writes everything that was gathered.
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

    fn poll_gather(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = slices.iter().map(|slice| slice.len()).sum();
        if self.gathered.len() + len > ENOUGH {
            ready!(self.poll_write_out(cx))?;
            if len >= ENOUGH {
                return Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
            }
        }
        if len > KEPT {
            self.gathered.reserve_exact(ENOUGH - self.gathered.len());
        }
        for slice in slices {
            self.gathered.extend_from_slice(slice);
        }
        Poll::Ready(Ok(len))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Coalesced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Coalesced<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lock().poll_gather(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.lock().poll_gather(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing yet: see the module.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.lock();
        ready!(shared.poll_write_out(cx))?;
        Pin::new(&mut shared.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    /// Counts the writes that reach it.
    struct Counting {
        stream: DuplexStream,
        writes: Arc<Mutex<Vec<usize>>>,
    }

    impl AsyncWrite for Counting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let len = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
            self.writes.lock().unwrap().push(len);
            Poll::Ready(Ok(len))
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }

    /// What arrives, and in which writes, when a connection writes these pieces and flushes each.
    async fn written(pieces: &[Vec<u8>], room: usize) -> (Vec<u8>, Vec<usize>) {
        let (stream, mut peer) = tokio::io::duplex(room);
        let writes = Arc::new(Mutex::new(Vec::new()));
        let coalesced = Coalesced::new(Counting {
            stream,
            writes: Arc::clone(&writes),
        });
        let mut io = coalesced.clone();
        let connection = async move {
            for piece in pieces {
                io.write_all(piece).await?;
                io.flush().await?;
            }
            // As a connection does that waits for requests.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            io.shutdown().await
        };
        let mut arrived = Vec::new();
        let (driven, read) =
            tokio::join!(coalesced.drive(connection), peer.read_to_end(&mut arrived));
        driven.unwrap();
        read.unwrap();
        let writes = writes.lock().unwrap().clone();
        (arrived, writes)
    }

    #[tokio::test]
    async fn small_writes_go_out_together() {
        let pieces = vec![vec![1; 100]; 20];
        let (arrived, writes) = written(&pieces, 1 << 20).await;
        assert_eq!(arrived, pieces.concat());
        assert_eq!(writes, [2000]);
    }

    #[tokio::test]
    async fn frames_go_out_a_few_at_a_time() {
        let pieces = vec![vec![1; 16 * 1024]; 16];
        let (arrived, writes) = written(&pieces, 1 << 20).await;
        assert_eq!(arrived, pieces.concat());
        assert_eq!(writes, [4 * 16 * 1024; 4]);
    }

    #[tokio::test]
    async fn a_peer_that_takes_little_at_a_time_gets_everything_in_order() {
        let pieces: Vec<_> = (0_u8..50).map(|byte| vec![byte; 7000]).collect();
        let (arrived, _) = written(&pieces, 1000).await;
        assert!(arrived == pieces.concat());
    }

    #[tokio::test]
    async fn a_large_write_is_not_copied() {
        let pieces = vec![vec![1; 10], vec![2; 2 * ENOUGH], vec![3; 10]];
        let (arrived, writes) = written(&pieces, 1 << 20).await;
        assert!(arrived == pieces.concat());
        assert_eq!(writes, [10, 2 * ENOUGH, 10]);
    }

    #[tokio::test]
    async fn what_was_said_goes_out_before_the_connection_has_to_say_more() {
        let (stream, mut peer) = tokio::io::duplex(1 << 20);
        let coalesced = Coalesced::new(stream);
        let mut io = coalesced.clone();
        let connection = async move {
            io.write_all(b"question").await?;
            let mut answer = [0; 6];
            io.read_exact(&mut answer).await?;
            Ok::<_, io::Error>(answer)
        };
        let client = async {
            let mut question = [0; 8];
            peer.read_exact(&mut question).await.unwrap();
            peer.write_all(b"answer").await.unwrap();
        };
        let (answer, ()) = tokio::join!(coalesced.drive(connection), client);
        assert_eq!(&answer.unwrap(), b"answer");
    }
}
