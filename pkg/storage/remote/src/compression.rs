//! Zstandard on the way to and from a peer.

use std::io;

use bytes::{Buf as _, Bytes};
use zstd::{
    bulk,
    stream::raw::{DParameter, Decoder, Encoder, InBuffer, Operation as _, OutBuffer},
};

use gorego_storage::CHUNK_SIZE;

/// The fastest of the ordinary levels: the line should be what is waited for.
const LEVEL: i32 = 1;
/// The largest window that memory is set aside for, as a power of two: what RFC 8878 asks of
/// decoders.
const MAX_WINDOW_LOG: u32 = 23;

/// Compresses a whole blob.
pub(super) fn compress(content: &[u8]) -> io::Result<Bytes> {
    bulk::compress(content, LEVEL).map(Bytes::from)
}

/// Decompresses a whole blob of at most `size` bytes.
pub(super) fn decompress(compressed: &[u8], size: usize) -> io::Result<Bytes> {
    bulk::decompress(compressed, size).map(Bytes::from)
}

/// Puts content that comes in pieces into one frame.
pub(super) struct Compressing(Encoder<'static>);

impl Compressing {
    /// For content of exactly `size` bytes.
    pub(super) fn new(size: u64) -> io::Result<Self> {
        let mut encoder = Encoder::new(LEVEL)?;
        encoder.set_pledged_src_size(Some(size))?;
        Ok(Self(encoder))
    }

    /// What `content` adds to the frame, and what ends it if this is the last; may be nothing yet.
    pub(super) fn next(&mut self, content: &[u8], last: bool) -> io::Result<Bytes> {
        let mut compressed = Vec::with_capacity(zstd::zstd_safe::compress_bound(content.len()));
        let mut input = InBuffer::around(content);
        while input.pos() < content.len() {
            let at = room(&mut compressed);
            self.0
                .run(&mut input, &mut OutBuffer::around_pos(&mut compressed, at))?;
        }
        if last {
            self.end(&mut compressed)?;
        }
        Ok(compressed.into())
    }

    fn end(&mut self, compressed: &mut Vec<u8>) -> io::Result<()> {
        loop {
            let at = room(compressed);
            let mut output = OutBuffer::around_pos(compressed, at);
            if self.0.finish(&mut output, true)? == 0 {
                return Ok(());
            }
        }
    }
}

/// Makes sure that there is some; where it begins.
fn room(buffer: &mut Vec<u8>) -> usize {
    const STEP: usize = 4096;
    if buffer.len() == buffer.capacity() {
        buffer.reserve(STEP);
    }
    buffer.len()
}

/// Takes content that comes in pieces out of its frames.
pub(super) struct Decompressing {
    decoder: Decoder<'static>,
    /// Whether there may be content for which there was no room.
    unflushed: bool,
}

impl Decompressing {
    pub(super) fn new() -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
        Ok(Self {
            decoder,
            unflushed: false,
        })
    }

    /// The next piece of at most `most` bytes; `compressed` shrinks by what went into it. `None`
    /// when all of it did and nothing came.
    pub(super) fn next(&mut self, compressed: &mut Bytes, most: u64) -> io::Result<Option<Bytes>> {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(CHUNK_SIZE);
        let mut content = Vec::with_capacity(most);
        let mut output = OutBuffer::around(&mut content);
        while output.pos() < output.capacity() && (self.unflushed || !compressed.is_empty()) {
            let mut input = InBuffer::around(compressed);
            let hint = self.decoder.run(&mut input, &mut output)?;
            let used = input.pos();
            compressed.advance(used);
            self.unflushed = hint != 0 && output.pos() == output.capacity();
        }
        let some = output.pos() > 0;
        Ok(some.then(|| content.into()))
    }
}
