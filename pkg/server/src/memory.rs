//! Budgets for the memory that clients can make the server hold, one for each kind.

use bytes::Bytes;
use gorego_limits::{Budget, Full, Permit};
use gorego_storage::{BlobStore, Digest, Error};
use tonic::Status;

use crate::status::unavailable;

/// Budgets in the order in which a call asks for them: since none asks for an earlier one while it
/// holds a later one, no two calls wait for each other. Clone it, and the clones share them.
#[derive(Clone, Debug)]
pub struct Memory {
    /// Bytes of requests that were sent and are not read yet, in connections' receive windows.
    pub windows: Budget,
    /// Calls that clients may have under way.
    pub calls: Budget,
    /// Blobs that are read or uploaded in pieces, each of which is an open file.
    pub files: Budget,
    /// Requests as they come; at least as much as the largest.
    pub requests: Budget,
    /// The fields of requests.
    pub decoded: Budget,
    /// Action results that are read.
    pub results: Budget,
    /// Bytes of walks through trees whose next page was not asked for yet.
    pub walks: u64,
    /// Workspaces to compress and decompress in.
    pub workspaces: Budget,
    /// Responses, until the client has taken them.
    pub responses: Budget,
    /// Pieces of blobs on their way to clients. Where there is none left, pieces are small.
    pub pieces: Budget,
}

const MIB: u64 = 1024 * 1024;

impl Default for Memory {
    fn default() -> Self {
        Self {
            windows: Budget::memory("memory for receive windows", 32 * MIB),
            calls: Budget::count("room for calls", 20_000),
            files: Budget::count("room for open files", 4096),
            requests: Budget::memory("memory for large requests", 20 * MIB),
            decoded: Budget::memory("memory for decoded requests", 24 * MIB),
            results: Budget::memory("memory for action results", 16 * MIB),
            walks: 8 * MIB,
            workspaces: Budget::memory("memory to compress in", 16 * MIB),
            responses: Budget::memory("memory for large responses", 16 * MIB),
            pieces: Budget::memory("memory for pieces of blobs", 12 * MIB),
        }
    }
}

#[cfg(test)]
impl Memory {
    /// So many bytes of each kind.
    pub(crate) fn of_each(bytes: u64) -> Self {
        let memory = || Budget::memory("tests", bytes);
        Self {
            requests: memory(),
            decoded: memory(),
            results: memory(),
            responses: memory(),
            ..Self::default()
        }
    }
}

/// Reads several blobs for a response that has `more` other bytes. Reserves the memory only after the
/// blobs were fetched, and only for those found.
pub(crate) async fn read_within(
    memory: &Memory,
    blobs: &dyn BlobStore,
    digests: &[Digest],
    more: u64,
) -> Result<(Vec<gorego_storage::Result<Bytes>>, Permit), Status> {
    let fetched = blobs.fetch_batch(digests).await;
    let at_hand: Vec<Digest> = fetched.iter().flatten().copied().collect();
    let bytes: u64 = at_hand.iter().map(Digest::size).sum();
    let permit = memory.responses.reserve(bytes.saturating_add(more)).await;
    let permit = permit.map_err(full)?;
    let mut read = blobs.get_batch(&at_hand).await.into_iter();
    let contents = fetched.into_iter().map(|fetched| {
        fetched.and_then(|digest| read.next().unwrap_or(Err(Error::NotFound(digest))))
    });
    Ok((contents.collect(), permit))
}

/// Returns the status of a call that waited for too long.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(crate) fn full(why: Full) -> Status {
    unavailable(why.to_string())
}

/// Returns the status of a call that is ended by its pace.
pub(crate) fn too_slow() -> Status {
    let slowest = gorego_limits::SLOWEST;
    Status::resource_exhausted(format!(
        "too slow while others waited: fewer than {slowest} bytes a second went to or fro"
    ))
}
