//! The header in which clients describe themselves.
#![cfg(test)]

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use prost::Message as _;
use reapi::{
    metadata::{MAX_LEN, decode},
    v2::RequestMetadata,
};

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
