//! The network of turmoil under links and servers.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use async_trait::async_trait;
use gorego_grpc::Listen;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

use crate::link::{Connect, Socket};

/// Opens connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Simulated;

#[async_trait]
impl Connect for Simulated {
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Socket>> {
        Ok(Box::new(TcpStream::connect(address).await?))
    }
}

/// Accepts connections.
pub(crate) struct Listener(pub(crate) TcpListener);

impl Listener {
    /// Listens on a port of the current host.
    pub(crate) async fn bind(port: u16) -> Self {
        Self(TcpListener::bind(("0.0.0.0", port)).await.unwrap())
    }
}

impl Listen for Listener {
    type Socket = Accepted;

    async fn accept(&self) -> io::Result<Accepted> {
        let (stream, _) = self.0.accept().await?;
        Ok(Accepted(stream))
    }
}

/// A connection that was accepted.
pub(crate) struct Accepted(TcpStream);

impl gorego_grpc::Socket for Accepted {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.0.peer_addr()
    }

    fn set_nodelay(&self) -> io::Result<()> {
        Ok(())
    }

    async fn peek(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.peek(buffer).await
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
