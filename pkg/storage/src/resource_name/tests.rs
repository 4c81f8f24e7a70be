use proptest::prelude::*;

use super::*;

const UUID: &str = "0f6a4cde-4a5c-4d9a-8c3e-0b4d1c6f7a21";

fn sha256() -> Digest {
    DigestFunction::Sha256.digest(b"content")
}

fn read_problem(name: &str) -> NameProblem {
    ReadName::parse(name).expect_err(name).problem().clone()
}

fn write_problem(name: &str) -> NameProblem {
    WriteName::parse(name).expect_err(name).problem().clone()
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
    // An upload may be called anything, a keyword included.
    let upload = prop_oneof![segment(), Just(UUID.to_owned()), Just(BLOBS.to_owned())];
    (read_name(), upload).prop_map(|(name, upload)| WriteName {
        instance: name.instance,
        upload: UploadId::new(&upload),
        compressor: name.compressor,
        digest: name.digest,
    })
}

/// A name with one piece of it cut out, doubled, or replaced.
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

/// Whatever is accepted reads the same after it was written out.
fn check_stable(name: &str) -> Result<(), TestCaseError> {
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
    fn what_was_formatted_parses_to_the_same_read(name in read_name()) {
        prop_assert_eq!(ReadName::parse(&name.to_string()), Ok(name));
    }

    #[test]
    fn what_was_formatted_parses_to_the_same_write(name in write_name()) {
        prop_assert_eq!(WriteName::parse(&name.to_string()), Ok(name));
    }

    #[test]
    fn metadata_after_the_size_of_an_upload_changes_nothing(
        name in write_name(),
        metadata in "[ -~äö]{0,40}",
    ) {
        prop_assert_eq!(WriteName::parse(&format!("{name}/{metadata}")), Ok(name));
    }

    #[test]
    fn a_function_may_be_named_even_where_its_hash_tells_it(name in read_name()) {
        let digest = name.digest;
        let named = format!("{}/blobs/{}/{digest}", name.instance, digest.function());
        let parsed = ReadName::parse(named.trim_start_matches('/')).unwrap();
        prop_assert_eq!(parsed.digest, digest);
        prop_assert_eq!(parsed.instance, name.instance);
    }

    #[test]
    fn arbitrary_text_is_refused_or_read_without_panic(name in any::<String>()) {
        check_stable(&name)?;
        let _ = InstanceName::parse(&name);
    }

    #[test]
    fn a_damaged_read_name_is_refused_or_reads_stably(
        name in read_name().prop_flat_map(|name| mutated(name.to_string())),
    ) {
        check_stable(&name)?;
    }

    #[test]
    fn a_damaged_write_name_is_refused_or_reads_stably(
        name in write_name().prop_flat_map(|name| mutated(name.to_string())),
    ) {
        check_stable(&name)?;
    }

    #[test]
    fn a_refused_name_is_quoted_in_a_bounded_message(name in ".{0,4000}") {
        if let Err(error) = WriteName::parse(&name) {
            prop_assert!(error.to_string().len() < 4000, "{}", error);
        }
    }
}

