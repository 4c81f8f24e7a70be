//! What is written down of something accepted.

use gorego_storage::{Digest, DigestFunction};
use prost::Message;
use reapi::v2::{self, ActionResult};

use super::file::HEAD;

/// What an entry counts for besides, in bytes: a block of the disk, and more than it takes in memory, so
/// that many small ones are bounded, too.
const ENTRY: u64 = 4096;

/// A record of the log.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Record {
    /// Of a blob, or of an action.
    #[prost(message, optional, tag = "1")]
    digest: Option<v2::Digest>,
    #[prost(int32, tag = "2")]
    function: i32,
    #[prost(string, tag = "3")]
    pub(super) instance: String,
    /// Of an action.
    #[prost(message, optional, tag = "4")]
    pub(super) result: Option<ActionResult>,
    /// Which results it is known to be newer than, by their [`fingerprint`].
    #[prost(fixed64, repeated, tag = "5")]
    pub(super) replaces: Vec<u64>,
    /// In a record of nothing else: whatever starts before that place is done.
    #[prost(uint64, optional, tag = "6")]
    pub(super) done: Option<u64>,
}

impl Record {
    pub(super) fn blob(digest: &Digest) -> Self {
        Self {
            digest: Some(digest.to_proto()),
            function: digest.function().to_proto().into(),
            ..Self::default()
        }
    }

    pub(super) fn action(instance: &str, action: &Digest, result: ActionResult) -> Self {
        Self {
            instance: instance.to_owned(),
            result: Some(result),
            ..Self::blob(action)
        }
    }

    pub(super) fn done_before(before: u64) -> Self {
        Self {
            done: Some(before),
            ..Self::default()
        }
    }

    pub(super) fn digest(&self) -> Option<Digest> {
        let function = DigestFunction::from_proto(self.function).ok()?;
        Digest::from_field(function, self.digest.as_ref()).ok()
    }

    pub(super) const fn is_action(&self) -> bool {
        self.result.is_some()
    }

    /// What it keeps from being removed: a blob, or itself.
    pub(super) fn bytes(&self) -> u64 {
        let blob = self.digest().filter(|_| !self.is_action());
        (self.encoded_len() + HEAD) as u64 + ENTRY + blob.map_or(0, |digest| digest.size())
    }
}

/// Enough of a result's hash to tell it from the other results of its action.
pub(crate) fn fingerprint(result: &ActionResult) -> u64 {
    let digest = DigestFunction::Sha256.digest(&result.encode_to_vec());
    let first = digest.hash().first_chunk().copied();
    u64::from_le_bytes(first.unwrap_or_default())
}
