//! The network under a server: TCP, or a simulated one in tests.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};

/// A source of connections.
pub trait Listen: Send + Sync + 'static {
    /// A connection.
    type Socket: Socket;

    /// Waits for the next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Socket>> + Send;
}

/// A connection.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// Returns the address of the other side.
    fn peer_addr(&self) -> io::Result<SocketAddr>;

    /// Sends small messages without waiting for the acknowledgement of earlier ones.
    fn set_nodelay(&self) -> io::Result<()>;

    /// Waits for the next bytes and copies some of them without consuming them.
    fn peek(&mut self, buffer: &mut [u8]) -> impl Future<Output = io::Result<usize>> + Send;
}

impl Listen for TcpListener {
    type Socket = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = Self::accept(self).await?;
        Ok(stream)
    }
}

impl Socket for TcpStream {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Self::peer_addr(self)
    }

    fn set_nodelay(&self) -> io::Result<()> {
        Self::set_nodelay(self, true)
    }

    async fn peek(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Self::peek(self, buffer).await
    }
}
