use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::percent_decode_str;

use crate::address::host_and_port;
use crate::headers::Header;
use crate::places::Places;
use crate::raw::{Raw, without_user};
use crate::value::Value;
use crate::yaml::quote;

/// The address of a server: `grpc://host:port`, `grpcs://host`, `host:port` or `unix:/path`. A user and
/// a password may precede the host; `Display` hides them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The address without scheme and user.
    pub address: TargetAddress,
    /// Whether the scheme requires TLS; `None` if there is no scheme.
    pub tls: Option<bool>,
    /// The basic `authorization` header made from the user and password.
    pub authorization: Option<Header>,
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
    /// Parses an address; `None` if it has none of the forms.
    pub fn from_text(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return path.starts_with('/').then(|| Self {
                address: TargetAddress::Unix(path.into()),
                tls: Some(false),
                authorization: None,
                text: text.to_owned(),
            });
        }
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let (separator, default_port, tls) = match scheme {
            "grpc" => ("://", Some(80), Some(false)),
            "grpcs" => ("://", Some(443), Some(true)),
            "" => ("", None, None),
            _ => return None,
        };
        let (user, host) = match rest.rsplit_once('@') {
            Some((user, host)) => (Some(basic(user)?), host),
            None => (None, rest),
        };
        let host = host.strip_suffix('/').unwrap_or(host);
        Some(Self {
            address: TargetAddress::Tcp(host_and_port(host, default_port)?),
            tls,
            authorization: user,
            text: format!("{scheme}{separator}{}", without_user(rest)),
        })
    }
}

/// Creates the header of RFC 7617 from `user:password`, both percent-encoded.
fn basic(text: &str) -> Option<Header> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let (user, password) = (decoded(user)?, decoded(password)?);
    if user.contains(':') || user.is_empty() && password.is_empty() {
        return None;
    }
    let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
    Some(Header {
        name: "authorization".to_owned(),
        value: format!("Basic {encoded}"),
    })
}

fn decoded(text: &str) -> Option<String> {
    let is_code = |code: &[u8; 2]| code.iter().all(u8::is_ascii_hexdigit);
    let mut codes = text.split('%').skip(1);
    let is_valid = codes.all(|rest| rest.as_bytes().first_chunk().is_some_and(is_code))
        && !text.contains(['/', '?', '#', '@']);
    let decoded = percent_decode_str(text).decode_utf8().ok()?;
    (is_valid && !decoded.contains(char::is_control)).then(|| decoded.into_owned())
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// An optional target; empty text stands for none.
impl Value for Option<Target> {
    const KIND: &'static str = "target or empty";
    const ACCEPTS: &'static str = "grpc://host:port, grpcs://host[:port], host:port, unix:/path or nothing; the host may \
        follow user:password@, with %XX for special characters";
    const TAKES_EMPTY: bool = true;

    fn from_word(word: &str, _: &Places) -> Option<Self> {
        if word.is_empty() {
            return Some(None);
        }
        Target::from_text(word).map(Some)
    }

    fn render(&self) -> String {
        quote(&self.as_ref().map(ToString::to_string).unwrap_or_default())
    }

    fn shown(raw: &Raw) -> String {
        match raw.word() {
            Some(text) if !text.contains("://") && !text.starts_with("unix:") => {
                quote(&without_user(text))
            }
            _ => raw.shown(),
        }
    }

    fn is_secret(&self) -> bool {
        let user = self.as_ref().map(|target| &target.authorization);
        user.is_some_and(Option::is_some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_targets_are_parsed() {
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
    fn a_user_and_a_password_become_a_header_that_is_not_shown() {
        for (text, plain, shown) in [
            (
                "grpcs://user:secret@cache:8980",
                "user:secret",
                "grpcs://<hidden>@cache:8980",
            ),
            (
                "user:s%2Fcr%C3%A9t%40@cache:8980",
                "user:s/crét@",
                "<hidden>@cache:8980",
            ),
            ("grpcs://token@cache/", "token:", "grpcs://<hidden>@cache/"),
        ] {
            let target = Target::from_text(text).unwrap();
            let value = format!("Basic {}", BASE64_STANDARD.encode(plain));
            assert_eq!(target.authorization.as_ref().unwrap().value, value);
            assert_eq!(target.to_string(), shown);
            let debug = format!("{target:?}");
            assert!(
                !debug.contains("secret") && !debug.contains("Basic"),
                "{debug}"
            );
        }
        let target = Target::from_text("unix:/run/a@b").unwrap();
        assert_eq!(
            (target.authorization, &*target.text),
            (None, "unix:/run/a@b")
        );
    }

    #[test]
    fn texts_other_than_targets_are_refused() {
        for text in [
            "cache",
            ":8980",
            "http://cache:80",
            "grpc://",
            "grpc://cache:0",
            "grpc://cache/instance",
            "grpc://@cache:80",
            "grpc://:@cache:80",
            "grpc://us%3Aer:secret@cache:80",
            "grpc://user:sec%2@cache:80",
            "grpc://user:sec%0Aret@cache:80",
            "grpc://user:sec/ret@cache:80",
            "grpc://user:secr@t@cache:80",
            "unix:cache.sock",
        ] {
            assert_eq!(Target::from_text(text), None, "{text}");
        }
    }
}
