//! The sockets under the links, which tests replace.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use async_trait::async_trait;
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream, lookup_host},
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

/// The bytes that the system buffers on the way to a peer. By default it buffers megabytes, which would delay gossip on
/// a slow network.
const SEND_BUFFER: u32 = 128 * 1024;

/// Opens TCP connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

#[async_trait]
impl Connect for Tcp {
    async fn connect(&self, address: &str) -> io::Result<Box<dyn Socket>> {
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for address in lookup_host(address).await? {
            match connect(address).await {
                Ok(stream) => return Ok(Box::new(stream)),
                Err(why) => failure = why,
            }
        }
        Err(failure)
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection for the HTTP/2 client.
pub(crate) struct Established {
    pub(crate) socket: Box<dyn Socket>,
    /// The error of TLS, such as the refusal of this node's certificate after the handshake, which HTTP/2 does not
    /// report.
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
