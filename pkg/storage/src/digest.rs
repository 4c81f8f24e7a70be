//! Digests: which blob, by its hash and size. Parsed once, at the edge; inside, every digest is
//! well formed.

mod hasher;
mod identity;

use std::fmt;

use reapi::v2;

pub use self::hasher::Hasher;

/// The longest hash of any offered function, in bytes.
const MAX_HASH_LEN: usize = 64;

/// A digest function that this program offers (REAPI `DigestFunction.Value`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DigestFunction {
    /// SHA-256, the function of a client that names none.
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
    /// Every offered function; the order in which Capabilities lists them.
    pub const ALL: [Self; 5] = [
        Self::Sha256,
        Self::Blake3,
        Self::Sha1,
        Self::Sha384,
        Self::Sha512,
    ];

    /// The length of this function's hashes, in bytes.
    pub const fn hash_len(self) -> usize {
        match self {
            Self::Sha256 | Self::Blake3 => 32,
            Self::Sha1 => 20,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The function's name as resource names and paths spell it: lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Blake3 => "blake3",
            Self::Sha1 => "sha1",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// The function with this lower-case name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|function| function.name() == name)
    }

    /// The number of this function in the REAPI.
    pub const fn to_proto(self) -> v2::digest_function::Value {
        match self {
            Self::Sha256 => v2::digest_function::Value::Sha256,
            Self::Blake3 => v2::digest_function::Value::Blake3,
            Self::Sha1 => v2::digest_function::Value::Sha1,
            Self::Sha384 => v2::digest_function::Value::Sha384,
            Self::Sha512 => v2::digest_function::Value::Sha512,
        }
    }

    /// The function that a request names; `None` when it names none (then it is inferred from the
    /// hash's length).
    pub fn from_proto(value: i32) -> Result<Option<Self>, DigestError> {
        if value == v2::digest_function::Value::Unknown as i32 {
            return Ok(None);
        }
        Self::ALL
            .into_iter()
            .find(|function| function.to_proto() as i32 == value)
            .map(Some)
            .ok_or_else(|| DigestError::Function(function_label(value)))
    }

    /// The function that a hash of `hex_len` digits has when the client names none.
    pub fn infer(hex_len: usize) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|function| function.hash_len() * 2 == hex_len)
    }

    /// The next function whose hashes are as long, so that a hash alone does not tell which it is.
    fn rival(self) -> Option<Self> {
        let alike = |function: &Self| *function > self && function.hash_len() == self.hash_len();
        Self::ALL.into_iter().find(alike)
    }

    /// The digest of `content`.
    pub fn digest(self, content: &[u8]) -> Digest {
        let mut hasher = Hasher::new(self);
        hasher.update(content);
        hasher.finish()
    }

    /// The digest of the empty blob.
    pub fn empty(self) -> Digest {
        self.digest(&[])
    }
}

fn function_label(value: i32) -> String {
    v2::digest_function::Value::try_from(value).map_or_else(
        |_| value.to_string(),
        |known| known.as_str_name().to_owned(),
    )
}

impl fmt::Display for DigestFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why something from outside is no digest. The message says what would have been accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The field that should hold the digest is unset.
    #[error("digest is missing")]
    Missing,
    /// The hash holds something else than lower-case hexadecimal digits.
    #[error("hash {0:?} is not lower-case hexadecimal")]
    NotHex(String),
    /// The hash has the wrong length for its function.
    #[error("hash {hash:?} has {actual} digits, {expected}")]
    Length {
        /// The hash as it came, shortened.
        hash: String,
        /// Its length.
        actual: usize,
        /// The lengths that would have been accepted.
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
    /// Another function that the client may have meant, since it named none. Says nothing of which
    /// blob this is: digests are equal with and without.
    other: Option<DigestFunction>,
    size: u64,
    /// Zero beyond `function.hash_len()`.
    hash: [u8; MAX_HASH_LEN],
}

impl Digest {
    /// Parses a digest from outside. Without a function, the hash's length tells it, or leaves two
    /// to choose from; see [`Self::other`].
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
        for (byte, pair) in bytes.iter_mut().zip(hash.as_bytes().chunks_exact(2)) {
            let &[high, low] = pair else { continue };
            let (Some(high), Some(low)) = (hex_value(high), hex_value(low)) else {
                return Err(DigestError::NotHex(shorten(hash)));
            };
            *byte = (high << 4) | low;
        }
        let digest = Self {
            function,
            other: named.is_none().then(|| function.rival()).flatten(),
            size,
            hash: bytes,
        };
        // The hash of the empty blob tells its function.
        let empty = digest.other().filter(Self::is_empty_blob);
        Ok(empty.unwrap_or(digest))
    }

    /// Parses a digest message of a request whose function is `function`.
    pub fn from_proto(
        function: Option<DigestFunction>,
        digest: &v2::Digest,
    ) -> Result<Self, DigestError> {
        Self::parse(function, &digest.hash, digest.size_bytes)
    }

    /// As [`Self::from_proto`], for a field that may be unset.
    pub fn from_field(
        function: Option<DigestFunction>,
        digest: Option<&v2::Digest>,
    ) -> Result<Self, DigestError> {
        Self::from_proto(function, digest.ok_or(DigestError::Missing)?)
    }

    /// A digest from a hash of the function's length; `None` for another length.
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

    /// This digest as a REAPI message.
    pub fn to_proto(&self) -> v2::Digest {
        v2::Digest {
            hash: self.hex(),
            size_bytes: i64::try_from(self.size).unwrap_or(i64::MAX),
        }
    }

    /// The digest function.
    pub const fn function(&self) -> DigestFunction {
        self.function
    }

    /// Returns the same hash and size under the other function of that length, if the client named
    /// none.
    pub fn other(&self) -> Option<Self> {
        self.under(self.other?)
    }

    /// Returns the same hash and size under `function`; `None` if its hashes have another length.
    pub fn under(&self, function: DigestFunction) -> Option<Self> {
        Self::from_hash(function, self.hash(), self.size)
    }

    /// Whether `content` has this digest.
    pub fn is_of(&self, content: &[u8]) -> bool {
        self.function.digest(content) == *self
    }

    /// The digest under its own function, and no other.
    #[must_use]
    pub const fn only(&self) -> Self {
        Self {
            other: None,
            ..*self
        }
    }

    /// The digest with only those of `functions` that may be meant, tried in that order. A digest
    /// whose function is certain stays as it is.
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

    /// The blob's size in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The hash; as long as the function's hashes are.
    pub fn hash(&self) -> &[u8] {
        self.hash
            .get(..self.function.hash_len())
            .unwrap_or(&self.hash)
    }

    /// The first 32 bytes of the hash, zero beyond its end.
    pub fn hash_prefix(&self) -> [u8; 32] {
        self.hash.first_chunk().copied().unwrap_or_default()
    }

    /// The hash in lower-case hexadecimal.
    pub fn hex(&self) -> String {
        to_hex(self.hash())
    }

    /// Whether this names the empty blob, which is always present.
    pub fn is_empty_blob(&self) -> bool {
        self.size == 0 && *self == self.function.empty()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.hex(), self.size)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{self}", self.function)
    }
}

/// `bytes` in lower-case hexadecimal.
pub fn to_hex(bytes: &[u8]) -> String {
    let digit = |value: u8| {
        char::from(if value < 10 {
            b'0' + value
        } else {
            b'a' + value - 10
        })
    };
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn length_error(hash: &str, expected: String) -> DigestError {
    DigestError::Length {
        hash: shorten(hash),
        actual: hash.len(),
        expected,
    }
}

/// What a message quotes of text from outside, which may be megabytes.
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
