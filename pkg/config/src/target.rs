use std::fmt;
use std::path::PathBuf;

use crate::ListenAddr;
use crate::sources::Places;
use crate::value::{Raw, Value};
use crate::yaml::quote;

/// Where a server is: `grpc://host:port`, `grpcs://host`, `host:port` or `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub address: TargetAddress,
    /// Whether the scheme asks for TLS; `None` where it leaves that open.
    pub tls: Option<bool>,
    text: String,
}

/// The address of a [`Target`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetAddress {
    /// `host:port`, IPv6 in brackets.
    Tcp(String),
    /// The absolute path of a socket.
    Unix(PathBuf),
}

impl Target {
    fn from_text(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let (address, tls) = match (scheme, text.strip_prefix("unix:")) {
            (_, Some(path)) => (socket(path)?, Some(false)),
            ("grpc", _) => (host_and_port(rest, Some(80))?, Some(false)),
            ("grpcs", _) => (host_and_port(rest, Some(443))?, Some(true)),
            ("", _) => (host_and_port(rest, None)?, None),
            _ => return None,
        };
        let text = text.to_owned();
        Some(Self { address, tls, text })
    }
}

fn socket(path: &str) -> Option<TargetAddress> {
    let path = path.strip_prefix("//").unwrap_or(path);
    path.starts_with('/')
        .then(|| TargetAddress::Unix(PathBuf::from(path)))
}

fn host_and_port(text: &str, default: Option<u16>) -> Option<TargetAddress> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let with_default = || ListenAddr::from_text(&format!("{text}:{}", default?));
    let address = ListenAddr::from_text(text).or_else(with_default)?;
    (address.host.is_some() && address.port > 0).then(|| TargetAddress::Tcp(address.to_string()))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A target that may be absent, which the empty text says.
impl Value for Option<Target> {
    const TAKES_EMPTY: bool = true;

    fn kind() -> String {
        "target or empty".to_owned()
    }

    fn accepts() -> String {
        "grpc://host:port, grpcs://host[:port], host:port, unix:/path or nothing".to_owned()
    }

    fn parse(raw: &Raw, _: &Places) -> Option<Self> {
        match raw.word()? {
            "" => Some(None),
            text => Target::from_text(text).map(Some),
        }
    }

    fn render(&self) -> String {
        quote(&self.as_ref().map(ToString::to_string).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_understood() {
        for (text, address, tls) in [
            ("grpc://cache:8980", "cache:8980", Some(false)),
            ("grpc://cache", "cache:80", Some(false)),
            (
                "grpcs://cache.example.com/",
                "cache.example.com:443",
                Some(true),
            ),
            ("grpcs://[::1]:9", "[::1]:9", Some(true)),
            ("10.0.0.1:9092", "10.0.0.1:9092", None),
        ] {
            let target = Target::from_text(text).unwrap();
            assert_eq!(target.address, TargetAddress::Tcp(address.to_owned()));
            assert_eq!(target.tls, tls, "{text}");
        }
        for text in ["unix:/run/cache.sock", "unix:///run/cache.sock"] {
            let target = Target::from_text(text).unwrap();
            let path = PathBuf::from("/run/cache.sock");
            assert_eq!(target.address, TargetAddress::Unix(path));
        }
    }

    #[test]
    fn what_names_no_server_is_refused() {
        for text in [
            "cache",
            ":8980",
            "http://cache:80",
            "grpc://",
            "grpc://cache:0",
            "grpc://cache/instance",
            "unix:cache.sock",
        ] {
            assert_eq!(Target::from_text(text), None, "{text}");
        }
    }
}
