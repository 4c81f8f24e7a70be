//! The header in which clients describe themselves (REAPI, "Request metadata").

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use prost::Message as _;

use crate::v2::RequestMetadata;

/// The name of the header with the encoded `RequestMetadata`.
pub const HEADER: &str = "build.bazel.remote.execution.v2.requestmetadata-bin";
/// The longest value that is used, in bytes; three times what Bazel sends.
pub const MAX_LEN: usize = 1536;
/// gRPC libraries send binary headers with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Decodes the value of the header; `None` if it is malformed or longer than [`MAX_LEN`].
pub fn decode(value: &[u8]) -> Option<RequestMetadata> {
    if value.len() > MAX_LEN {
        return None;
    }
    let encoded = BASE64.decode(value).ok()?;
    RequestMetadata::decode(encoded.as_slice()).ok()
}