#[test]
fn names_of_each_shape_are_read_as_the_api_spells_them() {
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
fn every_hash_length_tells_its_function() {
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
fn a_function_whose_hashes_have_another_length_is_refused() {
    let digest = sha256();
    for function in ["sha1", "sha384", "sha512"] {
        let problem = read_problem(&format!("blobs/{function}/{digest}"));
        assert!(
            matches!(problem, NameProblem::Digest(DigestError::Length { .. })),
            "{problem}"
        );
    }
}

#[test]
fn a_function_that_is_not_offered_is_refused_naming_those_offered() {
    let digest = sha256();
    for function in ["md5", "murmur3", "vso", "sha256tree", "unknown"] {
        let problem = write_problem(&format!("uploads/{UUID}/blobs/{function}/{digest}"));
        assert_eq!(
            problem,
            NameProblem::Digest(DigestError::Function(function.to_owned()))
        );
        assert!(
            problem.to_string().contains("offered are sha256, blake3"),
            "{problem}"
        );
    }
}

#[test]
fn a_compressor_that_is_not_offered_is_refused_naming_those_offered() {
    let digest = sha256();
    for compressor in ["deflate", "brotli", "identity", "ZSTD", ""] {
        let problem = read_problem(&format!("compressed-blobs/{compressor}/{digest}"));
        assert_eq!(problem, NameProblem::Compressor(compressor.to_owned()));
        assert!(problem.to_string().contains("zstd"), "{problem}");
    }
}

#[test]
fn reads_and_writes_do_not_take_each_others_names() {
    let digest = sha256();
    assert_eq!(
        read_problem(&format!("uploads/{UUID}/blobs/{digest}")),
        NameProblem::Upload
    );
    assert_eq!(
        write_problem(&format!("a/blobs/{digest}")),
        NameProblem::NoUpload
    );
    assert_eq!(
        read_problem(&format!("blobs/{digest}/metadata")),
        NameProblem::Trailing("metadata".to_owned())
    );
}

#[test]
fn a_name_that_ends_early_is_told_where() {
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
        assert_eq!(read_problem(&name), NameProblem::Ends(part), "{name}");
    }
    assert_eq!(read_problem(""), NameProblem::NoKeyword);
    assert_eq!(read_problem("main/ci"), NameProblem::NoKeyword);
}

#[test]
fn a_size_that_is_no_number_of_bytes_is_refused() {
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
        let problem = read_problem(&format!("blobs/{hash}/{size}"));
        assert_eq!(problem, NameProblem::Size(size.to_owned()));
    }
}

#[test]
fn an_upload_needs_a_name_of_bounded_length() {
    let digest = sha256();
    for upload in [
        String::new(),
        "x".repeat(MAX_UPLOAD_LEN + 1),
        "a\nb".to_owned(),
    ] {
        let problem = write_problem(&format!("uploads/{upload}/blobs/{digest}"));
        assert!(matches!(problem, NameProblem::UploadId(_)), "{problem}");
    }
    let problem = write_problem(&format!("uploads/{UUID}/actions/{digest}"));
    assert_eq!(problem, NameProblem::UploadOf("actions".to_owned()));
}

#[test]
fn an_instance_name_holds_no_reserved_or_empty_segment() {
    for reserved in RESERVED {
        for name in [
            reserved.to_owned(),
            format!("a/{reserved}"),
            format!("{reserved}/a"),
        ] {
            let error = InstanceName::parse(&name).unwrap_err();
            assert!(
                matches!(error, InstanceNameError::Reserved { .. }),
                "{error}"
            );
        }
    }
    for name in ["/", "/a", "a/", "a//b"] {
        let error = InstanceName::parse(name).unwrap_err();
        assert_eq!(error, InstanceNameError::EmptySegment(name.to_owned()));
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
    assert_eq!(
        InstanceName::parse(&"x".repeat(MAX_INSTANCE_LEN + 1)),
        Err(InstanceNameError::Length(MAX_INSTANCE_LEN + 1))
    );
    assert!(matches!(
        InstanceName::parse("a\u{7f}"),
        Err(InstanceNameError::Control(_))
    ));
}

#[test]
fn the_instance_of_a_resource_name_is_checked_as_any_other() {
    let digest = sha256();
    for name in [
        format!("/blobs/{digest}"),
        format!("a//blobs/{digest}"),
        format!("/a/blobs/{digest}"),
    ] {
        let problem = read_problem(&name);
        assert!(
            matches!(
                problem,
                NameProblem::Instance(InstanceNameError::EmptySegment(_))
            ),
            "{name}: {problem}"
        );
    }
    let problem = read_problem(&format!("operations/blobs/{digest}"));
    assert!(matches!(
        problem,
        NameProblem::Instance(InstanceNameError::Reserved { .. })
    ));
    let long = format!("{}/blobs/{digest}", "x/".repeat(MAX_INSTANCE_LEN));
    assert!(matches!(read_problem(&long), NameProblem::Instance(_)));
}

#[test]
fn the_error_quotes_the_name_and_says_what_is_wrong() {
    let error = ReadName::parse("main/blobs/abc/1").unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("resource name \"main/blobs/abc/1\": hash \"abc\" has 3 digits"),
        "{text}"
    );
}
