//! The bytes of an upload that are not yet written.

use std::{mem, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use gorego_storage::CHUNK_SIZE;

/// A piece up to this size, in bytes, is copied: it may be a part of something large, which would stay
/// in memory with it.
const COPIED: usize = 4 * 1024;
/// The most bytes of a slow client that stay in memory for longer than [`SLOW`].
const LEAST: usize = 16 * 1024;
/// The time after which even a few buffered bytes are written.
pub(crate) const SLOW: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct WriteBuffer {
    pieces: Vec<Bytes>,
    /// Small pieces that follow those.
    small: BytesMut,
    len: usize,
    /// The time at which bytes were last taken to be written.
    since: Instant,
}

impl Default for WriteBuffer {
    fn default() -> Self {
        Self {
            pieces: Vec::new(),
            small: BytesMut::new(),
            len: 0,
            since: Instant::now(),
        }
    }
}

impl WriteBuffer {
    pub(super) fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        if piece.len() <= COPIED {
            self.small.extend_from_slice(&piece);
        } else {
            self.close();
            self.pieces.push(piece);
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Whether the bytes are due to be written.
    pub(super) fn are_due(&self) -> bool {
        self.len >= CHUNK_SIZE || self.are_many() && self.since.elapsed() >= SLOW
    }

    /// Whether there are enough bytes to write them after [`SLOW`] even if no more arrive.
    pub(crate) const fn are_many(&self) -> bool {
        self.len >= LEAST
    }

    /// Returns all of them, after [`Self::close`].
    pub(super) fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// Turns the small pieces into one.
    pub(super) fn close(&mut self) {
        if !self.small.is_empty() {
            let small = mem::take(&mut self.small);
            self.pieces.push(small.freeze());
        }
    }

    /// Returns pieces that were taken and not written to their place, before all others.
    pub(super) fn put_back(&mut self, mut pieces: Vec<Bytes>) {
        self.len += pieces.iter().map(Bytes::len).sum::<usize>();
        pieces.append(&mut self.pieces);
        self.pieces = pieces;
    }

    /// Takes them to be written.
    pub(super) fn take(&mut self) -> Vec<Bytes> {
        self.close();
        self.len = 0;
        self.since = Instant::now();
        mem::take(&mut self.pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_of_a_slow_client_are_written_after_a_second() {
        let mut collected = WriteBuffer::default();
        collected.push(vec![1; LEAST - 1].into());
        tokio::time::advance(SLOW).await;
        assert!(!collected.are_due());
        collected.push(Bytes::from_static(&[1]));
        assert!(collected.are_due());
        assert_eq!(collected.take().concat(), [1; LEAST]);
        collected.push(vec![2; CHUNK_SIZE - 1].into());
        assert!(!collected.are_due());
        collected.push(Bytes::from_static(&[2]));
        assert!(collected.are_due());
    }

    #[tokio::test]
    async fn pieces_that_were_not_written_come_first_again() {
        let mut buffer = WriteBuffer::default();
        buffer.push(Bytes::from_static(b"ab"));
        let unwritten = buffer.take();
        buffer.push(vec![b'c'; COPIED + 1].into());
        buffer.push(Bytes::from_static(b"d"));
        buffer.put_back(unwritten);
        assert_eq!(buffer.len(), COPIED + 4);
        let content = buffer.take().concat();
        assert!(content.starts_with(b"abc") && content.ends_with(b"cd"));
    }

    #[tokio::test]
    async fn small_pieces_keep_nothing_else_in_memory_and_stay_in_order() {
        let large = Bytes::from((0..=255).cycle().take(100_000).collect::<Vec<u8>>());
        let mut collected = WriteBuffer::default();
        for at in (0..50_000).step_by(10) {
            collected.push(large.slice(at..at + 10));
        }
        collected.push(large.slice(50_000..90_000));
        collected.push(large.slice(90_000..90_001));
        let pieces = collected.take();
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces.concat(), large[..90_001]);
        let small = [&pieces[0], &pieces[2]];
        drop(large);
        assert!(small.iter().all(|piece| piece.is_unique()));
    }
}
