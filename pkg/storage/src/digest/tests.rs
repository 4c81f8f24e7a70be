use super::*;

#[test]
fn each_function_has_the_published_hash_of_the_empty_blob() {
    let expected = [
        (
            DigestFunction::Sha256,
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ),
        (
            DigestFunction::Blake3,
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        ),
        (
            DigestFunction::Sha1,
            "da39a3ee5e6b4b0d3255bfef95601890afd80709",
        ),
    ];
    for (function, hex) in expected {
        assert_eq!(function.empty().hex(), hex);
        assert!(function.empty().is_empty_blob());
    }
    assert!(
        DigestFunction::Sha512
            .empty()
            .hex()
            .starts_with("cf83e1357eefb8bd")
    );
    assert!(
        DigestFunction::Sha384
            .empty()
            .hex()
            .starts_with("38b060a751ac9638")
    );
}

#[test]
fn a_digest_survives_formatting_and_parsing() {
    for function in DigestFunction::ALL {
        let digest = function.digest(b"content");
        let parsed = Digest::parse(Some(function), &digest.hex(), 7);
        assert_eq!(parsed, Ok(digest));
        assert_eq!(
            Digest::from_proto(Some(function), &digest.to_proto()),
            Ok(digest)
        );
    }
}

#[test]
fn a_hash_of_64_digits_without_a_function_is_inferred_as_sha256() {
    let hex = DigestFunction::Blake3.digest(b"x").hex();
    let digest = Digest::parse(None, &hex, 1).unwrap();
    assert_eq!(digest.function(), DigestFunction::Sha256);
}

#[test]
fn each_kind_of_invalid_digest_has_its_error() {
    let good = DigestFunction::Sha256.digest(b"x").hex();
    assert!(matches!(
        Digest::parse(None, "a", 1),
        Err(DigestError::Length { .. })
    ));
    assert!(matches!(
        Digest::parse(None, "", 1),
        Err(DigestError::Length { .. })
    ));
    assert!(matches!(
        Digest::parse(None, &good, -1),
        Err(DigestError::Size(-1))
    ));
    assert!(matches!(
        Digest::parse(None, &good.to_uppercase(), 1),
        Err(DigestError::NotHex(_))
    ));
    assert!(matches!(
        Digest::parse(Some(DigestFunction::Sha1), &good, 1),
        Err(DigestError::Length { .. })
    ));
    assert!(matches!(
        Digest::from_field(None, None),
        Err(DigestError::Missing)
    ));
    assert!(matches!(
        DigestFunction::from_proto(3),
        Err(DigestError::Function(_))
    ));
    let two_byte_letters = "é".repeat(32);
    assert!(matches!(
        Digest::parse(None, &two_byte_letters, 1),
        Err(DigestError::NotHex(_))
    ));
}

#[test]
fn the_error_for_a_huge_hash_is_short() {
    let error = Digest::parse(None, &"f".repeat(1 << 20), 1).unwrap_err();
    assert!(error.to_string().len() < 300);
}
