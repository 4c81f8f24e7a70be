//! Keys of blobs, and verification and compression of content.

use bytes::Bytes;
use reapi::v2::{Digest, digest_function::Value as Function};
use tonic::Status;

use crate::content::digest_of;

/// The size of the empty blob, which every cache has.
const EMPTY: i64 = 0;

/// A digest as the key of a map.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Key {
    pub(super) hash: String,
    pub(super) size: i64,
}

impl Key {
    pub(super) fn of(digest: &Digest) -> Self {
        Self {
            hash: digest.hash.clone(),
            size: digest.size_bytes,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.size == EMPTY
    }

    /// Returns an error if content has another digest.
    pub(super) fn check(&self, function: Function, content: &[u8]) -> Result<(), Status> {
        let hash = match function {
            Function::Blake3 => blake3::hash(content).to_hex().to_string(),
            Function::Sha256 | Function::Unknown => digest_of(content).hash,
            _ => self.hash.clone(),
        };
        let size = i64::try_from(content.len()).expect("a size in memory");
        if (hash.as_str(), size) == (self.hash.as_str(), self.size) {
            return Ok(());
        }
        Err(Status::invalid_argument(format!(
            "the content of {}/{} is {hash}/{size}",
            self.hash, self.size
        )))
    }
}

/// Returns the key of a digest that a message must have.
pub(super) fn required(digest: Option<Digest>) -> Result<Key, Status> {
    let digest = digest.ok_or_else(|| Status::invalid_argument("the digest is missing"))?;
    Ok(Key::of(&digest))
}

pub(super) fn compress(content: &[u8]) -> Bytes {
    let compressed = zstd::encode_all(content, 1);
    Bytes::from(compressed.expect("compressing in memory"))
}

/// Decompresses at most `size` bytes and one more, which reveals a larger content.
pub(super) fn decompress(content: &[u8], size: i64) -> Result<Bytes, Status> {
    use std::io::Read as _;

    let most = u64::try_from(size).unwrap_or(0).saturating_add(1);
    let mut out = Vec::new();
    zstd::Decoder::new(content)
        .and_then(|decoder| decoder.take(most).read_to_end(&mut out))
        .map_err(|e| Status::invalid_argument(format!("not zstd: {e}")))?;
    Ok(Bytes::from(out))
}
