//! The listening socket.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use gorego_config::ListenAddr;
use tokio::net::{TcpListener, TcpSocket, lookup_host};

/// The most connections that the system completes before they are accepted.
const BACKLOG: u32 = 1024;

/// Listens on the configured address. All interfaces means those of IPv6 and IPv4 if the host has both.
pub(crate) async fn listen(address: &ListenAddr) -> io::Result<TcpListener> {
    let port = address.port;
    let addresses = match &address.host {
        Some(host) => lookup_host((host.as_str(), port)).await?.collect(),
        None => vec![
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        ],
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for resolved in addresses {
        match bind(resolved) {
            Ok(listener) => return Ok(listener),
            // Otherwise clients that try this address reach the other program.
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
        // Independent of the system's default: all interfaces include those of IPv4.
        rustix::net::sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_an_error_even_if_the_host_has_other_addresses() {
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
