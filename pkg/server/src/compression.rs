//! Zstandard: whole blobs of a batch, and streams of any length in bounded memory.

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use gorego_grpc::full;
use gorego_limits::{Budget, Call, Permit};
use gorego_storage::CHUNK_SIZE;
use tonic::Status;
use zstd::{
    bulk,
    stream::raw::{DParameter, Decoder, Encoder, InBuffer, Operation as _, OutBuffer},
};

/// The fastest of the ordinary levels: a cache compresses anew for each reader, and this level gains most of what can
/// be gained on object files and archives.
const LEVEL: i32 = 1;
/// The largest window of a decoder, as a power of two: 8 MiB, which RFC 8878 requires of decoders and no encoder
/// exceeds by default.
const MAX_WINDOW_LOG: u32 = 23;
/// The memory of a stream without its window, in bytes.
const FIXED: u64 = 256 * 1024;
/// The window and buffers of a stream that is being compressed, in bytes.
const COMPRESSED_WINDOW: u64 = 768 * 1024;
/// The largest block of a frame, in bytes, and the smallest window that allows it (RFC 8878, 3.1.1).
const BLOCK: usize = 128 * 1024;

/// The reason why compressed content cannot be decompressed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("not decompressible as zstd: {0}")]
    Zstd(String),
    #[error("decompresses to more than {0} bytes")]
    TooLong(u64),
    #[error("more than {0} compressed bytes, for content of {1}")]
    TooMuch(u64, u64),
    #[error("decompresses to {0} bytes, not to {1}")]
    TooShort(u64, u64),
    #[error("the compressed content ends within a zstd frame")]
    CutOff,
}

impl From<Malformed> for Status {
    fn from(why: Malformed) -> Self {
        Self::invalid_argument(why.to_string())
    }
}

impl From<io::Error> for Malformed {
    fn from(why: io::Error) -> Self {
        Self::Zstd(why.to_string())
    }
}

pub(crate) fn compress(content: &[u8]) -> Result<Bytes, Status> {
    let compressed = bulk::compress(content, LEVEL).map_err(failed)?;
    Ok(compressed.into())
}

/// A decompressor of whole blobs, one after another in the same workspace.
#[derive(Default)]
pub(crate) struct Zstd(Option<bulk::Decompressor<'static>>);

impl Zstd {
    /// Returns the content of exactly `size` bytes, which the caller limits.
    pub(crate) fn decompress(&mut self, compressed: &[u8], size: u64) -> Result<Bytes, Malformed> {
        let decompressor = match &mut self.0 {
            Some(decompressor) => decompressor,
            none => none.insert(bulk::Decompressor::new()?),
        };
        let capacity = usize::try_from(size).map_err(|_| Malformed::TooLong(size))?;
        let content = decompressor.decompress(compressed, capacity)?;
        let len = content.len() as u64;
        if len == size {
            Ok(content.into())
        } else {
            Err(Malformed::TooShort(len, size))
        }
    }
}

/// Returns the status for a failure of this server, for example for lack of memory.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(why: io::Error) -> Status {
    Status::resource_exhausted(format!("compressing: {why}"))
}

/// The decompression of content that arrives in pieces, in any number of frames.
pub(crate) struct Decompression {
    call: Call,
    memory: Budget,
    /// The workspace, created for the first frame and again for one that needs more.
    workspace: Option<Workspace>,
    size: u64,
    /// The most bytes of content that may still come out.
    pub(crate) left: u64,
    /// The most compressed bytes that may still go in.
    due: u64,
    in_frame: bool,
    /// True if the decoder may hold output for which there was no room.
    unflushed: bool,
}

struct Workspace {
    decoder: Decoder<'static>,
    /// The reserved bytes.
    bytes: u64,
    _memory: Permit,
}

impl Decompression {
    /// Creates the decompression of content of at most `size` bytes for the current call.
    pub(crate) fn new(memory: Budget, size: u64) -> Self {
        Self {
            call: Call::current(),
            memory,
            workspace: None,
            size,
            left: size,
            due: compressed_bound(size),
            in_frame: false,
            unflushed: false,
        }
    }

    /// Reserves the memory of the frame that begins with these bytes, if one does. Holds none while it waits.
    pub(crate) async fn ready(&mut self, compressed: &[u8]) -> Result<(), Status> {
        if !self.needs_more(compressed) {
            return Ok(());
        }
        self.workspace = None;
        let bytes = self.needed(compressed);
        // Another task may read the content for the call.
        let memory = self.call.scope(self.memory.reserve(bytes));
        let memory = memory.await.map_err(full)?;
        let mut decoder = Decoder::new().map_err(failed)?;
        decoder
            .set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))
            .map_err(failed)?;
        self.workspace = Some(Workspace {
            decoder,
            bytes,
            _memory: memory,
        });
        Ok(())
    }

    fn needs_more(&self, compressed: &[u8]) -> bool {
        let reserved = self.workspace.as_ref().map_or(0, |held| held.bytes);
        !self.in_frame && !compressed.is_empty() && reserved < self.needed(compressed)
    }

    /// Returns the memory of a frame in bytes. A window holds no more than the content.
    fn needed(&self, frame: &[u8]) -> u64 {
        FIXED + window(frame).min(self.left)
    }

    /// Returns the next piece of content, at most [`CHUNK_SIZE`], and takes the compressed bytes of it. `None` when
    /// all of `compressed` is taken, or begins with a frame for which this is not ready.
    pub(crate) fn next(&mut self, compressed: &mut Bytes) -> Result<Option<Bytes>, Malformed> {
        // Room for one byte more tells content of the announced size from longer content.
        let room = usize::try_from(self.left.saturating_add(1)).unwrap_or(usize::MAX);
        let mut content = Vec::with_capacity(room.min(CHUNK_SIZE));
        let mut output = OutBuffer::around(&mut content);
        while output.pos() < output.capacity()
            && (self.unflushed || !compressed.is_empty())
            && !self.needs_more(compressed)
            && let Some(workspace) = &mut self.workspace
        {
            let mut input = InBuffer::around(compressed);
            let hint = workspace.decoder.run(&mut input, &mut output)?;
            let used = input.pos();
            compressed.advance(used);
            self.due = (self.due.checked_sub(used as u64))
                .ok_or(Malformed::TooMuch(compressed_bound(self.size), self.size))?;
            self.in_frame = hint != 0;
            self.unflushed = self.in_frame && output.pos() == output.capacity();
        }
        let len = output.pos() as u64;
        self.left = (self.left.checked_sub(len)).ok_or(Malformed::TooLong(self.size))?;
        // Content that waits to be stored takes no more memory than it has bytes.
        content.shrink_to_fit();
        Ok((len > 0).then(|| content.into()))
    }

    /// Checks that the content does not end within a frame. Its size is checked by the store.
    pub(crate) const fn finish(&self) -> Result<(), Malformed> {
        if self.in_frame {
            Err(Malformed::CutOff)
        } else {
            Ok(())
        }
    }
}

