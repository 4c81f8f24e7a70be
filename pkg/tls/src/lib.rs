//! TLS for servers and clients: reads certificates, keys and authorities from files, and verifies
//! peers.

mod certificate;
mod client;
mod cluster;
mod error;
mod files;
mod server;
mod verify;

use std::sync::Arc;

pub use certificate::{ACCEPTED_KEYS, Certificate};
pub use client::{ClientFiles, ClientTls};
pub use cluster::{ClusterFiles, ClusterTls, NodeIdentity, is_name, is_wrong_node};
pub use error::Error;
pub use server::{ClientAuth, ServerFiles, ServerTls};
pub use verify::describe;

/// The ALPN protocol, the only one that carries gRPC.
pub const HTTP2: &[u8] = b"h2";

/// TLS settings of a server or client, loaded from files.
#[derive(Clone, Debug)]
pub struct TlsSettings<C> {
    /// The settings for new connections.
    pub config: Arc<C>,
    /// The certificates in the files.
    pub certificates: Vec<Certificate>,
}
