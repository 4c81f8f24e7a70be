use std::fmt;

use crate::sources::Places;
use crate::value::{Raw, Value};

/// A value that is one of a few names.
pub(crate) trait Choice: Copy + PartialEq + 'static {
    /// Each name and what it stands for.
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
    /// What is asked of a client's certificate (`tls.client_auth`).
    ClientAuth {
        /// Nothing.
        None = "none",
        /// It is asked for, and not looked at: the same as `None`.
        Request = "request",
        /// Any certificate will do. Refused, since that authenticates nobody.
        Require = "require",
        /// A client without one is let in; one that has a wrong one is not.
        VerifyIfGiven = "verify_if_given",
        /// Only clients with a certificate of the given authority are let in.
        RequireAndVerify = "require_and_verify",
    }
}

choice! {
    /// What happens to requests while the backing cache is down (`backing_cache.on_outage`).
    OnOutage {
        /// They fail, and the client retries.
        Fail = "fail",
        /// Misses are misses, and writes are pending in an outbox.
        Degrade = "degrade",
    }
}

choice! {
    /// What a write waits for before it is acknowledged (`local_cache.sync`).
    Sync {
        /// Nothing: a power failure may lose recent blobs, but wrong bytes are never served.
        None = "none",
        /// The file's content is on the disk.
        Data = "data",
        /// Its directory entry is, too.
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
    /// How a node finds the others (`cluster.discovery_mode`).
    DiscoveryMode {
        /// They are listed.
        List = "list",
        /// They are the addresses of a name.
        Dns = "dns",
    }
}

choice! {
    /// How blobs travel to and from the backing cache (`backing_cache.compression`).
    Compression {
        /// As they are.
        None = "none",
        /// Compressed with zstd.
        Zstd = "zstd",
    }
}

choice! {
    /// The least important messages that are still logged (`log_level`).
    LogLevel {
        /// What failed and stays failed.
        Error = "error",
        /// What was worked around, too.
        Warn = "warn",
        /// What an operator wants to see, too.
        Info = "info",
        /// What helps to find a fault, too.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}
