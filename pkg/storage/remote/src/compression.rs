//! Compression with Zstandard on the way to and from a peer.

use std::{
    io::{self, Write as _},
    mem,
};

use bytes::{Buf as _, Bytes};
use zstd::stream::{
    raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer},
    write::Encoder,
};

use gorego_storage::{CHUNK_SIZE, Compressor};

/// The fastest of the ordinary levels: the network should be the bottleneck.
pub(super) const LEVEL: i32 = 1;
/// The largest window that is accepted, as a power of two: RFC 8878 requires it of decoders.
const MAX_WINDOW_LOG: u32 = 23;

pub(super) const fn compressor(zstd: bool) -> Compressor {
    if zstd {
        Compressor::Zstd
    } else {
        Compressor::Identity
    }
}

/// Compresses content that arrives in pieces into one frame.
pub(super) struct FrameEncoder(Option<Encoder<'static, Vec<u8>>>);

impl FrameEncoder {
    /// Starts a frame for content of exactly `size` bytes.
    pub(super) fn new(size: u64) -> io::Result<Self> {
        let mut encoder = Encoder::new(Vec::new(), LEVEL)?;
        encoder.set_pledged_src_size(Some(size))?;
        Ok(Self(Some(encoder)))
    }

    /// Returns the bytes that `content` adds to the frame, perhaps none yet, with its end after the last.
    pub(super) fn next(&mut self, content: &[u8], last: bool) -> io::Result<Bytes> {
        let Some(mut encoder) = self.0.take() else {
            return Ok(Bytes::new());
        };
        encoder.write_all(content)?;
        if last {
            return Ok(encoder.finish()?.into());
        }
        let compressed = mem::take(encoder.get_mut());
        self.0 = Some(encoder);
        Ok(compressed.into())
    }
}

/// Decompresses content that arrives in pieces.
pub(super) struct FrameDecoder {
    decoder: Decoder<'static>,
    /// Set if the decoder may hold content that did not fit into the last piece.
    unflushed: bool,
}

impl FrameDecoder {
    pub(super) fn new() -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
        Ok(Self {
            decoder,
            unflushed: false,
        })
    }

    /// Returns the next piece of at most `most` bytes, and consumes `compressed` as far as needed; `None`
    /// once it needs more.
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
