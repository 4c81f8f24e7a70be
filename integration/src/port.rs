//! Ports of loopback that no other program gets.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use tokio::net::{TcpListener, TcpSocket};

/// A bound socket that does not listen: it keeps the port from all others that let the system choose one. Connections
/// are refused until a server listens there.
#[derive(Debug)]
pub(crate) struct Reservation {
    address: SocketAddr,
    _socket: TcpSocket,
}

impl Reservation {
    /// Reserves a port of an address; any free one if its port is 0.
    pub(crate) fn new(address: SocketAddr) -> io::Result<Self> {
        let socket = bind(address)?;
        Ok(Self {
            address: socket.local_addr()?,
            _socket: socket,
        })
    }

    /// Reserves a free port of 127.0.0.1.
    pub(crate) fn any() -> Self {
        let reserved = Self::new((Ipv4Addr::LOCALHOST, 0).into());
        reserved.unwrap_or_else(|e| panic!("reserving a port: {e}"))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Listens on the port in this process.
    pub(crate) fn listen(&self) -> TcpListener {
        let listener = bind(self.address).and_then(|socket| socket.listen(1024));
        listener.unwrap_or_else(|e| panic!("listening on {}: {e}", self.address))
    }
}

/// Binds a socket to a port that others may listen on if they set `SO_REUSEADDR`, as servers do.
fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}
