use proptest::prelude::*;

use super::*;

const UUID: &str = "0f6a4cde-4a5c-4d9a-8c3e-0b4d1c6f7a21";

fn sha256() -> Digest {
    DigestFunction::Sha256.digest(b"content")
}

/// Returns the reason why `name` is not the name of a blob to read.
fn read_error(name: &str) -> String {
    ReadName::parse(name).expect_err(name).why
}

/// Returns the reason why `name` is not the name of a blob to write.
fn write_error(name: &str) -> String {
    WriteName::parse(name).expect_err(name).why
}

fn segment() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9._ äö漢-]{1,12}".prop_filter("reserved", |text| !RESERVED.contains(&text.as_str()))
}

fn instance() -> impl Strategy<Value = InstanceName> {
    prop::collection::vec(segment(), 0..4)
        .prop_map(|segments| InstanceName::parse(&segments.join("/")).unwrap())
}

fn digest() -> impl Strategy<Value = Digest> {
    let function = prop::sample::select(DigestFunction::ALL.to_vec());
    (function, any::<[u8; 64]>(), 0..=i64::MAX.unsigned_abs()).prop_map(|(function, hash, size)| {
        Digest::from_hash(function, &hash[..function.hash_len()], size).unwrap()
    })
}

fn compressor() -> impl Strategy<Value = Compressor> {
    prop::sample::select(Compressor::ALL.to_vec())
}

fn read_name() -> impl Strategy<Value = ReadName> {
    (instance(), compressor(), digest()).prop_map(|(instance, compressor, digest)| ReadName {
        instance,
        compressor,
        digest,
    })
}

fn write_name() -> impl Strategy<Value = WriteName> {
    // Any text is an upload id, also a keyword.
    let upload = prop_oneof![segment(), Just(UUID.to_owned()), Just(BLOBS.to_owned())];
    (read_name(), upload).prop_map(|(name, upload)| WriteName {
        instance: name.instance,
        upload: UploadId::new(&upload),
        compressor: name.compressor,
        digest: name.digest,
    })
}

/// Replaces one part of a name.
fn mutated(name: String) -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "",
        "/",
        "//",
        "blobs",
        "uploads",
        "zstd",
        "blake3",
        "-1",
        "+1",
        "0",
        "A",
        "\0",
        "漢",
        "99999999999999999999",
    ]);
    (any::<prop::sample::Index>(), 0_usize..70, piece).prop_map(move |(at, len, piece)| {
        let chars: Vec<char> = name.chars().collect();
        let at = at.index(chars.len() + 1);
        let tail = chars.iter().skip(at + len);
        chars
            .iter()
            .take(at)
            .copied()
            .chain(piece.chars())
            .chain(tail.copied())
            .collect()
    })
}

