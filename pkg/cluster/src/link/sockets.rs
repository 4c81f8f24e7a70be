//! The sockets under the links, which tests replace.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use async_trait::async_trait;
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// A connection.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Socket for S {}

/// A way to open connections.
#[async_trait]
pub trait Connect: fmt::Debug + Send + Sync + 'static {
    /// Opens a connection to `host:port`.
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Socket>>;
}

/// Opens TCP connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

#[async_trait]
impl Connect for Tcp {
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Socket>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// A connection for the HTTP/2 client.
pub(crate) struct Established {
    pub(crate) socket: Box<dyn Socket>,
    /// The error of TLS, such as the refusal of this node's certificate after the handshake, which HTTP/2 does not
    /// return.
    pub(crate) tls_error: Arc<OnceLock<rustls::Error>>,
}

impl Connection for Established {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Established {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.socket).poll_read(cx, buffer);
        if let Poll::Ready(Err(error)) = &read
            && let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref())
        {
            let _ = self.tls_error.set(rustls::Error::clone(error));
        }
        read
    }
}

impl AsyncWrite for Established {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
