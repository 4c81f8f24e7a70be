//! Budgets for the memory that clients can make the server hold, one for each kind.

use bytes::Bytes;
use gorego_grpc::full;
use gorego_limits::{Budget, Permit};
use gorego_storage::{BlobStore, Digest, Error, decoded::MAX_DECODED_RESULT};
use reapi::shapes::{DecodeError, Shaped};
use tonic::Status;

/// Budgets in the order in which a call asks for them: since none asks for an earlier one while it
/// holds a later one, no two calls wait for each other. Clone it, and the clones share them.
#[derive(Clone, Debug)]
pub struct Memory {
    /// What calls hold in the transport; reserved first, but for responses, which come last but one.
    pub transport: gorego_grpc::Memory,
    /// Blobs that are read or uploaded in pieces, each of which is an open file.
    pub files: Budget,
    /// Action results that are read.
    pub results: Budget,
    /// Bytes of walks through trees whose next page was not asked for yet.
    pub walks: u64,
    /// Workspaces to compress and decompress in.
    pub workspaces: Budget,
    /// Pieces of blobs on their way to clients. Where there is none left, pieces are small.
    pub pieces: Budget,
}

const MIB: u64 = 1024 * 1024;

/// The most memory that a decoded request may take, in bytes: a full batch of some 130,000 blobs. An
/// action result may take as much, so that whatever is stored can be read again.
const MAX_DECODED: usize = MAX_DECODED_RESULT;

impl Default for Memory {
    fn default() -> Self {
        Self {
            transport: gorego_grpc::Memory::default(),
            files: Budget::count("room for open files", 4096),
            results: Budget::memory("memory for action results", 16 * MIB),
            walks: 8 * MIB,
            workspaces: Budget::memory("memory to compress in", 16 * MIB),
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
            transport: gorego_grpc::Memory {
                requests: memory(),
                decoded: memory(),
                responses: memory(),
                ..gorego_grpc::Memory::default()
            },
            results: memory(),
            ..Self::default()
        }
    }
}

/// Returns the most memory that the fields of a request take once it is decoded, in bytes.
pub(crate) fn measure<Q: Shaped>(encoded: &[u8]) -> Result<usize, Status> {
    let bytes = Q::SHAPE.decoded_bytes(encoded, MAX_DECODED);
    bytes.map_err(|why| match why {
        DecodeError::TooLarge(_) => Status::resource_exhausted(format!("the message: {why}")),
        _ => Status::invalid_argument(format!("malformed message: {why}")),
    })
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
    let permit = memory
        .transport
        .responses
        .reserve(bytes.saturating_add(more))
        .await;
    let permit = permit.map_err(full)?;
    let mut read = blobs.get_batch(&at_hand).await.into_iter();
    let contents = fetched.into_iter().map(|fetched| {
        fetched.and_then(|digest| read.next().unwrap_or(Err(Error::NotFound(digest))))
    });
    Ok((contents.collect(), permit))
}
