use futures::FutureExt as _;
use proptest::prelude::*;

use super::*;

fn decompress(compressed: &[u8], size: u64) -> Result<Bytes, Malformed> {
    Zstd::default().decompress(compressed, size)
}

fn decompress_all(compressed: &[u8], size: u64, piece: usize) -> Result<Vec<u8>, Malformed> {
    let mut decompression = Decompression::new(workspaces(64 << 20), size);
    let mut content = Vec::new();
    for piece in compressed.chunks(piece) {
        let mut piece = Bytes::copy_from_slice(piece);
        loop {
            let ready = decompression.ready(&piece).now_or_never();
            ready.expect("memory is free").unwrap();
            if let Some(out) = decompression.next(&mut piece)? {
                assert!(out.len() <= CHUNK_SIZE);
                content.extend_from_slice(&out);
            } else if piece.is_empty() {
                break;
            }
        }
    }
    decompression.finish()?;
    Ok(content)
}

fn workspaces(bytes: u64) -> Budget {
    Budget::memory("tests", bytes)
}

fn compress_all(content: &[u8], piece: usize) -> Vec<u8> {
    let size = content.len() as u64;
    let compression = Compression::new(&workspaces(64 << 20), size).unwrap();
    compress_with(compression, content, piece)
}

/// Compresses for a reader without memory for it.
fn store_all(content: &[u8], piece: usize) -> Vec<u8> {
    let size = content.len() as u64;
    let stored = Compression::new(&workspaces(0), size).unwrap();
    compress_with(stored, content, piece)
}

#[test]
fn decompression_reserves_the_memory_of_its_window_and_content() {
    const MIB: usize = 1 << 20;
    let noise: Vec<u8> = (0..4 * MIB).map(|n| (n * n / 7).to_le_bytes()[1]).collect();
    let streamed = |level, content: &[u8]| zstd::encode_all(content, level).unwrap();
    let takes = |frame: &[u8], size: usize| {
        let workspaces = workspaces(64 << 20);
        let mut decompression = Decompression::new(workspaces.clone(), size as u64);
        decompression.ready(frame).now_or_never().unwrap().unwrap();
        (64 << 20) - workspaces.share(u64::MAX, 1).bytes()
    };
    let window = takes(&streamed(3, &noise), 4 * MIB) - FIXED;
    assert_eq!(window, 2 << 20, "of zstd's default level");
    assert_eq!(takes(&streamed(3, &noise[..1000]), 1000), FIXED + 1000);
    assert_eq!(takes(b"nonsense", 4 * MIB), FIXED + (4 << 20));
    let skipped = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    let frames = [&skipped, streamed(1, &noise[..10]).as_slice()].concat();
    assert_eq!(decompress_all(&frames, 10, 3).unwrap(), noise[..10]);
}

fn compress_with(mut compression: Compression, content: &[u8], piece: usize) -> Vec<u8> {
    let mut compressed = Vec::new();
    for piece in content.chunks(piece) {
        compressed.extend_from_slice(&compression.next(piece, false).unwrap());
    }
    compressed.extend_from_slice(&compression.next(&[], true).unwrap());
    compressed
}

/// Content that compresses well, and is longer than any buffer.
fn content() -> Vec<u8> {
    (0_u8..=255)
        .flat_map(|byte| std::iter::repeat_n(byte, 4 * CHUNK_SIZE / 256))
        .collect()
}

#[test]
fn several_zstd_frames_decompress_to_one_blob() {
    let content = content();
    let (front, back) = content.split_at(content.len() / 3);
    let frames = [compress_all(front, 1 << 16), compress_all(back, 1 << 20)].concat();
    for piece in [1, 7, 1 << 20] {
        let size = content.len() as u64;
        assert_eq!(decompress_all(&frames, size, piece).unwrap(), content);
    }
}

