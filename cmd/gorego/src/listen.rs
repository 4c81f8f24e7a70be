//! The listening socket.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use gorego_config::ListenAddr;
use tokio::net::{TcpListener, TcpSocket, lookup_host};

/// Connections that the system completes before they are accepted.
const BACKLOG: u32 = 1024;

/// Listens where the configuration says. All interfaces means IPv6 and IPv4 where the host has
/// both, else what it has.
pub(crate) async fn listen(address: &ListenAddr) -> io::Result<TcpListener> {
    let Some(host) = &address.host else {
        return match bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port))) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port)))
            }
            bound => bound,
        };
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for resolved in lookup_host((host.as_str(), address.port)).await? {
        match bind(resolved) {
            Ok(listener) => return Ok(listener),
            // Whoever has the port answers on one of the addresses that clients will try.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() {
        TcpSocket::new_v6()?
    } else {
        TcpSocket::new_v4()?
    };
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        // Not left to a system setting: all interfaces means IPv4 too.
        rustix::net::sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_busy_port_is_an_error_and_not_another_address() {
        // A name may have several addresses.
        for host in ["127.0.0.1", "localhost"] {
            let local = ListenAddr {
                host: Some(host.to_owned()),
                port: 0,
            };
            let first = listen(&local).await.unwrap();
            let port = first.local_addr().unwrap().port();
            let second = listen(&ListenAddr { port, ..local }).await;
            assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
    }
}
