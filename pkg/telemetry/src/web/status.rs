//! The state of the server, as `/statusz` and the page show it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::health::Readiness;
use crate::PendingWrites;

/// The state of the server. Sizes are in bytes, times in seconds of Unix time.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Status {
    /// The version of gorego.
    pub version: String,
    /// The time of the start.
    pub started: u64,
    /// The seconds since the start.
    pub uptime_seconds: u64,
    /// The readiness and its parts.
    pub readiness: Readiness,
    /// The state of what the program opened.
    #[serde(flatten)]
    pub components: Components,
}

/// The state of the tiers and their surroundings.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Components {
    /// The local tier.
    pub local: Option<Local>,
    /// The backing cache.
    pub backing: Option<Backing>,
    /// The limits on clients.
    pub limits: Limits,
    /// The certificates in the files of `tls` and `backing_cache.tls`.
    pub certificates: Vec<Certificate>,
}

/// The state of the local tier.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Local {
    /// The data directory.
    pub dir: String,
    /// The bytes in use.
    pub used: u64,
    /// The limit of `used`.
    pub limit: u64,
    /// The number of files and folders.
    pub files: u64,
    /// The free space of the file system.
    pub free_on_disk: Option<u64>,
    /// Whether the scan after the start still runs.
    pub scanning: bool,
    /// The number of blobs and action results evicted since the start.
    pub evicted: u64,
    /// The bytes evicted since the start.
    pub evicted_bytes: u64,
    /// The leases broken since the start.
    pub leases_broken: u64,
    /// The seconds from last use to eviction of the file evicted last. `None` if none was evicted.
    pub eviction_age_seconds: Option<f64>,
}

/// The state of the backing cache.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Backing {
    /// The address, without credentials.
    pub target: String,
    /// The state of the circuit breaker: `closed`, `open` or `half_open`.
    pub breaker: Cow<'static, str>,
    /// The writes that wait. `None` if writes cannot wait.
    pub pending: Option<PendingWrites>,
    /// The limit of the pending bytes: `backing_cache.journal_max`.
    pub pending_limit: u64,
}

/// The limits on clients.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Limits {
    /// The memory that clients can make the server hold.
    pub memory: u64,
    /// The most connections.
    pub max_connections: u64,
    /// The largest batch.
    pub max_batch_bytes: u64,
    /// The largest blob; 0 for no limit.
    pub max_blob_size: u64,
}

/// A certificate.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Certificate {
    /// The use of the file.
    pub role: Cow<'static, str>,
    /// The file.
    pub file: String,
    /// The subject's distinguished name.
    pub subject: String,
    /// The end of the validity.
    pub expiry: i64,
}
