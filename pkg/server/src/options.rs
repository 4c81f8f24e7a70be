//! What the server is made of and how much it allows.

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use gorego_storage::{ActionCache, BlobStore, Chain, DigestFunction, Uploads};
use gorego_tls::ServerTls;
use tokio::sync::watch;

use crate::Memory;

/// The stores behind the services.
#[derive(Clone, Debug)]
pub struct Services {
    /// Where blobs are.
    pub blobs: Arc<dyn BlobStore>,
    /// What is known of uploads that broke off; of the same store as `blobs`.
    pub uploads: Arc<dyn Uploads>,
    /// Where action results are; has checked that what it returns is complete.
    pub actions: Arc<dyn ActionCache>,
}

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much, and for how long.
    pub limits: Limits,
    /// Budgets for the memory that clients can make the server hold.
    pub memory: Memory,
    /// Whether clients may write action results; Capabilities tells them.
    pub ac_updates: bool,
    /// The functions that a digest without one is tried under where its length leaves several, in this
    /// order.
    pub inferred_functions: Vec<DigestFunction>,
    /// TLS settings of new connections, which may change; plain text without.
    pub tls: Option<watch::Receiver<ServerTls>>,
    /// Detects and refuses calls that come back over a backing cache; shared with the store.
    pub chain: Arc<Chain>,
    /// Whether the stores work, when somebody watches them; health tells clients. Without it the
    /// server counts as serving until it shuts down.
    pub healthy: Option<watch::Receiver<bool>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            memory: Memory::default(),
            ac_updates: true,
            inferred_functions: vec![DigestFunction::Sha256, DigestFunction::Blake3],
            tls: None,
            chain: Arc::default(),
            healthy: None,
        }
    }
}

/// The largest message that gRPC clients take by default, in bytes.
const CLIENTS_TAKE: u64 = 4 * 1024 * 1024;
/// The factor by which a response may exceed the blobs of a full batch.
const FRAMED: u64 = 2;

/// What clients may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The sum of the blobs' sizes in one batch, in bytes; advertised.
    pub max_batch_bytes: u64,
    /// The size of one blob in bytes, if limited; advertised.
    pub max_blob_size: Option<NonZeroU64>,
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

impl Limits {
    /// The most bytes in the response to a batch of at most `max_batch_bytes`, digests included.
    pub const fn max_batch_response(max_batch_bytes: u64) -> u64 {
        let framed = max_batch_bytes.saturating_mul(FRAMED);
        if framed > CLIENTS_TAKE {
            framed
        } else {
            CLIENTS_TAKE
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Half of what gRPC clients take in one message: some 80 bytes come with each blob.
            max_batch_bytes: 2 * 1024 * 1024,
            max_blob_size: None,
            idle_timeout: Duration::from_mins(1),
            grace: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(8),
            max_connections: 10_000,
        }
    }
}
