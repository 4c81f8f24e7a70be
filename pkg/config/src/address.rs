use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::number::all_digits;
use crate::places::Places;
use crate::value::Value;
use crate::yaml::quote;

/// A TCP address to listen on: `:50051`, `localhost:50051`, `10.0.0.1:50051`, `[::1]:50051`.
/// Port 0 lets the system choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddr {
    /// A host name or an address, IPv6 without brackets. `None` stands for all interfaces, of IPv6 and
    /// IPv4 if the host has both.
    pub host: Option<String>,
    /// The port; 0 for any free one.
    pub port: u16,
}

impl ListenAddr {
    /// Returns whether only programs on this machine can connect: `localhost`, or a loopback address.
    pub fn is_loopback(&self) -> bool {
        let is_loopback = |host: &str| {
            let address = host.parse::<IpAddr>();
            address.map_or(host.eq_ignore_ascii_case("localhost"), |ip| {
                ip.is_loopback()
            })
        };
        self.host.as_deref().is_some_and(is_loopback)
    }

    /// Parses a host, of IPv6 with or without brackets, for port 0.
    pub(crate) fn of_host(host: &str) -> Option<Self> {
        let bare = || Self::from_text(&format!("[{host}]:0"));
        Self::from_text(&format!("{host}:0"))
            .or_else(bare)
            .filter(|address| address.host.is_some())
    }

    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let port = Some(port).filter(|port| all_digits(port))?.parse().ok()?;
        // Rejects the hosts that `unix:` paths and IPv6 without brackets would have.
        let host = match host.strip_prefix('[') {
            Some(rest) => Some(rest.strip_suffix(']').filter(|host| is_ipv6(host))?),
            None if host.is_empty() => None,
            None => Some(Some(host).filter(|host| is_name(host))?),
        };
        Some(Self {
            host: host.map(str::to_owned),
            port,
        })
    }
}

/// Returns `host:port` of a server. Without a port in the text it is `default`, if there is one.
pub(crate) fn host_and_port(text: &str, default: Option<u16>) -> Option<String> {
    let with_default = || ListenAddr::from_text(&format!("{text}:{}", default?));
    let address = ListenAddr::from_text(text).or_else(with_default)?;
    (address.host.is_some() && address.port > 0).then(|| address.to_string())
}

/// Whether this is an IPv6 address, with or without a zone (`fe80::1%eth0`).
fn is_ipv6(host: &str) -> bool {
    let (address, zone) = host.split_once('%').unwrap_or((host, "0"));
    address.parse::<Ipv6Addr>().is_ok() && is_name(zone)
}

fn is_name(host: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !host.is_empty() && host.bytes().all(allowed)
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.as_deref() {
            Some(host) if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            host => write!(f, "{}:{}", host.unwrap_or_default(), self.port),
        }
    }
}

impl Value for ListenAddr {
    const KIND: &'static str = "address";
    const ACCEPTS: &'static str =
        ":port (all interfaces), host:port or [IPv6]:port; unix sockets are not supported";

    fn from_word(word: &str, _: &Places) -> Option<Self> {
        Self::from_text(word)
    }

    fn render(&self) -> String {
        quote(&self.to_string())
    }
}

/// An optional address; empty text stands for none.
impl Value for Option<ListenAddr> {
    const KIND: &'static str = "address or empty";
    const ACCEPTS: &'static str =
        ":port (all interfaces), host:port, [IPv6]:port or nothing; unix sockets are not supported";
    const TAKES_EMPTY: bool = true;

    fn from_word(word: &str, _: &Places) -> Option<Self> {
        if word.is_empty() {
            return Some(None);
        }
        ListenAddr::from_text(word).map(Some)
    }

    fn render(&self) -> String {
        quote(&self.as_ref().map(ToString::to_string).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_machine_are_loopback() {
        let is_loopback = |text| ListenAddr::from_text(text).unwrap().is_loopback();
        for text in ["localhost:1", "127.0.0.1:1", "127.1.2.3:1", "[::1]:1"] {
            assert!(is_loopback(text), "{text}");
        }
        for text in [":1", "0.0.0.0:1", "[::]:1", "10.0.0.1:1", "build.example:1"] {
            assert!(!is_loopback(text), "{text}");
        }
    }

    #[test]
    fn addresses_keep_host_and_port() {
        for (text, host, port) in [
            (":50051", None, 50051),
            ("localhost:0", Some("localhost"), 0),
            ("0.0.0.0:80", Some("0.0.0.0"), 80),
            ("[::1]:8080", Some("::1"), 8080),
            ("[fe80::1%eth0]:1", Some("fe80::1%eth0"), 1),
        ] {
            let address = ListenAddr::from_text(text).unwrap();
            assert_eq!((address.host.as_deref(), address.port), (host, port));
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn texts_other_than_tcp_addresses_are_refused() {
        for text in [
            "8080",
            "localhost",
            "localhost:",
            ":+80",
            ":65536",
            "::1:80",
            "[::1]",
            "[]:80",
            "[1.2.3.4]:80",
            "unix:/run/gorego.sock",
            "unix:///a:1",
            "a b:80",
            "http://localhost:80",
        ] {
            assert_eq!(ListenAddr::from_text(text), None, "{text}");
        }
    }
}
