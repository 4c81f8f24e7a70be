use std::fmt;

use crate::sources::Places;
use crate::value::{Raw, Value};

/// A value that is one of a few names.
pub(crate) trait Choice: Copy + PartialEq + 'static {
    /// The names and the values that they stand for.
    const NAMES: &'static [(&'static str, Self)];

    fn name(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(_, choice)| *choice == self);
        found.map_or("", |(name, _)| name)
    }

    fn names(separator: &str) -> String {
        let names: Vec<_> = Self::NAMES.iter().map(|(name, _)| *name).collect();
        names.join(separator)
    }
}

impl<T: Choice> Value for T {
    fn kind() -> String {
        format!("`{}`", Self::names("`, `"))
    }

    fn accepts() -> String {
        format!("one of {}", Self::names(", "))
    }

    fn parse(raw: &Raw, _: &Places) -> Option<Self> {
        let text = raw.word()?;
        let found = Self::NAMES
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(text));
        found.map(|(_, choice)| *choice)
    }

    fn render(&self) -> String {
        self.name().to_owned()
    }
}

impl<T: Choice> Value for Vec<T> {
    const TAKES_EMPTY: bool = true;

    fn kind() -> String {
        format!("list of {}", T::kind())
    }

    fn accepts() -> String {
        format!("a list of {}", T::names(", "))
    }

    fn parse(raw: &Raw, places: &Places) -> Option<Self> {
        let items: Vec<String> = Value::parse(raw, places)?;
        let item = |item: String| T::parse(&Raw::Text(item), places);
        items.into_iter().map(item).collect()
    }

    fn render(&self) -> String {
        let names: Vec<_> = self.iter().map(|choice| choice.name()).collect();
        format!("[{}]", names.join(", "))
    }
}

macro_rules! choice {
    (
        $(#[doc = $about:literal])+
        $name:ident { $( $(#[doc = $doc:literal])+ $variant:ident = $text:literal, )+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $( $(#[doc = $doc])+ $variant, )+
        }

        impl Choice for $name {
            const NAMES: &'static [(&'static str, Self)] = &[$( ($text, Self::$variant), )+];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

choice! {
    /// The client certificates that are required (`tls.client_auth`).
    ClientAuth {
        /// None.
        None = "none",
        /// The same as `None`: a certificate would be requested but not verified.
        Request = "request",
        /// Any certificate, unverified. Refused, since that authenticates no client.
        Require = "require",
        /// Clients without a certificate are accepted; certificates that are shown must be trusted.
        VerifyIfGiven = "verify_if_given",
        /// Every client needs a trusted certificate.
        RequireAndVerify = "require_and_verify",
    }
}

choice! {
    /// The behavior while the backing cache is down (`backing_cache.on_outage`).
    OnOutage {
        /// Requests that need the backing cache fail.
        Fail = "fail",
        /// Reads are misses, and writes wait.
        Degrade = "degrade",
    }
}

choice! {
    /// The sync to disk before a write is acknowledged (`local_cache.sync`).
    Sync {
        /// None: a power failure may lose recent blobs, but corrupt ones are never served.
        None = "none",
        /// Of the file's content.
        Data = "data",
        /// Of the content and the directory entry.
        Full = "full",
    }
}

choice! {
    /// A digest function whose hashes have 64 digits (`limits.inferred_functions`).
    InferredFunction {
        /// SHA-256.
        Sha256 = "sha256",
        /// BLAKE3.
        Blake3 = "blake3",
    }
}

choice! {
    /// The way in which a node finds the others (`cluster.discovery_mode`).
    DiscoveryMode {
        /// A list of addresses.
        List = "list",
        /// The addresses of a DNS name.
        Dns = "dns",
    }
}

choice! {
    /// The compression on the way to and from the backing cache (`backing_cache.compression`).
    Compression {
        /// None.
        None = "none",
        /// Zstandard.
        Zstd = "zstd",
    }
}

choice! {
    /// The lowest level of messages that are logged (`log_level`).
    LogLevel {
        /// Failures.
        Error = "error",
        /// Also failures that gorego worked around.
        Warn = "warn",
        /// Also events of interest to an operator.
        Info = "info",
        /// Also details that help to find a fault.
        Debug = "debug",
        /// All messages.
        Trace = "trace",
    }
}
