//! Zstandard: whole blobs of a batch, and streams of any length in bounded memory.

mod stored;

use std::{io, sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes};
use gorego_storage::CHUNK_SIZE;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use zstd::{
    bulk,
    stream::raw::{DParameter, Decoder, Encoder, InBuffer, Operation as _, OutBuffer},
};

use self::stored::Stored;
use crate::shared::{Held, Pace, Shared};

/// The fastest of the ordinary levels: a cache compresses anew for each reader, and most of what
/// can be gained on object files and archives is gained here.
const LEVEL: i32 = 1;
/// The largest window that a decoder sets memory aside for, as a power of two: 8 MiB, which
/// RFC 8878 asks decoders to support and which no encoder exceeds by default.
const MAX_WINDOW_LOG: u32 = 23;
/// Streams that are being decompressed at once; each may take a window's memory.
const MAX_DECOMPRESSORS: u32 = 64;
/// Streams that are being compressed at once; each takes a megabyte or so.
const MAX_COMPRESSORS: usize = 64;

/// Why compressed content cannot be decompressed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// It is not Zstandard.
    #[error("not decompressible as zstd: {0}")]
    Zstd(String),
    /// It is longer than announced.
    #[error("decompresses to more than {0} bytes")]
    TooLong(u64),
    /// It is shorter than announced.
    #[error("decompresses to {0} bytes, not to {1}")]
    TooShort(u64, u64),
    /// It ends within a frame.
    #[error("the compressed content ends within a zstd frame")]
    CutOff,
}

impl From<Malformed> for Status {
    fn from(why: Malformed) -> Self {
        Self::invalid_argument(why.to_string())
    }
}

fn malformed(why: &io::Error) -> Malformed {
    Malformed::Zstd(why.to_string())
}

/// Compresses a whole blob.
pub(crate) fn compress(content: &[u8]) -> Result<Bytes, Status> {
    bulk::compress(content, LEVEL)
        .map(Bytes::from)
        .map_err(|why| failed(&why))
}

/// Decompresses a whole blob of exactly `size` bytes, which the caller knows to be few enough.
pub(crate) fn decompress(compressed: &[u8], size: u64) -> Result<Bytes, Malformed> {
    let capacity = usize::try_from(size).map_err(|_| Malformed::TooLong(size))?;
    let content = bulk::decompress(compressed, capacity).map_err(|why| malformed(&why))?;
    let len = content.len() as u64;
    if len == size {
        Ok(content.into())
    } else {
        Err(Malformed::TooShort(len, size))
    }
}

/// Our own side failed: zstd had no memory, say.
fn failed(why: &io::Error) -> Status {
    Status::resource_exhausted(format!("compressing: {why}"))
}

/// Bounds the memory of all streams that are being compressed or decompressed.
#[derive(Clone, Debug)]
pub(crate) struct Workspaces {
    decompressors: Shared,
    compressors: Arc<Semaphore>,
}

impl Workspaces {
    /// Whoever is slow with what it decompresses gives way after `grace`.
    pub(crate) fn new(grace: Duration) -> Self {
        Self {
            decompressors: Shared::new(MAX_DECOMPRESSORS, grace),
            compressors: Arc::new(Semaphore::new(MAX_COMPRESSORS)),
        }
    }

    /// For content of `size` bytes, or fewer: not one more comes out. Waits for a workspace.
    pub(crate) async fn decompressor(&self, size: u64) -> Result<Decompressor, Status> {
        let workspace = self.decompressors.take(1).await?;
        let mut decoder = Decoder::new().map_err(|why| failed(&why))?;
        decoder
            .set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))
            .map_err(|why| failed(&why))?;
        Ok(Decompressor {
            decoder,
            size,
            left: size,
            in_frame: false,
            unflushed: false,
            workspace,
        })
    }

    /// For content of exactly `size` bytes. When all workspaces are taken, by readers of whatever
    /// speed, the content goes uncompressed into its frame, which needs none.
    pub(crate) fn compressor(&self, size: u64) -> Result<Compressor, Status> {
        let Ok(workspace) = Arc::clone(&self.compressors).try_acquire_owned() else {
            return Ok(Compressor::Stored(Stored::new(size)));
        };
        let mut encoder = Encoder::new(LEVEL).map_err(|why| failed(&why))?;
        encoder
            .set_pledged_src_size(Some(size))
            .map_err(|why| failed(&why))?;
        Ok(Compressor::Compressed {
            encoder,
            _workspace: workspace,
        })
    }
}