/// Returns an upper bound of the window of the frame that begins with these bytes.
fn window(frame: &[u8]) -> u64 {
    const MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    const SINGLE_SEGMENT: u8 = 0x20;
    let largest = 1 << MAX_WINDOW_LOG;
    let Some(&[descriptor, window]) = frame.strip_prefix(MAGIC).and_then(<[u8]>::first_chunk)
    else {
        return largest;
    };
    if descriptor & SINGLE_SEGMENT != 0 {
        // The window is the content.
        return largest;
    }
    let base = 1u64 << (10 + (window >> 3));
    (base + base / 8 * u64::from(window & 7)).min(largest)
}

/// Returns the most compressed bytes of content of `size` bytes: an encoder may put each byte into a block of its
/// own, and add some empty frames, but not an endless number of them.
const fn compressed_bound(size: u64) -> u64 {
    const BLOCK_OF_ONE: u64 = 4;
    const MORE: u64 = 64 * 1024;
    size.saturating_mul(BLOCK_OF_ONE).saturating_add(MORE)
}

/// The compression of content that is read in pieces, into one frame.
pub(crate) enum Compression {
    Encoder {
        encoder: Encoder<'static>,
        _workspace: Permit,
    },
    /// Blocks that hold the content as it is, which needs no workspace, after a header that is still to be written.
    Stored { header: Bytes },
}

impl Compression {
    /// Creates the compression of content of exactly `size` bytes. When too little memory is free, the frame holds it
    /// uncompressed.
    pub(crate) fn new(memory: &Budget, size: u64) -> Result<Self, Status> {
        // The magic number, a descriptor of eight bytes of size and no checksum, and a window of a block.
        const START: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0xc0, (17 - 10) << 3];
        let Some(workspace) = memory.try_reserve(FIXED + size.min(COMPRESSED_WINDOW)) else {
            let header = [START.as_slice(), &size.to_le_bytes()].concat().into();
            return Ok(Self::Stored { header });
        };
        let mut encoder = Encoder::new(LEVEL).map_err(failed)?;
        encoder.set_pledged_src_size(Some(size)).map_err(failed)?;
        Ok(Self::Encoder {
            encoder,
            _workspace: workspace,
        })
    }

    /// Returns the part of the frame for `content`, which may be empty, and the end of the frame if that is all.
    pub(crate) fn next(&mut self, content: &[u8], end: bool) -> Result<Bytes, Status> {
        let header = match self {
            Self::Encoder { encoder, .. } => return run(encoder, content, end).map_err(failed),
            Self::Stored { header } => header,
        };
        let len = header.len() + content.len() + 3 * content.len().div_ceil(BLOCK) + 3;
        let mut blocks = BytesMut::with_capacity(len);
        blocks.put(header);
        for block in content.chunks(BLOCK) {
            put_block_header(&mut blocks, block.len(), false);
            blocks.put_slice(block);
        }
        if end {
            put_block_header(&mut blocks, 0, true);
        }
        Ok(blocks.freeze())
    }
}

/// Writes the header of an uncompressed block, whose type is 0: the length in bytes comes above that and the
/// last-block bit.
fn put_block_header(buffer: &mut BytesMut, len: usize, last: bool) {
    buffer.put_uint_le((len as u64) << 3 | u64::from(last), 3);
}

/// Returns the part of a frame that `content` adds, and its end if that is all.
fn run(encoder: &mut Encoder<'_>, content: &[u8], end: bool) -> io::Result<Bytes> {
    const STEP: usize = 1024;
    let mut compressed = Vec::with_capacity(zstd::zstd_safe::compress_bound(content.len()));
    let mut input = InBuffer::around(content);
    loop {
        if compressed.len() == compressed.capacity() {
            compressed.reserve(STEP);
        }
        let at = compressed.len();
        let mut output = OutBuffer::around_pos(&mut compressed, at);
        if input.pos() < content.len() {
            encoder.run(&mut input, &mut output)?;
        } else if !end || encoder.finish(&mut output, true)? == 0 {
            break;
        }
    }
    // The piece of a stalled reader takes no more memory than it has bytes.
    compressed.shrink_to_fit();
    Ok(compressed.into())
}

#[cfg(test)]
mod tests;
