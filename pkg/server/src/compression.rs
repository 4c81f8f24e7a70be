//! Zstandard: whole blobs of a batch, and streams of any length in bounded memory.

mod stored;

use std::io;

use bytes::{Buf as _, Bytes};
use gorego_grpc::full;
use gorego_limits::{Budget, Call, Permit};
use gorego_storage::CHUNK_SIZE;
use tonic::Status;
use zstd::{
    bulk,
    stream::raw::{DParameter, Decoder, Encoder, InBuffer, Operation as _, OutBuffer},
};

use self::stored::Stored;

/// The fastest of the ordinary levels: a cache compresses anew for each reader, and most of what
/// can be gained on object files and archives is gained here.
const LEVEL: i32 = 1;
/// The largest window that a decoder sets memory aside for, as a power of two: 8 MiB, which
/// RFC 8878 asks decoders to support and which no encoder exceeds by default.
const MAX_WINDOW_LOG: u32 = 23;
/// The memory of a stream without its window, in bytes.
const FIXED: u64 = 256 * 1024;
/// The window and buffers of a stream that is being compressed, in bytes.
const COMPRESSED_WINDOW: u64 = 768 * 1024;

/// Why compressed content cannot be decompressed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// It is not Zstandard.
    #[error("not decompressible as zstd: {0}")]
    Zstd(String),
    /// It is longer than announced.
    #[error("decompresses to more than {0} bytes")]
    TooLong(u64),
    /// It hardly decompresses to anything.
    #[error("more than {0} compressed bytes, for content of {1}")]
    TooMuch(u64, u64),
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

