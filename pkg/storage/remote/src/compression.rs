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

use gorego_storage::{CHUNK_SIZE, Compressor, Error, Result};

/// The fastest of the ordinary levels: the network should be the bottleneck.
pub(super) const LEVEL: i32 = 1;
/// The largest window that is accepted, as a power of two: RFC 8878 requires it of decoders.
const MAX_WINDOW_LOG: u32 = 23;

pub(super) fn compressor(zstd: bool) -> Compressor {
    let zstd = zstd.then_some(Compressor::Zstd);
    zstd.unwrap_or(Compressor::Identity)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(why: io::Error) -> Error {
    Error::Unavailable(format!("zstd fails: {why}"))
}

/// Compresses content that arrives in pieces into one frame.
pub(super) struct FrameEncoder(Encoder<'static, Vec<u8>>);

impl FrameEncoder {
    /// Starts a frame for content of exactly `size` bytes.
    pub(super) fn new(size: u64) -> Result<Self> {
        let mut encoder = Encoder::new(Vec::new(), LEVEL).map_err(failed)?;
        encoder.set_pledged_src_size(Some(size)).map_err(failed)?;
        Ok(Self(encoder))
    }

    /// Returns the bytes that `content` adds to the frame, perhaps none yet, with its end after the last.
    pub(super) fn next(&mut self, content: &[u8], last: bool) -> Result<Bytes> {
        self.0.write_all(content).map_err(failed)?;
        if last {
            self.0.do_finish().map_err(failed)?;
        }
        Ok(mem::take(self.0.get_mut()).into())
    }
}

/// Decompresses content that arrives in pieces.
pub(super) struct FrameDecoder {
    decoder: Decoder<'static>,
    /// Set if the decoder may hold content that did not fit into the last piece.
    unflushed: bool,
}

impl FrameDecoder {
    pub(super) fn new() -> Result<Self> {
        let mut decoder = Decoder::new().map_err(failed)?;
        let window = DParameter::WindowLogMax(MAX_WINDOW_LOG);
        decoder.set_parameter(window).map_err(failed)?;
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
