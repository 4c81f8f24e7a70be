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

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

    use super::*;

    #[test]
    fn metadata_is_decoded_with_and_without_padding() {
        let sent = RequestMetadata {
            tool_invocation_id: "build".to_owned(),
            ..RequestMetadata::default()
        };
        for engine in [STANDARD, STANDARD_NO_PAD] {
            let value = engine.encode(sent.encode_to_vec());
            assert_eq!(decode(value.as_bytes()).as_ref(), Some(&sent));
        }
    }

    #[test]
    fn metadata_that_is_malformed_or_too_long_is_ignored() {
        let long = "A".repeat(MAX_LEN + 4);
        for value in ["%%%%", "AAAAA", "////", &long] {
            assert_eq!(decode(value.as_bytes()), None, "{value}");
        }
    }
}