/// Decompresses whole blobs, one after another in the same workspace, which is made for the first.
#[derive(Default)]
pub(crate) struct Zstd(Option<bulk::Decompressor<'static>>);

impl Zstd {
    /// The content of exactly `size` bytes, which the caller knows to be few enough.
    pub(crate) fn decompress(&mut self, compressed: &[u8], size: u64) -> Result<Bytes, Malformed> {
        let decompressor = match &mut self.0 {
            Some(decompressor) => decompressor,
            none => none.insert(bulk::Decompressor::new().map_err(|why| malformed(&why))?),
        };
        let capacity = usize::try_from(size).map_err(|_| Malformed::TooLong(size))?;
        let content = decompressor
            .decompress(compressed, capacity)
            .map_err(|why| malformed(&why))?;
        let len = content.len() as u64;
        if len == size {
            Ok(content.into())
        } else {
            Err(Malformed::TooShort(len, size))
        }
    }
}

/// Our own side failed: zstd had no memory, say.
fn failed(why: &io::Error) -> Status {
    Status::resource_exhausted(format!("compressing: {why}"))
}

/// Memory for all streams that are being compressed or decompressed.
#[derive(Clone, Debug)]
pub(crate) struct Workspaces(Budget);

impl Workspaces {
    pub(crate) const fn new(memory: Budget) -> Self {
        Self(memory)
    }

    /// For content of `size` bytes, or fewer: not one more comes out.
    pub(crate) fn decompressor(&self, size: u64) -> Decompressor {
        Decompressor {
            call: Call::current(),
            memory: self.0.clone(),
            workspace: None,
            size,
            left: size,
            due: compressed_bound(size),
            in_frame: false,
            unflushed: false,
        }
    }

    /// For content of exactly `size` bytes. When too little memory is free, the content goes
    /// uncompressed into its frame, which needs none.
    pub(crate) fn compressor(&self, size: u64) -> Result<Compressor, Status> {
        let Some(workspace) = self.0.try_reserve(FIXED + size.min(COMPRESSED_WINDOW)) else {
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
    call: Call,
    memory: Budget,
    /// Made for the first frame, and anew for one that needs more.
    workspace: Option<Workspace>,
    size: u64,
    /// How many bytes may still come out.
    left: u64,
    /// How many compressed bytes may still go in.
    due: u64,
    in_frame: bool,
    /// Whether the decoder may hold output for which there was no room.
    unflushed: bool,
}

struct Workspace {
    decoder: Decoder<'static>,
    /// The bytes that were asked for.
    bytes: u64,
    _memory: Permit,
}

impl Decompressor {
    /// Waits for the memory of the frame that begins with these bytes, if one does. Nothing is held
    /// while waiting.
    pub(crate) async fn ready(&mut self, compressed: &[u8]) -> Result<(), Status> {
        if !self.needs_more(compressed) {
            return Ok(());
        }
        self.workspace = None;
        let bytes = self.needed(compressed);
        // Another task may read the content for the call.
        let memory = self.call.scope(self.memory.reserve(bytes));
        let memory = memory.await.map_err(full)?;
        let mut decoder = Decoder::new().map_err(|why| failed(&why))?;
        decoder
            .set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))
            .map_err(|why| failed(&why))?;
        self.workspace = Some(Workspace {
            decoder,
            bytes,
            _memory: memory,
        });
        Ok(())
    }

    fn needs_more(&self, compressed: &[u8]) -> bool {
        let here = self.workspace.as_ref().map_or(0, |here| here.bytes);
        !self.in_frame && !compressed.is_empty() && here < self.needed(compressed)
    }

    /// The memory that a frame takes, in bytes. No more of a window is used than there is content.
    fn needed(&self, frame: &[u8]) -> u64 {
        FIXED + window(frame).min(self.left)
    }

    /// The next piece of content, of at most [`CHUNK_SIZE`]; `compressed` shrinks by what went
    /// into it. `None` when all of `compressed` is used up, or begins with a frame for which this is
    /// not ready.
    pub(crate) fn next(&mut self, compressed: &mut Bytes) -> Result<Option<Bytes>, Malformed> {
        // Room for one byte too many tells content of the announced size from longer content.
        let room = usize::try_from(self.left.saturating_add(1)).unwrap_or(usize::MAX);
        let mut content = Vec::with_capacity(room.min(CHUNK_SIZE));
        let mut output = OutBuffer::around(&mut content);
        while output.pos() < output.capacity()
            && (self.unflushed || !compressed.is_empty())
            && !self.needs_more(compressed)
            && let Some(workspace) = &mut self.workspace
        {
            let mut input = InBuffer::around(compressed);
            let hint = workspace
                .decoder
                .run(&mut input, &mut output)
                .map_err(|why| malformed(&why))?;
            let used = input.pos();
            compressed.advance(used);
            self.due = (self.due.checked_sub(used as u64))
                .ok_or(Malformed::TooMuch(compressed_bound(self.size), self.size))?;
            self.in_frame = hint != 0;
            self.unflushed = self.in_frame && output.pos() == output.capacity();
        }
        let len = output.pos() as u64;
        self.left = self
            .left
            .checked_sub(len)
            .ok_or(Malformed::TooLong(self.size))?;
        // What waits to be stored takes no more memory than it has bytes.
        content.shrink_to_fit();
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

/// The window of the frame that begins with these bytes, as far as they tell.
fn window(frame: &[u8]) -> u64 {
    const MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    const SINGLE_SEGMENT: u8 = 0x20;
    let largest = 1 << MAX_WINDOW_LOG;
    let Some(&[descriptor, window]) = frame.strip_prefix(MAGIC).and_then(<[u8]>::first_chunk)
    else {
        return largest;
    };
    if descriptor & SINGLE_SEGMENT != 0 {
        // Its window is its content.
        return largest;
    }
    let base = 1u64 << (10 + (window >> 3));
    (base + base / 8 * u64::from(window & 7)).min(largest)
}

/// How many compressed bytes content of `size` bytes may arrive as: so many that an encoder can put
/// each byte into a block of its own, and then some for empty frames. Those could go on for ever.
const fn compressed_bound(size: u64) -> u64 {
    const BLOCK_OF_ONE: u64 = 4;
    const MORE: u64 = 64 * 1024;
    size.saturating_mul(BLOCK_OF_ONE).saturating_add(MORE)
}

/// Puts content that is read in pieces into one frame.
pub(crate) enum Compressor {
    /// Compressed.
    Compressed {
        encoder: Encoder<'static>,
        _workspace: Permit,
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
    // A stalled reader holds no more than there is.
    compressed.shrink_to_fit();
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
mod tests;
