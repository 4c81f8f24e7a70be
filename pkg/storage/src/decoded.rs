//! Bounds the memory that action results take.

use reapi::v2;

/// The most memory that a decoded action result may take, in bytes: more than a real one of 4 MiB takes.
pub const MAX_DECODED_RESULT: usize = 32 * 1024 * 1024;

/// Returns an upper bound of the memory that a stored action result of this many bytes takes, encoded and
/// decoded.
pub fn result_memory(encoded: u64) -> u64 {
    /// The most memory for the fewest bytes: an empty message, of a key and a length, in a vector that
    /// may be half empty.
    const UNFOLDED: u64 = size_of::<v2::OutputFile>() as u64;
    /// The capacity that vectors begin with, one of each type.
    const VECTORS: u64 = 4096;
    let decoded = encoded.saturating_mul(UNFOLDED).saturating_add(VECTORS);
    encoded.saturating_add(decoded.min(MAX_DECODED_RESULT as u64))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use reapi::shapes::Shaped as _;

    use super::*;

    #[test]
    fn the_largest_real_action_result_is_accepted() {
        let digest = crate::DigestFunction::Sha256.empty().to_proto();
        let file = |number| v2::OutputFile {
            path: format!("{number}"),
            digest: Some(digest.clone()),
            ..Default::default()
        };
        for (files, least) in [(1, 0), (50_000, 3 << 20)] {
            let result = v2::ActionResult {
                output_files: (0..files).map(file).collect(),
                ..Default::default()
            };
            let encoded = result.encode_to_vec();
            assert!(encoded.len() > least);
            let bytes = v2::ActionResult::SHAPE
                .decoded_bytes(&encoded, MAX_DECODED_RESULT)
                .unwrap();
            assert!((bytes + encoded.len()) as u64 <= result_memory(encoded.len() as u64));
        }
    }
}
