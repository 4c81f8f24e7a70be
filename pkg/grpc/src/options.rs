//! Settings of the transport.

use std::time::Duration;

use gorego_tls::ServerTls;
use tokio::sync::watch;

use crate::Memory;

/// How the transport behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much, and for how long.
    pub limits: Limits,
    /// Budgets for the memory that clients can make the transport hold.
    pub memory: Memory,
    /// TLS settings of new connections, which may change; plain text without.
    pub tls: Option<watch::Receiver<ServerTls>>,
    /// Whether the service works, as health reports it. Without it the server counts as serving
    /// until it shuts down.
    pub healthy: Option<watch::Receiver<bool>>,
    /// The encoded `FileDescriptorSet` of the services, for reflection.
    pub descriptors: &'static [u8],
}

/// Limits on connections and calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a client may neither send nor take what it announced or asked for.
    pub idle_timeout: Duration,
    /// The time for which a connection slower than 64 KiB a second may hold permits that others
    /// wait for, such as memory for a large message. Faster connections save up to thirty times as
    /// much.
    pub grace: Duration,
    /// How long running calls may go on once the server shuts down.
    pub drain_timeout: Duration,
    /// How many connections are served at once. For more, those without a call are closed, and if
    /// there is none they wait in the listener's queue.
    pub max_connections: usize,
}
