//! Why the server cannot start.

use std::{io, path::PathBuf};

/// Why the server cannot start. What goes wrong for one client is that client's `Status`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the TLS configuration cannot be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// A file of the TLS configuration does not hold what it should.
    #[error("{} holds no {expected} in PEM form: {why}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The certificate and the key do not make a server's identity.
    #[error("certificate {} with key {}: {source}", certificate.display(), key.display())]
    Identity {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
    /// The certificates that should vouch for clients cannot.
    #[error("certificate authorities in {}: {why}", path.display())]
    Authorities {
        /// Their file.
        path: PathBuf,
        /// What is wrong with them.
        why: String,
    },
    /// The descriptions for gRPC reflection do not fit together.
    #[error("describing the services: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}
