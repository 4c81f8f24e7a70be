//! One encoded `Directory`, read without trust: what a few bytes on the wire unfold to in memory
//! is bounded before it happens.

use bytes::Bytes;
use prost::Message;
use reapi::v2;

use super::wire::Fields;
use crate::{Digest, DigestFunction, decoded::DIRECTORY};

const FILES: u64 = 1;
const DIRECTORIES: u64 = 2;

/// What one decoded directory may take, in bytes: more than a real one of the largest size does.
const MAX_DECODED_BYTES: usize = 128 * 1024 * 1024;

/// A `Directory` as it came; perhaps not one at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EncodedDirectory(pub(crate) Bytes);

/// A digest that a directory names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    File(Digest),
    Directory(Digest),
}

/// A file's or a directory's node, as far as its digest; the rest is passed over.
#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(message, optional, tag = "2")]
    digest: Option<v2::Digest>,
}

impl EncodedDirectory {
    /// The digests that the directory names, one at a time; an error says what is malformed.
    pub(crate) fn references(
        &self,
        function: DigestFunction,
    ) -> impl Iterator<Item = Result<Reference, String>> + use<> {
        Fields(self.0.clone()).filter_map(move |field| match field {
            Ok((FILES, node)) => Some(node_digest(node, function).map(Reference::File)),
            Ok((DIRECTORIES, node)) => Some(node_digest(node, function).map(Reference::Directory)),
            Ok(_) => None,
            Err(error) => Some(Err(error.to_owned())),
        })
    }

    /// The whole message; an error says what is malformed.
    pub(crate) fn decode(self) -> Result<v2::Directory, String> {
        DIRECTORY
            .decoded_bytes(&self.0, MAX_DECODED_BYTES)
            .map_err(|error| error.to_string())?;
        v2::Directory::decode(self.0).map_err(|error| error.to_string())
    }
}

fn node_digest(node: Bytes, function: DigestFunction) -> Result<Digest, String> {
    let node = Node::decode(node).map_err(|error| error.to_string())?;
    Digest::from_field(Some(function), node.digest.as_ref()).map_err(|error| error.to_string())
}
