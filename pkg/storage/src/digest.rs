//! Digests: the names of blobs. They are parsed once, on arrival, so that every [`Digest`] is well formed.

mod hasher;

use std::{
    cmp::Ordering,
    fmt,
    hash::{self, Hash},
};

use data_encoding::HEXLOWER;
use reapi::v2::{self, digest_function::Value};

pub use self::hasher::Hasher;

/// The longest hash of any offered function, in bytes.
const MAX_HASH_LEN: usize = 64;

/// A digest function that this program offers (REAPI `DigestFunction.Value`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DigestFunction {
    /// SHA-256, the default for hashes of 64 digits.
    Sha256,
    /// BLAKE3 with its 256-bit output.
    Blake3,
    /// SHA-1.
    Sha1,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl DigestFunction {
    /// Every offered function, in the order of Capabilities.
    pub const ALL: [Self; 5] = [
        Self::Sha256,
        Self::Blake3,
        Self::Sha1,
        Self::Sha384,
        Self::Sha512,
    ];

    const fn properties(self) -> (usize, &'static str, Value) {
        match self {
            Self::Sha256 => (32, "sha256", Value::Sha256),
            Self::Blake3 => (32, "blake3", Value::Blake3),
            Self::Sha1 => (20, "sha1", Value::Sha1),
            Self::Sha384 => (48, "sha384", Value::Sha384),
            Self::Sha512 => (64, "sha512", Value::Sha512),
        }
    }

    /// Returns the length of this function's hashes, in bytes.
    pub const fn hash_len(self) -> usize {
        self.properties().0
    }

    /// Returns the function's name in resource names and paths, in lower case.
    pub const fn name(self) -> &'static str {
        self.properties().1
    }

    /// Returns the function with this lower-case name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|function| function.name() == name)
    }

    /// Returns the function's number in the REAPI.
    pub const fn to_proto(self) -> Value {
        self.properties().2
    }

    /// Returns the function with this number in the REAPI; `None` for 0, which stands for the function inferred
    /// from the hash's length.
    pub fn from_proto(value: i32) -> Result<Option<Self>, DigestError> {
        let numbered = |function: &Self| function.to_proto() as i32 == value;
        let function = Self::ALL.into_iter().find(numbered);
        if function.is_none() && value != Value::Unknown as i32 {
            let known = Value::try_from(value).map(|known| known.as_str_name().to_owned());
            return Err(DigestError::Function(
                known.unwrap_or_else(|_| value.to_string()),
            ));
        }
        Ok(function)
    }

    /// Returns the first function whose hashes have `hex_len` digits, for a client that names none.
    pub fn infer(hex_len: usize) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|function| function.hash_len() * 2 == hex_len)
    }

    /// Returns the next function with hashes of the same length, from which a hash cannot be told apart.
    fn next_of_length(self) -> Option<Self> {
        let is_next = |function: &Self| *function > self && function.hash_len() == self.hash_len();
        Self::ALL.into_iter().find(is_next)
    }

    /// Returns the digest of `content`.
    pub fn digest(self, content: &[u8]) -> Digest {
        let mut hasher = Hasher::new(self);
        hasher.update(content);
        hasher.finish()
    }

    /// Returns the digest of the empty blob.
    pub fn empty(self) -> Digest {
        self.digest(&[])
    }
}

impl fmt::Display for DigestFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An invalid digest. The message says what is accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The field of the digest is unset.
    #[error("digest is missing")]
    Missing,
    /// The hash has characters other than lower-case hexadecimal digits.
    #[error("hash {0:?} is not lower-case hexadecimal")]
    NotHex(String),
    /// The hash has the wrong length for its function.
    #[error("hash {hash:?} has {actual} digits, {expected}")]
    Length {
        /// The hash, shortened.
        hash: String,
        /// The hash's length.
        actual: usize,
        /// The accepted lengths.
        expected: String,
    },
    /// The size is negative.
    #[error("size {0} of a digest is negative")]
    Size(i64),
    /// The digest function is not offered.
    #[error("digest function {0} is not offered; offered are sha256, blake3, sha1, sha384, sha512")]
    Function(String),
}

/// A blob's name: its hash under a digest function, and its size in bytes.
#[derive(Clone, Copy)]
pub struct Digest {
    function: DigestFunction,
    /// The second function to try if the client named none. Does not affect equality.
    other: Option<DigestFunction>,
    size: u64,
    /// Padded with zeros beyond `function.hash_len()`.
    hash: [u8; MAX_HASH_LEN],
}

