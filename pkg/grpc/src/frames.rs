//! Counts of the calls that a client begins, cancels and gets answered, taken from the frames of its connection.
//!
//! Cancelling is cheap for a client, and a cancelled call no longer counts as one of those that it may have at a
//! time. The HTTP/2 layer bounds the cancelled calls that wait for it, but not those over time, and reports neither.
//! Many clients also reset a call that was answered before its request had ended.

use tokio::time::{Duration, Instant};

/// The most cancelled calls of a client in excess of its answered calls. Bazel has up to 100 calls at a time on a
/// connection, a multiplexing proxy up to 256: it may cancel all of them several times in a row.
const ALLOWED: u32 = 2048;
/// The number of cancelled calls that are forgiven each second.
const FORGIVEN: u32 = 100;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
/// The flag of the last frame of a request or a response.
const END_STREAM: u8 = 1;
/// The length of a frame's header in bytes.
const HEADER_LEN: usize = 9;

/// The counts of one connection, after its preface.
#[derive(Debug)]
pub(crate) struct CallCount {
    received: Frames,
    sent: Frames,
    /// The cancelled calls in excess of the answered ones.
    cancelled: u32,
    /// The time up to which cancelled calls were forgiven.
    forgiven: Instant,
    /// The bytes of headers received since this was last set to 0.
    pub(crate) headers: usize,
}

impl CallCount {
    pub(crate) fn new() -> Self {
        Self {
            received: Frames::default(),
            sent: Frames::default(),
            cancelled: 0,
            forgiven: Instant::now(),
            headers: 0,
        }
    }

    /// Counts received bytes. Returns false once the client has cancelled too many calls.
    pub(crate) fn received(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((kind, _)) = self.received.next(&mut bytes) {
            match kind {
                HEADERS | CONTINUATION => self.headers += self.received.skip,
                RST_STREAM => {
                    self.cancelled += 1;
                    if self.cancelled > ALLOWED && !self.forgive() {
                        return false;
                    }
                }
                _ => {}
            }
        }
        true
    }

    /// Counts the calls whose answers end in these sent bytes.
    pub(crate) fn sent(&mut self, mut bytes: &[u8]) {
        while let Some((kind, flags)) = self.sent.next(&mut bytes) {
            if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                self.cancelled = self.cancelled.saturating_sub(1);
            }
        }
    }

    /// Forgives cancelled calls for the time that has passed; false if there are still too many.
    fn forgive(&mut self) -> bool {
        let seconds = self.forgiven.elapsed().as_secs();
        self.forgiven += Duration::from_secs(seconds);
        let forgiven = u32::try_from(seconds).unwrap_or(u32::MAX);
        self.cancelled = (self.cancelled).saturating_sub(forgiven.saturating_mul(FORGIVEN));
        self.cancelled <= ALLOWED
    }
}

/// A parser of the headers of frames in one direction.
#[derive(Debug, Default)]
struct Frames {
    /// The number of bytes before the next header.
    skip: usize,
    /// The beginning of the next header, and its length.
    header: [u8; HEADER_LEN],
    len: usize,
}

impl Frames {
    /// Returns the kind and the flags of the next frame that begins in `bytes`, and takes these up to its content.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<(u8, u8)> {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            *bytes = bytes.get(skipped..)?;
            let (byte, rest) = bytes.split_first()?;
            *self.header.get_mut(self.len)? = *byte;
            self.len += 1;
            *bytes = rest;
            if self.len == HEADER_LEN {
                let [l0, l1, l2, kind, flags, ..] = self.header;
                self.skip = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
                self.len = 0;
                return Some((kind, flags));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: u8, kind: u8, flags: u8) -> Vec<u8> {
        let header = [0, 0, len, kind, flags, 0, 0, 0, 1];
        // The content looks like frames of another kind.
        [header.as_slice(), &vec![RST_STREAM; len.into()]].concat()
    }

    /// Cancels up to 10,000 calls, each after `answers` others were answered. Returns the number allowed.
    fn cancel(count: &mut CallCount, answers: usize) -> usize {
        let answer = [frame(30, DATA, 0), frame(9, HEADERS, END_STREAM)].concat();
        let is_allowed = |_: &usize| {
            count.sent(&answer.repeat(answers));
            count.received(&frame(4, RST_STREAM, 0))
        };
        (0..10_000).take_while(is_allowed).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_only_cancels_is_stopped_and_allowed_more_later() {
        let mut count = CallCount::new();
        assert_eq!(cancel(&mut count, 0), ALLOWED as usize);
        tokio::time::advance(Duration::from_secs(10)).await;
        let later = cancel(&mut count, 0);
        assert!((990..1010).contains(&later), "{later}");
    }

    #[tokio::test(start_paused = true)]
    async fn every_other_call_may_be_cancelled() {
        assert_eq!(cancel(&mut CallCount::new(), 1), 10_000);
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let sent = [frame(0, 4, 1), frame(30, 1, 4), frame(4, 3, 0)].concat();
        for cut in 1..sent.len() {
            let mut frames = Frames::default();
            let mut found = Vec::new();
            for mut piece in sent.chunks(cut) {
                while let Some(frame) = frames.next(&mut piece) {
                    found.push(frame);
                }
            }
            assert_eq!(found, [(4, 1), (1, 4), (3, 0)], "in pieces of {cut}");
        }
    }
}
