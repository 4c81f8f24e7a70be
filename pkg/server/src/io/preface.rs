//! A connection's bytes, the first of which were read ahead of the HTTP/2 layer.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// What an HTTP/2 client says first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose client has shown that it speaks HTTP/2.
#[derive(Debug)]
pub(crate) struct Prefaced<S> {
    stream: S,
    /// Of the preface, what the HTTP/2 layer has not read yet.
    unread: &'static [u8],
}

impl<S: AsyncRead + Unpin> Prefaced<S> {
    /// Waits for the preface. Anything else is an error as soon as it differs.
    pub(crate) async fn expect(mut stream: S) -> io::Result<Self> {
        let mut preface = [0; PREFACE.len()];
        let mut rest = preface.as_mut_slice();
        let mut expected = PREFACE.as_slice();
        while !rest.is_empty() {
            let len = stream.read(rest).await?;
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (arrived, missing) = rest.split_at_mut_checked(len).unwrap_or_default();
            expected = expected.strip_prefix(&*arrived).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "the client speaks no HTTP/2")
            })?;
            rest = missing;
        }
        Ok(Self {
            stream,
            unread: PREFACE,
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefaced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.unread.is_empty() {
            return Pin::new(&mut me.stream).poll_read(cx, buffer);
        }
        let len = me.unread.len().min(buffer.remaining());
        let (now, later) = me.unread.split_at_checked(len).unwrap_or_default();
        buffer.put_slice(now);
        me.unread = later;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefaced<S> {
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
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn the_preface_is_read_again_and_what_follows_once() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(PREFACE).await.unwrap();
        client.write_all(b"frames").await.unwrap();
        drop(client);
        let mut read = Vec::new();
        let mut prefaced = Prefaced::expect(server).await.unwrap();
        prefaced.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, [PREFACE.as_slice(), b"frames"].concat());
    }

    #[tokio::test]
    async fn another_protocol_is_noticed_at_its_first_bytes() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"GET").await.unwrap();
        let error = Prefaced::expect(server).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_client_that_leaves_within_the_preface_is_noticed() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"PRI *").await.unwrap();
        drop(client);
        let error = Prefaced::expect(server).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
