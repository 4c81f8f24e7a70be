use std::fmt;

use crate::address::host_and_port;
use crate::places::Places;
use crate::value::Value;
use crate::yaml::quote;

/// The address of a collector of traces: `host:port`, `http://host[:port][/path]` or `https://...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `host:port`, IPv6 in brackets.
    pub address: String,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// The path before that of OTLP, without a slash at its end; often empty.
    pub path: String,
    text: String,
}

impl Endpoint {
    fn from_text(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let (default_port, tls) = match scheme {
            "" => (None, false),
            "http" => (Some(80), false),
            "https" => (Some(443), true),
            _ => return None,
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = path.trim_end_matches('/');
        let is_plain = |b: u8| b.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&b);
        if !path.bytes().all(is_plain) || (scheme.is_empty() && rest != authority) {
            return None;
        }
        Some(Self {
            address: host_and_port(authority, default_port)?,
            tls,
            path: path.to_owned(),
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// An optional endpoint; empty text stands for none.
impl Value for Option<Endpoint> {
    const KIND: &'static str = "endpoint or empty";
    const ACCEPTS: &'static str = "host:port (plain text), http://host[:port][/path], https://host[:port][/path] or \
        nothing; a token belongs to telemetry.tracing_headers";
    const TAKES_EMPTY: bool = true;

    fn from_word(word: &str, _: &Places) -> Option<Self> {
        if word.is_empty() {
            return Some(None);
        }
        Endpoint::from_text(word).map(Some)
    }

    fn render(&self) -> String {
        quote(&self.as_ref().map(ToString::to_string).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_parsed_with_and_without_a_scheme() {
        for (text, address, tls, path) in [
            ("otel.example.com:4317", "otel.example.com:4317", false, ""),
            ("[::1]:4317", "[::1]:4317", false, ""),
            ("http://otel:4318/", "otel:4318", false, ""),
            ("http://otel", "otel:80", false, ""),
            ("https://otel/otlp/v1/", "otel:443", true, "/otlp/v1"),
        ] {
            let endpoint = Endpoint::from_text(text).unwrap();
            let parts = (&*endpoint.address, endpoint.tls, &*endpoint.path);
            assert_eq!(parts, (address, tls, path), "{text}");
            assert_eq!(endpoint.to_string(), text);
        }
    }

    #[test]
    fn texts_other_than_endpoints_are_refused() {
        for text in [
            "otel",
            ":4317",
            "otel:0",
            "otel:4317/v1/traces",
            "grpc://otel:4317",
            "unix:/run/otel.sock",
            "http://",
            "https://token@otel",
            "http://otel/a b",
            "http://otel/?a=b",
        ] {
            assert_eq!(Endpoint::from_text(text), None, "{text}");
        }
    }
}