#[test]
fn without_memory_content_is_stored_uncompressed_in_a_valid_frame() {
    let content = content();
    for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, content.len()] {
        let content = &content[..len];
        for piece in [1000, CHUNK_SIZE, 1 << 20] {
            let frame = store_all(content, piece);
            assert!(frame.len() >= len, "{len} bytes are stored");
            assert_eq!(zstd::decode_all(frame.as_slice()).unwrap(), content);
            assert_eq!(decompress(&frame, len as u64).unwrap(), content);
            assert_eq!(
                decompress_all(&frame, len as u64, 1 << 16).unwrap(),
                content
            );
        }
    }
}

#[test]
fn a_block_for_each_byte_is_accepted() {
    // A frame header: magic, no content size, a window of 1 KiB; then raw blocks of a byte.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x00];
    let content = vec![7; 100_000];
    for _ in &content {
        frame.extend_from_slice(&[0x08, 0, 0, 7]);
    }
    frame.extend_from_slice(&[0x01, 0, 0]);
    assert_eq!(decompress_all(&frame, 100_000, 1000).unwrap(), content);
}

#[test]
fn endless_empty_frames_are_refused() {
    // Frames of no content, and frames to be skipped.
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 100, 0, 0, 0], [0; 100].as_slice()].concat();
    for empty in [compress_all(b"", 1), skipped] {
        let some = [empty.repeat(10), compress_all(b"x", 1)].concat();
        assert_eq!(decompress_all(&some, 1, 1000).unwrap(), b"x");
        let endless = empty.repeat(70_000 / empty.len());
        let outcome = decompress_all(&endless, 1, 1000);
        assert!(
            matches!(outcome, Err(Malformed::TooMuch(_, 1))),
            "{outcome:?}"
        );
    }
}

#[test]
fn content_that_expands_past_its_size_is_refused() {
    let compressed = compress_all(&content(), 1 << 20);
    for size in [0, 1, 1000, content().len() as u64 - 1] {
        let outcome = decompress_all(&compressed, size, 1 << 20);
        assert_eq!(outcome, Err(Malformed::TooLong(size)));
    }
}

#[test]
fn a_truncated_frame_is_refused_wherever_it_is_cut() {
    let compressed = compress_all(b"some content, some content", 100);
    for len in 1..compressed.len() {
        let outcome = decompress_all(&compressed[..len], 26, 100);
        assert_eq!(outcome, Err(Malformed::CutOff), "cut at {len}");
    }
}

#[test]
fn bytes_after_the_last_frame_are_refused() {
    let mut compressed = compress_all(b"some content", 100);
    compressed.extend_from_slice(b"and more");
    let outcome = decompress_all(&compressed, 12, 100);
    assert!(matches!(outcome, Err(Malformed::Zstd(_))), "{outcome:?}");
}

#[test]
fn a_window_of_more_than_8_mib_is_refused() {
    // A frame header: magic, no content size, a window of 2^27 bytes; then a raw empty block.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (27 - 10) << 3, 0x01, 0, 0];
    let outcome = decompress_all(&frame, 1 << 30, 100);
    assert!(matches!(outcome, Err(Malformed::Zstd(_))), "{outcome:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn compressed_content_decompresses_to_itself(
        content in proptest::collection::vec(0_u8..4, 0..5000),
        repeat in 1_usize..200,
        piece in 1_usize..100_000,
    ) {
        let content = content.repeat(repeat);
        let size = content.len() as u64;
        let compressed = compress_all(&content, piece);
        prop_assert_eq!(&decompress_all(&compressed, size, piece).unwrap(), &content);
        prop_assert_eq!(&decompress(&compressed, size).unwrap(), &content);
        let whole = compress(&content).unwrap();
        prop_assert_eq!(&decompress_all(&whole, size, piece).unwrap(), &content);
    }

    #[test]
    fn no_input_makes_decompression_panic(
        garbage in proptest::collection::vec(any::<u8>(), 0..200),
        with_magic in any::<bool>(),
        size in 0_u64..10_000,
    ) {
        let magic: &[u8] = if with_magic { &[0x28, 0xb5, 0x2f, 0xfd] } else { &[] };
        let garbage = [magic, &garbage].concat();
        let _ = decompress_all(&garbage, size, 16);
        let _ = decompress(&garbage, size);
    }
}
