//! Zstandard: whole blobs of a batch, and streams of any length in bounded memory.

mod stored;

use std::{io, sync::Arc};

use bytes::{Buf as _, Bytes};
use gorego_storage::CHUNK_SIZE;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use zstd::{
    bulk,
    stream::raw::{DParameter, Decoder, Encoder, InBuffer, Operation as _, OutBuffer},
};

use self::stored::Stored;
use crate::shared::{Held, Pace, Patience, Shared};

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

/// Bounds the memory of all streams that are being compressed or decompressed.
#[derive(Clone, Debug)]
pub(crate) struct Workspaces {
    decompressors: Shared,
    compressors: Arc<Semaphore>,
}

impl Workspaces {
    /// Clients wait for their turn to decompress, with this patience.
    pub(crate) fn new(patience: Patience) -> Self {
        Self {
            decompressors: Shared::new(MAX_DECOMPRESSORS, patience),
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
            due: compressed_bound(size),
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
    /// How many compressed bytes may still go in.
    due: u64,
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
mod tests;
