//! Entries of the outbox as files: their names, and the content of those with a result.

use bytes::Bytes;
use gorego_storage::{Digest, DigestFunction};
use prost::Message;
use reapi::v2::{self, ActionResult};

/// The length of the checksum before an encoded result, in bytes.
pub(super) const CHECKSUM: usize = 32;
const BLOB: &str = "blob";
const RESULT: &str = "result";

/// The subject of a pending write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WriteKey {
    Blob(Digest),
    /// The result of an action under an instance name.
    Result(String, Digest),
}

impl WriteKey {
    pub(crate) fn result(instance: &str, action: &Digest) -> Self {
        Self::Result(instance.to_owned(), *action)
    }

    pub(crate) const fn digest(&self) -> &Digest {
        match self {
            Self::Blob(digest) | Self::Result(_, digest) => digest,
        }
    }
}

/// Returns the name of an entry's file. Names sort by number and do not contain the instance name.
pub(super) fn file_name(number: u64, key: &WriteKey) -> String {
    let (kind, digest) = match key {
        WriteKey::Blob(digest) => (BLOB, digest),
        WriteKey::Result(_, action) => (RESULT, action),
    };
    let (function, hash, size) = (digest.function(), digest.hex(), digest.size());
    format!("{number:020}-{kind}-{function}-{hash}-{size}")
}

/// Parses the name of an entry's file. A result's instance name is empty: only its file contains it.
pub(super) fn parse(name: &str) -> Option<(u64, WriteKey)> {
    let mut parts = name.split('-');
    let (number, kind) = (parts.next()?.parse().ok()?, parts.next()?);
    let function = DigestFunction::from_name(parts.next()?)?;
    let (hash, size) = (parts.next()?, parts.next()?.parse().ok()?);
    let digest = Digest::parse(Some(function), hash, size).ok()?;
    let key = match kind {
        BLOB => WriteKey::Blob(digest),
        RESULT => WriteKey::result("", &digest),
        _ => return None,
    };
    (file_name(number, &key) == name).then_some((number, key))
}

/// A pending action result. Its file is the encoded message after a checksum.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ResultEntry {
    #[prost(string, tag = "1")]
    pub(crate) instance: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) action: Option<v2::Digest>,
    #[prost(message, required, tag = "3")]
    pub(crate) result: ActionResult,
    /// The [`fingerprint`]s of the results that it replaced, the last one first.
    #[prost(fixed64, repeated, tag = "4")]
    pub(crate) replaced: Vec<u64>,
}

impl ResultEntry {
    pub(super) fn to_file(&self) -> Vec<u8> {
        let message = self.encode_to_vec();
        let checksum = DigestFunction::Sha256.digest(&message);
        [checksum.hash(), &message].concat()
    }

    /// Decodes a file; `None` if it is corrupt or belongs to another action.
    pub(super) fn from_file(content: &Bytes, action: &Digest) -> Option<Self> {
        let (checksum, message) = content.split_at_checked(CHECKSUM)?;
        if DigestFunction::Sha256.digest(message).hash() != checksum {
            return None;
        }
        let entry = Self::decode(message).ok()?;
        (entry.action == Some(action.to_proto())).then_some(entry)
    }
}

/// Returns enough of a result's hash to distinguish the results of one action.
pub(crate) fn fingerprint(result: &ActionResult) -> u64 {
    let digest = DigestFunction::Sha256.digest(&result.encode_to_vec());
    let first = digest.hash().first_chunk().copied();
    u64::from_le_bytes(first.unwrap_or_default())
}
