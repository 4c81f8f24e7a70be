//! One encoded `Directory`, read without trust: what a few bytes on the wire unfold to in memory
//! is bounded before it happens.

use bytes::Bytes;
use prost::Message;
use reapi::v2;

use super::wire::{Fields, Malformed};
use crate::{Digest, DigestFunction};

const FILES: u64 = 1;
const DIRECTORIES: u64 = 2;
const SYMLINKS: u64 = 3;
const PROPERTIES: u64 = 5;
/// The field of the properties in a file's node, and in a symbolic link's.
const NODE_PROPERTIES: [u64; 2] = [6, 4];

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
        let bytes = self.decoded_bytes()?;
        if bytes > MAX_DECODED_BYTES {
            return Err(format!(
                "its nodes take {bytes} bytes of memory, at most {MAX_DECODED_BYTES} are accepted"
            ));
        }
        v2::Directory::decode(self.0).map_err(|error| error.to_string())
    }

    /// An upper bound of what the decoded message takes.
    fn decoded_bytes(&self) -> Result<usize, Malformed> {
        // A vector that grew may be half empty.
        const NODE: usize = 2 * size_of::<v2::FileNode>();
        const PROPERTY: usize = 2 * size_of::<v2::NodeProperty>();
        let mut total = self.0.len();
        for field in Fields(self.0.clone()) {
            let (number, node) = field?;
            total += NODE;
            match number {
                PROPERTIES => total += PROPERTY * Fields(node).count(),
                FILES | DIRECTORIES | SYMLINKS => {
                    for inner in Fields(node) {
                        let (number, properties) = inner?;
                        if NODE_PROPERTIES.contains(&number) {
                            total += PROPERTY * Fields(properties).count();
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(total)
    }
}

fn node_digest(node: Bytes, function: DigestFunction) -> Result<Digest, String> {
    let node = Node::decode(node).map_err(|error| error.to_string())?;
    Digest::from_field(Some(function), node.digest.as_ref()).map_err(|error| error.to_string())
}