/// Decompresses content that arrives in pieces; any number of frames, one after another.
pub(crate) struct Decompressor {
    decoder: Decoder<'static>,
    size: u64,
    /// How many bytes may still come out.
    left: u64,
    in_frame: bool,
    /// Whether the decoder may hold output for which there was no room.
    unflushed: bool,
    workspace: Held,
}

impl Decompressor {
    /// Watches the client whose content this is.
    pub(crate) fn pace(&self) -> Pace {
        self.workspace.pace()
    }

    /// The next piece of content, of at most [`CHUNK_SIZE`]; `compressed` shrinks by what went
    /// into it. `None` when all of `compressed` is used up.
    pub(crate) fn next(&mut self, compressed: &mut Bytes) -> Result<Option<Bytes>, Malformed> {
        // Room for one byte too many tells content of the announced size from longer content.
        let room = usize::try_from(self.left.saturating_add(1)).unwrap_or(usize::MAX);
        let mut content = Vec::with_capacity(room.min(CHUNK_SIZE));
        let mut output = OutBuffer::around(&mut content);
        while output.pos() < output.capacity() && (self.unflushed || !compressed.is_empty()) {
            let mut input = InBuffer::around(compressed);
            let hint = self
                .decoder
                .run(&mut input, &mut output)
                .map_err(|why| malformed(&why))?;
            let used = input.pos();
            compressed.advance(used);
            self.in_frame = hint != 0;
            self.unflushed = self.in_frame && output.pos() == output.capacity();
        }
        let len = output.pos() as u64;
        self.left = self
            .left
            .checked_sub(len)
            .ok_or(Malformed::TooLong(self.size))?;
        Ok((len > 0).then(|| content.into()))
    }

    /// Says that no more comes. How long the content should have been is for others to check.
    pub(crate) const fn finish(&self) -> Result<(), Malformed> {
        if self.in_frame {
            Err(Malformed::CutOff)
        } else {
            Ok(())
        }
    }
}

/// Puts content that is read in pieces into one frame.
pub(crate) enum Compressor {
    /// Compressed.
    Compressed {
        encoder: Encoder<'static>,
        _workspace: OwnedSemaphorePermit,
    },
    /// As it is.
    Stored(Stored),
}

impl Compressor {
    /// What `content` adds to the frame; may be nothing yet.
    pub(crate) fn next(&mut self, content: &[u8]) -> Result<Bytes, Status> {
        match self {
            Self::Compressed { encoder, .. } => compress_next(encoder, content),
            Self::Stored(stored) => Ok(stored.next(content)),
        }
    }

    /// What ends the frame.
    pub(crate) fn finish(&mut self) -> Result<Bytes, Status> {
        match self {
            Self::Compressed { encoder, .. } => compress_end(encoder),
            Self::Stored(stored) => Ok(stored.finish()),
        }
    }
}

fn compress_next(encoder: &mut Encoder<'_>, content: &[u8]) -> Result<Bytes, Status> {
    let mut compressed = Vec::with_capacity(zstd::zstd_safe::compress_bound(content.len()));
    let mut input = InBuffer::around(content);
    while input.pos() < content.len() {
        grow_if_full(&mut compressed);
        let at = compressed.len();
        encoder
            .run(&mut input, &mut OutBuffer::around_pos(&mut compressed, at))
            .map_err(|why| failed(&why))?;
    }
    Ok(compressed.into())
}

fn compress_end(encoder: &mut Encoder<'_>) -> Result<Bytes, Status> {
    let mut compressed = Vec::new();
    loop {
        grow_if_full(&mut compressed);
        let at = compressed.len();
        let left = encoder
            .finish(&mut OutBuffer::around_pos(&mut compressed, at), true)
            .map_err(|why| failed(&why))?;
        if left == 0 {
            return Ok(compressed.into());
        }
        compressed.reserve(left);
    }
}

