//! The stores of a server, and its settings.

use std::{num::NonZeroU64, sync::Arc};

use gorego_execution::Executor;
use gorego_limits::Budget;
use gorego_storage::{ActionCache, BlobStore, Chain, DigestFunction, Uploads};

use crate::{Extension, Routes};

/// The stores behind the services.
#[derive(Clone, Debug)]
pub struct Stores {
    /// The blobs.
    pub blobs: Arc<dyn BlobStore>,
    /// The interrupted uploads to `blobs`.
    pub uploads: Arc<dyn Uploads>,
    /// The action results, of which only complete ones are returned.
    pub actions: Arc<dyn ActionCache>,
}

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Settings of connections and calls.
    pub transport: gorego_grpc::Options,
    /// Limits on blobs.
    pub limits: Limits,
    /// Budgets for the memory that clients can make the services hold.
    pub memory: Memory,
    /// True if clients may write action results; advertised.
    pub ac_updates: bool,
    /// The functions tried for a digest without one, in this order, if its length leaves several. Empty if the stores
    /// try them.
    pub inferred_functions: Vec<DigestFunction>,
    /// Detects and refuses calls that come back over a backing cache; shared with the store.
    pub chain: Arc<Chain>,
    /// The executor; without one, the server is a cache only.
    pub executor: Option<Arc<Executor>>,
    /// The route to the nodes that own other operations; `None` without a cluster, and for calls of nodes.
    pub routes: Option<Arc<dyn Routes>>,
    /// The route to the nodes that run actions of this one; `None` without a cluster.
    pub takers: Option<Arc<dyn Routes>>,
    /// A further service; `None` for clients.
    pub extension: Option<Arc<dyn Extension>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            transport: gorego_grpc::Options::default(),
            limits: Limits::default(),
            memory: Memory::default(),
            ac_updates: true,
            inferred_functions: vec![DigestFunction::Sha256, DigestFunction::Blake3],
            chain: Arc::default(),
            executor: None,
            routes: None,
            takers: None,
            extension: None,
        }
    }
}

/// The largest message that gRPC clients take by default, in bytes.
const CLIENTS_TAKE: u64 = 4 * 1024 * 1024;
/// The factor by which a response may exceed the blobs of a full batch.
const FRAMED: u64 = 2;

/// Limits on blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of blobs in one batch; advertised.
    pub max_batch_bytes: u64,
    /// The size of the largest blob in bytes, if limited; advertised.
    pub max_blob_size: Option<NonZeroU64>,
}

impl Limits {
    /// Returns the most bytes in the response to a batch of at most `max_batch_bytes`, digests included.
    pub fn max_batch_response(max_batch_bytes: u64) -> u64 {
        max_batch_bytes.saturating_mul(FRAMED).max(CLIENTS_TAKE)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Half of what gRPC clients take in one message: some 80 bytes come with each blob.
            max_batch_bytes: 2 * 1024 * 1024,
            max_blob_size: None,
        }
    }
}

/// The budgets of the services, in the order in which a call reserves them: after those of the transport, but before
/// its `responses`, and `pieces` last. No call reserves an earlier one while it holds a later one, so no two calls
/// wait for each other. Clones share the budgets.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Open files of blobs that are read or uploaded in pieces.
    pub files: Budget,
    /// Action results that are read.
    pub results: Budget,
    /// The bytes of walks through trees whose next page was not requested yet.
    pub walks: u64,
    /// Workspaces for compression and decompression.
    pub workspaces: Budget,
    /// Pieces of blobs on their way to clients. When it is used up, pieces are small.
    pub pieces: Budget,
}

impl Default for Memory {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            files: Budget::count("open files", 4096),
            results: Budget::memory("memory for action results", 16 * MIB),
            walks: 8 * MIB,
            workspaces: Budget::memory("memory to compress in", 16 * MIB),
            pieces: Budget::memory("memory for pieces of blobs", 12 * MIB),
        }
    }
}
