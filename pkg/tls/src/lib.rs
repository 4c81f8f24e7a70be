//! TLS on both sides: reads certificates, keys and authorities from files, and decides which peers
//! are trusted.

mod certificate;
mod client;
mod error;
mod files;
mod server;
mod verify;

use std::{fmt, sync::Arc};

pub use certificate::{ACCEPTED_KEYS, Certificate, Flaw};
pub use client::{ClientFiles, ClientTls};
pub use error::Error;
pub use server::{ClientAuth, ServerFiles, ServerTls};
pub use verify::describe;

/// The protocol that both sides agree on during the handshake: gRPC is spoken over nothing else.
pub const HTTP2: &[u8] = b"h2";

/// One side's TLS, ready for use.
#[derive(Clone)]
pub struct Loaded<C> {
    /// Settings for new connections.
    pub config: Arc<C>,
    /// The certificates in the files that they come from.
    pub certificates: Vec<Certificate>,
}

impl<C> fmt::Debug for Loaded<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("certificates", &self.certificates)
            .finish_non_exhaustive()
    }
}
