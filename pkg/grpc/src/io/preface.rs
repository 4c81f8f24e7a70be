//! A connection's bytes, the first of which were read ahead of the HTTP/2 layer.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use crate::greeting::TLS_HANDSHAKE;

/// What an HTTP/2 client says first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose client has shown that it speaks HTTP/2.
#[derive(Debug)]
pub(crate) struct Prefaced<S> {
    stream: S,
    /// Of the preface, what the HTTP/2 layer has not read yet.
    unread: &'static [u8],
}

/// A connection that does not begin with the preface.
#[derive(Debug)]
pub(crate) enum NoPreface<S> {
    /// It ended or failed before it sent anything else.
    Lost(io::Error),
    /// It begins with bytes of another protocol.
    Speaks(Protocol, S),
}

/// The protocol of a client that does not speak HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Tls,
    Unknown,
}

impl Protocol {
    /// Guesses by the first bytes, of which there may be few.
    fn of(first: &[u8]) -> Self {
        let method = first.split(|byte| *byte == b' ').next();
        match (first, method) {
            ([TLS_HANDSHAKE, ..], _) => Self::Tls,
            (_, Some([_, ..])) if method.is_some_and(|m| m.iter().all(u8::is_ascii_uppercase)) => {
                Self::Http1
            }
            _ => Self::Unknown,
        }
    }
}

impl<S: AsyncRead + Unpin> Prefaced<S> {
    /// Waits for the preface. Anything else is an error as soon as it differs.
    pub(crate) async fn expect(mut stream: S) -> Result<Self, NoPreface<S>> {
        let mut preface = [0; PREFACE.len()];
        let mut len = 0;
        while let Some(rest @ [_, ..]) = preface.get_mut(len..) {
            len += match stream.read(rest).await {
                Ok(0) => return Err(NoPreface::Lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => read,
                Err(error) => return Err(NoPreface::Lost(error)),
            };
            let arrived = preface.get(..len).unwrap_or_default();
            if !PREFACE.starts_with(arrived) {
                return Err(NoPreface::Speaks(Protocol::of(arrived), stream));
            }
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
        for (sent, expected) in [
            (b"G".as_slice(), Protocol::Http1),
            (b"PUT /ac/", Protocol::Http1),
            (b"OPTIONS * HTTP/1.1\r\n", Protocol::Http1),
            (b"\x16\x03\x01\x02", Protocol::Tls),
            (b"SSH-2.0-OpenSSH", Protocol::Unknown),
            (b" ", Protocol::Unknown),
            (b"\0", Protocol::Unknown),
        ] {
            let (mut client, server) = tokio::io::duplex(64);
            client.write_all(sent).await.unwrap();
            match Prefaced::expect(server).await.unwrap_err() {
                NoPreface::Speaks(protocol, _) => assert_eq!(protocol, expected, "{sent:?}"),
                NoPreface::Lost(error) => panic!("{sent:?}: {error}"),
            }
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_within_the_preface_is_noticed() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"PRI *").await.unwrap();
        drop(client);
        match Prefaced::expect(server).await.unwrap_err() {
            NoPreface::Lost(error) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
            NoPreface::Speaks(protocol, _) => panic!("{protocol:?}"),
        }
    }
}
