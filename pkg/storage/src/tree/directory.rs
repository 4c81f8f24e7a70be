//! One encoded `Directory`, decoded without trust: what a few bytes on the wire unfold to in memory
//! is bounded before it happens.

use bytes::Bytes;
use prost::Message;
use reapi::v2;

use crate::decoded::DIRECTORY;

/// What one decoded directory may take, in bytes: more than a real one of the largest size does.
const MAX_DECODED_BYTES: usize = 128 * 1024 * 1024;

/// Decodes a `Directory`; an error says what is malformed.
pub(super) fn decode(encoded: Bytes) -> Result<v2::Directory, String> {
    DIRECTORY
        .decoded_bytes(&encoded, MAX_DECODED_BYTES)
        .map_err(|error| error.to_string())?;
    v2::Directory::decode(encoded).map_err(|error| error.to_string())
}