fn grow_if_full(buffer: &mut Vec<u8>) {
    const STEP: usize = 1024;
    if buffer.len() == buffer.capacity() {
        buffer.reserve(STEP);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{stored::BLOCK, *};

    fn decompress_all(compressed: &[u8], size: u64, piece: usize) -> Result<Vec<u8>, Malformed> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let mut decompressor = runtime
            .block_on(Workspaces::new(Duration::MAX).decompressor(size))
            .unwrap();
        let mut content = Vec::new();
        for piece in compressed.chunks(piece) {
            let mut piece = Bytes::copy_from_slice(piece);
            while let Some(out) = decompressor.next(&mut piece)? {
                assert!(out.len() <= CHUNK_SIZE);
                content.extend_from_slice(&out);
            }
        }
        decompressor.finish()?;
        Ok(content)
    }

    fn compress_all(content: &[u8], piece: usize) -> Vec<u8> {
        let size = content.len() as u64;
        compress_with(
            Workspaces::new(Duration::MAX).compressor(size).unwrap(),
            content,
            piece,
        )
    }

    /// As a reader gets it that finds all workspaces taken.
    fn store_all(content: &[u8], piece: usize) -> Vec<u8> {
        let workspaces = Workspaces::new(Duration::MAX);
        let size = content.len() as u64;
        let _taken: Vec<_> = (0..MAX_COMPRESSORS)
            .map(|_| workspaces.compressor(size).unwrap())
            .collect();
        compress_with(workspaces.compressor(size).unwrap(), content, piece)
    }

    fn compress_with(mut compressor: Compressor, content: &[u8], piece: usize) -> Vec<u8> {
        let mut compressed = Vec::new();
        for piece in content.chunks(piece) {
            compressed.extend_from_slice(&compressor.next(piece).unwrap());
        }
        compressed.extend_from_slice(&compressor.finish().unwrap());
        compressed
    }

    /// Content that compresses well, and is longer than any buffer here.
    fn content() -> Vec<u8> {
        (0_u8..=255)
            .flat_map(|byte| std::iter::repeat_n(byte, 4 * CHUNK_SIZE / 256))
            .collect()
    }

    #[test]
    fn several_frames_are_one_content() {
        let content = content();
        let (front, back) = content.split_at(content.len() / 3);
        let frames = [compress_all(front, 1 << 16), compress_all(back, 1 << 20)].concat();
        for piece in [1, 7, 1 << 20] {
            let size = content.len() as u64;
            assert_eq!(decompress_all(&frames, size, piece).unwrap(), content);
        }
    }

    #[test]
    fn without_a_workspace_content_goes_uncompressed_into_a_frame_that_anybody_reads() {
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
    fn content_that_expands_past_its_size_stops_there() {
        let compressed = compress_all(&content(), 1 << 20);
        for size in [0, 1, 1000, content().len() as u64 - 1] {
            let outcome = decompress_all(&compressed, size, 1 << 20);
            assert_eq!(outcome, Err(Malformed::TooLong(size)));
        }
    }

    #[test]
    fn a_cut_off_frame_is_noticed_wherever_it_is_cut() {
        let compressed = compress_all(b"some content, some content", 100);
        for len in 1..compressed.len() {
            let outcome = decompress_all(&compressed[..len], 26, 100);
            assert_eq!(outcome, Err(Malformed::CutOff), "cut at {len}");
        }
    }

    #[test]
    fn what_follows_the_last_frame_is_noticed() {
        let mut compressed = compress_all(b"some content", 100);
        compressed.extend_from_slice(b"and more");
        let outcome = decompress_all(&compressed, 12, 100);
        assert!(matches!(outcome, Err(Malformed::Zstd(_))), "{outcome:?}");
    }

    #[test]
    fn a_window_that_takes_too_much_memory_is_refused() {
        // A frame header: magic, no content size, a window of 2^27 bytes; then a raw empty block.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (27 - 10) << 3, 0x01, 0, 0];
        let outcome = decompress_all(&frame, 1 << 30, 100);
        assert!(matches!(outcome, Err(Malformed::Zstd(_))), "{outcome:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_was_compressed_decompresses_to_itself(
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
}