impl Digest {
    /// Parses a digest. Without a function, it is inferred from the hash's length; if two functions have that
    /// length, [`Self::other`] returns the second.
    pub fn parse(
        function: Option<DigestFunction>,
        hash: &str,
        size: i64,
    ) -> Result<Self, DigestError> {
        let size = u64::try_from(size).map_err(|_| DigestError::Size(size))?;
        let named = function;
        let function = function
            .or_else(|| DigestFunction::infer(hash.len()))
            .ok_or_else(|| length_error(hash, "known are 40, 64, 96 and 128".to_owned()))?;
        if hash.len() != function.hash_len() * 2 {
            let expected = format!("{function} has {}", function.hash_len() * 2);
            return Err(length_error(hash, expected));
        }
        let mut bytes = [0; MAX_HASH_LEN];
        let (decoded, _) = bytes.split_at_mut(function.hash_len());
        if HEXLOWER.decode_mut(hash.as_bytes(), decoded).is_err() {
            return Err(DigestError::NotHex(shorten(hash)));
        }
        let digest = Self {
            function,
            other: named.is_none().then(|| function.next_of_length()).flatten(),
            size,
            hash: bytes,
        };
        // The hash of the empty blob identifies its function.
        let empty = digest.other().filter(Self::is_empty_blob);
        Ok(empty.unwrap_or(digest))
    }

    /// Parses a digest message.
    pub fn from_proto(
        function: Option<DigestFunction>,
        digest: &v2::Digest,
    ) -> Result<Self, DigestError> {
        Self::parse(function, &digest.hash, digest.size_bytes)
    }

    /// Parses the digest message in a field that may be unset.
    pub fn from_field(
        function: Option<DigestFunction>,
        digest: Option<&v2::Digest>,
    ) -> Result<Self, DigestError> {
        Self::from_proto(function, digest.ok_or(DigestError::Missing)?)
    }

    /// Creates a digest from a hash; `None` if its length is not the function's.
    pub fn from_hash(function: DigestFunction, hash: &[u8], size: u64) -> Option<Self> {
        if hash.len() != function.hash_len() {
            return None;
        }
        let mut bytes = [0; MAX_HASH_LEN];
        fill(&mut bytes, hash);
        Some(Self {
            function,
            other: None,
            size,
            hash: bytes,
        })
    }

    /// Returns the digest as a REAPI message.
    pub fn to_proto(&self) -> v2::Digest {
        v2::Digest {
            hash: self.hex(),
            size_bytes: i64::try_from(self.size).unwrap_or(i64::MAX),
        }
    }

    /// Returns the digest function.
    pub const fn function(&self) -> DigestFunction {
        self.function
    }

    /// Returns the same hash and size under the second function to try, if the client named none.
    pub fn other(&self) -> Option<Self> {
        self.under(self.other?)
    }

    /// Returns the same hash and size under `function`; `None` if its hashes have another length.
    pub fn under(&self, function: DigestFunction) -> Option<Self> {
        Self::from_hash(function, self.hash(), self.size)
    }

    /// Whether `content` matches this digest.
    pub fn is_of(&self, content: &[u8]) -> bool {
        self.function.digest(content) == *self
    }

    /// Returns the digest without the second function.
    #[must_use]
    pub const fn only(&self) -> Self {
        Self {
            other: None,
            ..*self
        }
    }

    /// Returns the digest with its two functions limited to `functions` and tried in their order. Returns a
    /// digest whose function is certain unchanged.
    #[must_use]
    pub fn among(&self, functions: &[DigestFunction]) -> Self {
        let mut meant = functions
            .iter()
            .copied()
            .filter(|function| *function == self.function || Some(*function) == self.other);
        match (self.other, meant.next()) {
            (Some(_), Some(function)) => Self {
                function,
                other: meant.next(),
                ..*self
            },
            _ => *self,
        }
    }

    /// Returns the blob's size in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Returns the hash without padding.
    pub fn hash(&self) -> &[u8] {
        self.hash
            .get(..self.function.hash_len())
            .unwrap_or(&self.hash)
    }

    /// Returns the first 32 bytes of the hash, padded with zeros.
    pub fn hash_prefix(&self) -> [u8; 32] {
        self.hash.first_chunk().copied().unwrap_or_default()
    }

    /// Returns the hash in lower-case hexadecimal.
    pub fn hex(&self) -> String {
        to_hex(self.hash())
    }

    /// Whether this is the digest of the empty blob, which is always present.
    pub fn is_empty_blob(&self) -> bool {
        self.size == 0 && *self == self.function.empty()
    }
}

// Equality, hash and order are by function, size and hash.
impl Digest {
    const fn identity(&self) -> (DigestFunction, u64, &[u8; MAX_HASH_LEN]) {
        (self.function, self.size, &self.hash)
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Digest {}

impl Hash for Digest {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl PartialOrd for Digest {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Digest {
    fn cmp(&self, other: &Self) -> Ordering {
        self.identity().cmp(&other.identity())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())?;
        write!(f, "/{}", self.size)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.function)
    }
}

/// Encodes `bytes` in lower-case hexadecimal.
pub fn to_hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

fn length_error(hash: &str, expected: String) -> DigestError {
    DigestError::Length {
        hash: shorten(hash),
        actual: hash.len(),
        expected,
    }
}

/// Truncates text from a request, which may be megabytes, for an error message.
pub fn shorten(text: &str) -> String {
    const QUOTED: usize = 140;
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn fill(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests;
