//! Zstandard frames that hold content as it is, which needs no workspace.

use bytes::{BufMut as _, Bytes, BytesMut};

/// The largest block of a frame, in bytes, and the window that allows it (RFC 8878, 3.1.1).
pub(super) const BLOCK: usize = 128 * 1024;

const HEADER: usize = 14;

/// Puts content that is read in pieces into one frame.
pub(crate) struct Stored {
    /// Still to be written: the magic number, a descriptor that announces eight bytes of size and
    /// no checksum, a window of [`BLOCK`], and the size.
    header: Option<[u8; HEADER]>,
}

impl Stored {
    /// For content of exactly `size` bytes.
    pub(super) fn new(size: u64) -> Self {
        const START: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0xc0, (17 - 10) << 3];
        let mut header = [0; HEADER];
        let (start, end) = header.split_at_mut(START.len());
        start.copy_from_slice(&START);
        end.copy_from_slice(&size.to_le_bytes());
        Self {
            header: Some(header),
        }
    }

    /// What `content` adds to the frame.
    pub(super) fn next(&mut self, content: &[u8]) -> Bytes {
        let room = HEADER + content.len() + 3 * content.len().div_ceil(BLOCK);
        let mut blocks = BytesMut::with_capacity(room);
        blocks.put_slice(self.header.take().as_slice().as_flattened());
        for block in content.chunks(BLOCK) {
            put_block_header(&mut blocks, block.len(), false);
            blocks.put_slice(block);
        }
        blocks.freeze()
    }

    /// What ends the frame.
    pub(super) fn finish(&mut self) -> Bytes {
        let mut end = BytesMut::new();
        end.put_slice(self.header.take().as_slice().as_flattened());
        put_block_header(&mut end, 0, true);
        end.freeze()
    }
}

/// Of a raw block, whose type is 0: the length in bytes comes above that and the last-block bit.
fn put_block_header(buffer: &mut BytesMut, len: usize, last: bool) {
    buffer.put_uint_le((len as u64) << 3 | u64::from(last), 3);
}
