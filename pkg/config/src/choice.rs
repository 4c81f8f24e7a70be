use std::fmt;

use crate::places::Places;
use crate::value::Value;

/// Declares a value that is one of a few names. Other names after `|` are accepted, but not shown.
macro_rules! choice {
    (
        $(#[doc = $about:literal])+
        $name:ident {
            $(#[doc = $first_doc:literal])* $first:ident = $first_text:literal $(| $first_alias:literal)*
            $(, $(#[doc = $doc:literal])* $variant:ident = $text:literal $(| $alias:literal)*)+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            #[doc = concat!("`", $first_text, "`.")] $(#[doc = $first_doc])* $first,
            $( #[doc = concat!("`", $text, "`.")] $(#[doc = $doc])* $variant, )+
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    Self::$first => $first_text,
                    $( Self::$variant => $text, )+
                })
            }
        }

        impl Value for $name {
            const KIND: &'static str = concat!("`", $first_text, "`" $(, ", `", $text, "`")+);
            const ACCEPTS: &'static str = concat!("one of ", $first_text $(, ", ", $text)+);
            const LIST: (&'static str, &'static str) = (
                concat!("list of `", $first_text, "`" $(, ", `", $text, "`")+),
                concat!("a list of ", $first_text $(, ", ", $text)+),
            );

            fn from_word(word: &str, _: &Places) -> Option<Self> {
                match word.to_ascii_lowercase().as_str() {
                    $first_text $(| $first_alias)* => Some(Self::$first),
                    $( $text $(| $alias)* => Some(Self::$variant), )+
                    _ => None,
                }
            }

            fn render(&self) -> String {
                self.to_string()
            }
        }
    };
}

choice! {
    /// The client certificates that are required (`tls.client_auth`).
    ClientAuth {
        /// No certificate is requested.
        None = "none",
        /// Counts as `None`.
        Request = "request",
        /// Refused, since it verifies nothing.
        Require = "require",
        /// A client without a certificate is accepted.
        VerifyIfGiven = "verify_if_given",
        /// Every client needs a trusted certificate.
        RequireAndVerify = "require_and_verify"
    }
}

choice! {
    /// The behavior while the backing cache is down (`backing_cache.on_outage`).
    OnOutage {
        /// Requests that need the backing cache fail.
        Fail = "fail",
        /// Reads are misses, and writes wait.
        Degrade = "degrade"
    }
}

choice! {
    /// The sync to disk before a write is acknowledged (`local_cache.sync`).
    Sync {
        /// A power failure may lose recent blobs.
        None = "none",
        /// Syncs the file's content.
        Data = "data",
        /// Syncs the content and the directory entry.
        Full = "full"
    }
}

choice! {
    /// A digest function whose hashes have 64 digits (`limits.inferred_functions`).
    InferredFunction { Sha256 = "sha256", Blake3 = "blake3" }
}

choice! {
    /// The way in which a node finds the others (`cluster.discovery_mode`).
    DiscoveryMode { List = "list", Dns = "dns" }
}

choice! {
    /// The work of a node (`cluster.role`).
    Role {
        /// It takes requests of clients.
        Node = "node",
        /// It only executes actions that other nodes hand over.
        Worker = "worker"
    }
}

choice! {
    /// The compression on the way to and from the backing cache (`backing_cache.compression`).
    Compression { None = "none", Zstd = "zstd" }
}

choice! {
    /// The clients that may see the page (`telemetry.ui`).
    Ui {
        /// No client.
        Off = "off" | "false" | "f" | "no" | "n" | "0",
        /// Clients on this machine.
        Local = "local",
        /// Every client.
        On = "on" | "true" | "t" | "yes" | "y" | "1"
    }
}

choice! {
    /// A feature that can be left to gorego (`execution.enabled`).
    Switch {
        /// On where it is safe.
        Auto = "auto",
        /// On.
        On = "true" | "on" | "t" | "yes" | "y" | "1",
        /// Off.
        Off = "false" | "off" | "f" | "no" | "n" | "0"
    }
}

choice! {
    /// The handling of actions that require a platform property that this node does not have
    /// (`execution.unknown_platform`).
    UnknownPlatform {
        /// They are refused.
        Reject = "reject",
        /// They are executed.
        Ignore = "ignore"
    }
}

choice! {
    /// The protocol of traces (`telemetry.tracing_protocol`).
    TracingProtocol {
        /// gRPC.
        Grpc = "grpc",
        /// Protobuf over HTTP.
        Http = "http"
    }
}

choice! {
    /// The lowest level of messages that are logged (`log_level`).
    LogLevel { Error = "error", Warn = "warn", Info = "info", Debug = "debug", Trace = "trace" }
}
