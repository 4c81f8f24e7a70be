//! Incremental hashing.

use ring::digest::{self, Context};

use super::{Digest, DigestFunction, MAX_HASH_LEN, fill};

/// An incremental hash of content.
#[derive(Clone)]
pub struct Hasher {
    function: DigestFunction,
    state: HasherState,
    size: u64,
}

#[derive(Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "the usual functions need no allocation"
)]
enum HasherState {
    // ring hashes in assembly: twice the speed of plain Rust on CPUs without SHA instructions.
    Sha(Context),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// Creates a hasher of no bytes.
    pub fn new(function: DigestFunction) -> Self {
        let sha = |algorithm| HasherState::Sha(Context::new(algorithm));
        let state = match function {
            DigestFunction::Sha256 => sha(&digest::SHA256),
            DigestFunction::Blake3 => HasherState::Blake3(Box::default()),
            DigestFunction::Sha1 => sha(&digest::SHA1_FOR_LEGACY_USE_ONLY),
            DigestFunction::Sha384 => sha(&digest::SHA384),
            DigestFunction::Sha512 => sha(&digest::SHA512),
        };
        Self {
            function,
            state,
            size: 0,
        }
    }

    /// Hashes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            HasherState::Sha(state) => state.update(bytes),
            HasherState::Blake3(state) => {
                state.update(bytes);
            }
        }
        self.size += bytes.len() as u64;
    }

    /// Returns the number of bytes hashed so far.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Returns the digest of all bytes hashed so far.
    pub fn finish(self) -> Digest {
        let mut hash = [0; MAX_HASH_LEN];
        match self.state {
            HasherState::Sha(state) => fill(&mut hash, state.finish().as_ref()),
            HasherState::Blake3(state) => fill(&mut hash, state.finalize().as_bytes()),
        }
        Digest {
            function: self.function,
            other: None,
            size: self.size,
            hash,
        }
    }
}
