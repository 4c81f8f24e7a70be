//! Verification of content by its digest.

use std::{fs, io};

use bytes::Bytes;

use crate::{CHUNK_SIZE, Digest, DigestFunction, Error, Hasher, Result, read_at};

/// Fails with [`Error::Mismatch`] if content does not match its digest.
pub fn verify(digest: &Digest, pieces: &[Bytes]) -> Result<()> {
    let mut hasher = Hasher::new(digest.function());
    for piece in pieces {
        hasher.update(piece);
    }
    let actual = hasher.finish();
    if actual == *digest {
        return Ok(());
    }
    Err(Error::mismatch(digest, actual))
}

/// Hashes a file's first `len` bytes, or all of a shorter file. Blocks.
pub fn hash_file(function: DigestFunction, file: &fs::File, len: u64) -> io::Result<Hasher> {
    let mut hasher = Hasher::new(function);
    loop {
        let left = usize::try_from(len - hasher.size()).unwrap_or(usize::MAX);
        let chunk = read_at(file, hasher.size(), left.min(CHUNK_SIZE))?;
        if chunk.is_empty() {
            return Ok(hasher);
        }
        hasher.update(&chunk);
    }
}
