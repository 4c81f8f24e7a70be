//! Why the server cannot start.

/// Why the server cannot start. What goes wrong for one client is that client's `Status`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptions for gRPC reflection do not fit together.
    #[error("describing the services: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}
