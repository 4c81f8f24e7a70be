//! Blobs that are new to the server and cheap to generate.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use gorego_integration::content;
use reapi::v2::Digest;
use sha2::{Digest as _, Sha256};

/// The blob bytes in one message of an upload.
pub(crate) const PIECE: usize = 256 * 1024;

/// A generator of blobs of one size that differ in a counter in their last bytes.
///
/// The blobs share all other bytes and the SHA-256 state up to the counter, so that the generator hashes
/// and copies almost nothing.
#[derive(Debug)]
pub(crate) struct Template {
    /// The shared pieces.
    shared: Bytes,
    /// The last piece, without the counter.
    last: Bytes,
    /// The hash state after the shared bytes.
    hasher: Sha256,
    size: usize,
    made: AtomicU64,
}

/// A blob that is new to every server.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    shared: Bytes,
    last: Bytes,
}

impl Template {
    /// Creates a generator of blobs of `size` bytes, at least the counter's eight.
    pub(crate) fn new(size: usize) -> Self {
        let fixed = size.saturating_sub(size_of::<u64>());
        let mut shared = content::blob(fastrand::u64(..), fixed);
        let hasher = Sha256::new_with_prefix(&shared);
        let last = shared.split_off(fixed - fixed % PIECE);
        Self {
            shared,
            last,
            hasher,
            size,
            made: AtomicU64::new(0),
        }
    }

    /// Returns the next blob.
    pub(crate) fn blob(&self) -> Blob {
        let counter = self.made.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        let mut last = BytesMut::with_capacity(self.last.len() + counter.len());
        last.extend_from_slice(&self.last);
        last.extend_from_slice(&counter);
        Blob {
            digest: digest(self.hasher.clone().chain_update(counter), self.size),
            shared: self.shared.clone(),
            last: last.freeze(),
        }
    }
}

impl Blob {
    /// Returns the content in pieces of [`PIECE`] bytes; the last one may be shorter.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Bytes> + Send + use<> {
        let (mut shared, last) = (self.shared.clone(), self.last.clone());
        std::iter::from_fn(move || {
            (!shared.is_empty()).then(|| shared.split_to(PIECE.min(shared.len())))
        })
        .chain(std::iter::once(last))
    }

    /// Returns the content in one piece.
    pub(crate) fn into_bytes(self) -> Bytes {
        if self.shared.is_empty() {
            return self.last;
        }
        Bytes::from([self.shared, self.last].concat())
    }
}

/// Returns the digest of the `size` bytes that `hasher` has seen.
pub(crate) fn digest(hasher: Sha256, size: usize) -> Digest {
    let hash = hasher.finalize();
    let digits = hash.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    Digest {
        hash: digits
            .filter_map(|digit| char::from_digit(digit.into(), 16))
            .collect(),
        size_bytes: i64::try_from(size).unwrap_or(i64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_match_their_digests() {
        for size in [8, 4096, PIECE - 1, PIECE, PIECE + 7, PIECE + 8, 3 * PIECE] {
            let template = Template::new(size);
            for blob in [template.blob(), template.blob()] {
                let bytes = blob.clone().into_bytes();
                assert_eq!(bytes.len(), size);
                assert_eq!(blob.digest, content::digest_of(&bytes));
            }
        }
    }

    #[test]
    fn blobs_of_one_template_and_of_two_differ() {
        let template = Template::new(4096);
        let first = template.blob().into_bytes();
        assert_ne!(first, template.blob().into_bytes());
        assert_ne!(first, Template::new(4096).blob().into_bytes());
    }

    #[test]
    fn the_pieces_of_a_blob_are_its_content_in_messages_of_one_size() {
        for (size, messages) in [(4096, 1), (PIECE, 1), (PIECE + 9, 2), (4 * PIECE, 4)] {
            let blob = Template::new(size).blob();
            let pieces: Vec<_> = blob.pieces().collect();
            assert_eq!(pieces.len(), messages, "{size} bytes");
            assert!(
                pieces
                    .iter()
                    .rev()
                    .skip(1)
                    .all(|piece| piece.len() == PIECE)
            );
            assert_eq!(pieces.concat(), blob.into_bytes());
        }
    }
}