/// Checks that an accepted name is equal after formatting and parsing.
fn check_round_trip(name: &str) -> Result<(), TestCaseError> {
    if let Ok(parsed) = ReadName::parse(name) {
        prop_assert_eq!(ReadName::parse(&parsed.to_string()), Ok(parsed));
        prop_assert!(WriteName::parse(name).is_err());
    }
    if let Ok(parsed) = WriteName::parse(name) {
        prop_assert_eq!(WriteName::parse(&parsed.to_string()), Ok(parsed));
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_read_name_survives_formatting_and_parsing(name in read_name()) {
        prop_assert_eq!(ReadName::parse(&name.to_string()), Ok(name));
    }

    #[test]
    fn a_write_name_survives_formatting_and_parsing(name in write_name()) {
        prop_assert_eq!(WriteName::parse(&name.to_string()), Ok(name));
    }

    #[test]
    fn metadata_after_the_size_of_an_upload_is_ignored(
        name in write_name(),
        metadata in "[ -~äö]{0,40}",
    ) {
        prop_assert_eq!(WriteName::parse(&format!("{name}/{metadata}")), Ok(name));
    }

    #[test]
    fn a_digest_function_may_be_named_although_it_can_be_inferred(name in read_name()) {
        let digest = name.digest;
        let named = format!("{}/blobs/{}/{digest}", name.instance.as_str(), digest.function());
        let parsed = ReadName::parse(named.trim_start_matches('/')).unwrap();
        prop_assert_eq!(parsed.digest, digest);
        prop_assert_eq!(parsed.instance, name.instance);
    }

    #[test]
    fn parsing_arbitrary_text_does_not_panic(name in any::<String>()) {
        check_round_trip(&name)?;
        let _ = InstanceName::parse(&name);
    }

    #[test]
    fn a_mutated_read_name_is_refused_or_survives_formatting(
        name in read_name().prop_flat_map(|name| mutated(name.to_string())),
    ) {
        check_round_trip(&name)?;
    }

    #[test]
    fn a_mutated_write_name_is_refused_or_survives_formatting(
        name in write_name().prop_flat_map(|name| mutated(name.to_string())),
    ) {
        check_round_trip(&name)?;
    }

    #[test]
    fn the_error_of_a_long_name_is_short(name in ".{0,4000}") {
        if let Err(error) = WriteName::parse(&name) {
            prop_assert!(error.to_string().len() < 4000, "{}", error);
        }
    }
}

#[test]
fn names_of_every_form_in_the_reapi_are_parsed() {
    let digest = sha256();
    let blake3 = DigestFunction::Blake3.digest(b"content");
    let cases = [
        (format!("blobs/{digest}"), "", Compressor::Identity, digest),
        (
            format!("main/ci/blobs/{digest}"),
            "main/ci",
            Compressor::Identity,
            digest,
        ),
        (
            format!("main/compressed-blobs/zstd/{digest}"),
            "main",
            Compressor::Zstd,
            digest,
        ),
        (
            format!("blobs/blake3/{blake3}"),
            "",
            Compressor::Identity,
            blake3,
        ),
        (
            format!("compressed-blobs/zstd/blake3/{blake3}"),
            "",
            Compressor::Zstd,
            blake3,
        ),
        (
            format!("blobs/sha256/{digest}"),
            "",
            Compressor::Identity,
            digest,
        ),
    ];
    for (name, instance, compressor, digest) in cases {
        let read = ReadName::parse(&name).unwrap();
        assert_eq!(
            (read.instance.as_str(), read.compressor, read.digest),
            (instance, compressor, digest)
        );
    }
    let name = format!("a/uploads/{UUID}/compressed-blobs/zstd/{digest}/blobs/uploads//x");
    let write = WriteName::parse(&name).unwrap();
    assert_eq!(write.upload.as_str(), UUID);
    assert_eq!(
        write.to_string(),
        format!("a/uploads/{UUID}/compressed-blobs/zstd/{digest}")
    );
}

#[test]
fn a_digest_function_is_inferred_from_the_length_of_the_hash() {
    for function in DigestFunction::ALL
        .into_iter()
        .filter(|f| *f != DigestFunction::Blake3)
    {
        let digest = function.digest(b"content");
        let name = ReadName::parse(&format!("blobs/{digest}")).unwrap();
        assert_eq!(name.digest, digest);
        assert_eq!(name.to_string(), format!("blobs/{digest}"));
    }
}

#[test]
fn a_hash_whose_length_differs_from_that_of_the_named_function_is_refused() {
    let digest = sha256();
    for function in ["sha1", "sha384", "sha512"] {
        let error = read_error(&format!("blobs/{function}/{digest}"));
        assert!(
            error.contains(&format!("has 64 digits, {function} has")),
            "{error}"
        );
    }
}

#[test]
fn the_error_for_an_unknown_digest_function_lists_the_offered_ones() {
    let digest = sha256();
    for function in ["md5", "murmur3", "vso", "sha256tree", "unknown"] {
        let error = write_error(&format!("uploads/{UUID}/blobs/{function}/{digest}"));
        let expected =
            format!("digest function {function} is not offered; offered are sha256, blake3");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn the_error_for_an_unknown_compressor_lists_the_offered_ones() {
    let digest = sha256();
    for compressor in ["deflate", "brotli", "identity", "ZSTD", ""] {
        let error = read_error(&format!("compressed-blobs/{compressor}/{digest}"));
        let expected = format!("compressor {compressor:?} is not offered; offered is \"zstd\"");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn a_read_refuses_the_name_of_an_upload_and_a_write_that_of_a_blob() {
    let digest = sha256();
    let error = read_error(&format!("uploads/{UUID}/blobs/{digest}"));
    assert!(error.starts_with("names an upload"), "{error}");
    let error = write_error(&format!("a/blobs/{digest}"));
    assert!(error.starts_with("names no upload"), "{error}");
    let error = read_error(&format!("blobs/{digest}/metadata"));
    assert!(
        error.starts_with("\"metadata\" follows the size"),
        "{error}"
    );
}

#[test]
fn the_error_for_a_truncated_name_says_which_part_is_missing() {
    let hash = sha256().hex();
    let cases = [
        ("blobs".to_owned(), "hash"),
        ("blobs/blake3".to_owned(), "hash"),
        (format!("blobs/{hash}"), "size"),
        ("compressed-blobs".to_owned(), "compressor"),
        ("uploads".to_owned(), "UUID of the upload"),
        (
            format!("uploads/{UUID}"),
            "\"blobs\" or \"compressed-blobs\"",
        ),
    ];
    for (name, part) in cases {
        assert_eq!(
            read_error(&name),
            format!("ends before the {part}"),
            "{name}"
        );
    }
    for name in ["", "main/ci"] {
        assert!(read_error(name).starts_with("has no segment \"blobs\""));
    }
}

#[test]
fn a_size_that_is_not_a_decimal_number_is_refused() {
    let hash = sha256().hex();
    for size in [
        "",
        "-1",
        "+1",
        "1e3",
        "0x10",
        " 1",
        "9223372036854775808",
        "١",
    ] {
        let error = read_error(&format!("blobs/{hash}/{size}"));
        let expected = format!("size {size:?} is not a decimal number of bytes below 2^63");
        assert_eq!(error, expected);
    }
}

#[test]
fn an_upload_id_has_a_bounded_length_and_no_control_characters() {
    let digest = sha256();
    for upload in [
        String::new(),
        "x".repeat(MAX_UPLOAD_LEN + 1),
        "a\nb".to_owned(),
    ] {
        let error = write_error(&format!("uploads/{upload}/blobs/{digest}"));
        assert!(error.contains("is not 1 to 256 bytes"), "{error}");
    }
    let error = write_error(&format!("uploads/{UUID}/actions/{digest}"));
    assert!(
        error.starts_with("\"actions\" follows the upload"),
        "{error}"
    );
}

#[test]
fn an_instance_name_has_no_reserved_or_empty_segment() {
    for reserved in RESERVED {
        for name in [
            reserved.to_owned(),
            format!("a/{reserved}"),
            format!("{reserved}/a"),
        ] {
            let error = InstanceName::parse(&name).unwrap_err();
            assert!(error.why.contains("reserved segment"), "{error}");
        }
    }
    for name in ["/", "/a", "a/", "a//b"] {
        let error = InstanceName::parse(name).unwrap_err();
        let expected = format!("instance name {name:?} has an empty segment");
        assert_eq!(error.to_string(), expected);
    }
    for name in [
        "",
        "a",
        "a/b",
        "Blobs",
        "ünïcode 漢字",
        "..",
        &"x".repeat(MAX_INSTANCE_LEN),
    ] {
        assert_eq!(InstanceName::parse(name).unwrap().as_str(), name);
    }
    let refusal = |name: &str| InstanceName::parse(name).unwrap_err().why;
    let long = refusal(&"x".repeat(MAX_INSTANCE_LEN + 1));
    assert!(long.starts_with("has 1025 bytes"), "{long}");
    assert_eq!(refusal("a\u{7f}"), "contains a control character");
}

#[test]
fn the_instance_name_within_a_resource_name_is_validated() {
    let digest = sha256();
    for name in [
        format!("/blobs/{digest}"),
        format!("a//blobs/{digest}"),
        format!("/a/blobs/{digest}"),
    ] {
        let error = read_error(&name);
        assert!(error.ends_with("has an empty segment"), "{name}: {error}");
    }
    let error = read_error(&format!("operations/blobs/{digest}"));
    assert!(error.contains("reserved segment \"operations\""), "{error}");
    let long = format!("{}/blobs/{digest}", "x/".repeat(MAX_INSTANCE_LEN));
    let error = read_error(&long);
    assert!(error.contains("has 2048 bytes, at most"), "{error}");
}

#[test]
fn the_error_quotes_the_name_and_gives_the_reason() {
    let error = ReadName::parse("main/blobs/abc/1").unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("resource name \"main/blobs/abc/1\": hash \"abc\" has 3 digits"),
        "{text}"
    );
}
