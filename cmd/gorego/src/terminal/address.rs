//! The address of a running gorego's page.

use std::{fmt, net::IpAddr};

use gorego_config::{Config, ListenAddr};
use http::{Uri, uri::Scheme};

const KEY: &str = "telemetry.metrics_addr";
/// The port of a URL without one.
const HTTP: u16 = 80;

/// The address of a running gorego's page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// A name or an address, IPv6 without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Address {
    /// Reads the value of `--url`.
    pub(super) fn from_url(url: &str) -> Result<Self, String> {
        parse(url).ok_or_else(|| {
            format!(
                "--url {}: not the address of a page; accepted: http://host:port, without a user or a \
                 path, since {KEY} serves no TLS",
                url.escape_debug()
            )
        })
    }

    /// Returns the address that a gorego with this configuration serves.
    pub(super) fn configured(config: &Config) -> Result<Self, String> {
        match &config.telemetry.metrics_addr {
            None => Err(format!(
                "{KEY} is empty, so that no page is served; set it, or name the page of another gorego \
                 with --url"
            )),
            Some(ListenAddr { port: 0, .. }) => Err(format!(
                "{KEY} leaves the port to the system; name the page with --url, as gorego printed it at \
                 the start"
            )),
            Some(listens) => Ok(Self {
                host: reachable(listens.host.as_deref()),
                port: listens.port,
            }),
        }
    }

    /// Returns the value of the `Host` header.
    pub(super) fn host_header(&self) -> String {
        // A zone has a meaning on this machine alone.
        let host = self.host.split('%').next().unwrap_or_default();
        if host.contains(':') {
            format!("[{host}]:{}", self.port)
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.host_header())
    }
}

fn parse(url: &str) -> Option<Address> {
    let uri: Uri = url.parse().ok()?;
    let authority = uri.authority()?;
    let is_page = uri.scheme() == Some(&Scheme::HTTP)
        && matches!(uri.path_and_query()?.as_str(), "" | "/")
        && !authority.as_str().contains('@');
    let port = match authority.port() {
        Some(port) => port.as_str().parse().ok().filter(|port| *port > 0)?,
        // Text between the host and the path that is not a port makes the address invalid.
        None => Some(HTTP).filter(|_| authority.host() == authority.as_str())?,
    };
    let host = authority.host();
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None => host,
    };
    (is_page && !host.is_empty()).then(|| Address {
        host: host.to_owned(),
        port,
    })
}

/// Returns a name of a host that listens on `host`: all interfaces include that of `localhost`.
pub(crate) fn reachable(host: Option<&str>) -> String {
    let host = host.unwrap_or_default();
    let address = host.parse::<IpAddr>();
    if host.is_empty() || address.is_ok_and(|address| address.is_unspecified()) {
        return "localhost".to_owned();
    }
    host.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(host: Option<&str>, port: u16) -> Result<String, String> {
        let mut config = Config::default();
        config.telemetry.metrics_addr = Some(ListenAddr {
            host: host.map(str::to_owned),
            port,
        });
        Address::configured(&config).map(|address| address.to_string())
    }

    #[test]
    fn all_interfaces_are_reached_as_localhost() {
        for host in [None, Some("0.0.0.0"), Some("::")] {
            assert_eq!(configured(host, 9090).unwrap(), "http://localhost:9090");
        }
        assert_eq!(configured(Some("::1"), 1).unwrap(), "http://[::1]:1");
        let zoned = configured(Some("fe80::1%eth0"), 1).unwrap();
        assert_eq!(zoned, "http://[fe80::1]:1");
    }

    #[test]
    fn an_address_that_is_not_known_is_an_error_that_names_the_key() {
        let mut config = Config::default();
        config.telemetry.metrics_addr = None;
        let empty = Address::configured(&config).unwrap_err();
        let chosen = configured(Some("localhost"), 0).unwrap_err();
        for why in [empty, chosen] {
            assert!(why.starts_with(KEY) && why.contains("--url"), "{why}");
        }
    }

    #[test]
    fn urls_name_a_host_and_a_port() {
        for (url, text) in [
            ("http://localhost:9090", "http://localhost:9090"),
            ("http://localhost:9090/", "http://localhost:9090"),
            ("HTTP://cache.example.com", "http://cache.example.com:80"),
            ("http://[::1]:9090", "http://[::1]:9090"),
        ] {
            assert_eq!(Address::from_url(url).unwrap().to_string(), text);
        }
        for url in [
            "",
            "localhost:9090",
            "https://localhost:9090",
            "http://",
            "http://:9090",
            "http://localhost:",
            "http://localhost:0",
            "http://localhost:99999",
            "http://localhost:9090/metrics",
            "http://localhost:9090/?a",
            "http://user:secret@localhost:9090",
            "http://local\u{1b}[31mhost",
        ] {
            let why = Address::from_url(url).unwrap_err();
            assert!(why.contains("accepted: http://host:port"), "{why}");
            assert!(!why.contains('\u{1b}'), "{why}");
        }
    }
}
