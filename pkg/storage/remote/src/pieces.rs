//! Downloads in messages of any size, cut into small ones as they arrive.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body::Frame;
use reapi::{
    bytestream::ReadResponse,
    wire::{self, Header, Value},
};
use tonic::{Status, body::Body};

/// The method whose answers are cut.
pub(super) const PATH: &str = "/google.bytestream.ByteStream/Read";
/// The most content that a message has after it was cut, in bytes. tonic holds each message as a whole, so
/// this bounds the memory of a download whatever the peer sends.
const PIECE: usize = 1 << 20;
/// The most that a message has after it was cut, in bytes.
pub(super) const MAX_MESSAGE: usize = PIECE + 64;

/// The length of a message's prefix: a compression flag and the length.
const PREFIX: usize = 5;
/// The number of the only field.
const DATA: u32 = ReadResponse::DATA;

/// The body of a `Read` in which no message is larger than [`MAX_MESSAGE`].
pub(super) struct Pieces {
    inner: Body,
    cutter: Cutter,
}

impl Pieces {
    pub(super) fn of(inner: Body) -> Body {
        let cutter = Cutter::default();
        Body::new(Self { inner, cutter })
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(bytes) = self.cutter.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            let frame = match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            match frame.into_data() {
                Ok(data) => self.cutter.take(data)?,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
    }
}

#[derive(Default)]
struct Cutter {
    state: State,
    ready: VecDeque<Bytes>,
}

enum State {
    /// The prefix and the beginning of a message, as far as they have arrived.
    Head(BytesMut),
    /// A message that is small enough, of which this many bytes are to come.
    Whole(usize),
    /// A message that is cut: what is to come of this piece, and after it.
    Cut { piece: usize, rest: usize },
}

impl Default for State {
    fn default() -> Self {
        Self::Head(BytesMut::new())
    }
}

impl Cutter {
    /// Takes bytes as they came, which may end anywhere.
    fn take(&mut self, mut data: Bytes) -> Result<(), Status> {
        while !data.is_empty() {
            match &mut self.state {
                State::Head(head) => {
                    head.put_u8(data.get_u8());
                    if let Some((state, out)) = begin(head)? {
                        self.state = state;
                        self.ready.push_back(out);
                    }
                }
                State::Whole(left) => {
                    let part = data.split_to(data.len().min(*left));
                    *left -= part.len();
                    self.ready.push_back(part);
                }
                State::Cut { piece, .. } => {
                    let part = data.split_to(data.len().min(*piece));
                    *piece -= part.len();
                    self.ready.push_back(part);
                }
            }
            self.advance();
        }
        Ok(())
    }

    /// Begins what comes after a piece or a message that is complete.
    fn advance(&mut self) {
        match &mut self.state {
            State::Whole(0) | State::Cut { piece: 0, rest: 0 } => self.state = State::default(),
            State::Cut { piece: 0, rest } => {
                let piece = PIECE.min(*rest);
                let rest = *rest - piece;
                self.ready.push_back(head_of(piece));
                self.state = State::Cut { piece, rest };
            }
            _ => {}
        }
    }
}

/// Chooses how to handle a message that begins like this, and the bytes to precede it; `None` if
/// more bytes are needed to tell.
fn begin(head: &BytesMut) -> Result<Option<(State, Bytes)>, Status> {
    let mut rest = head.as_ref();
    if rest.len() < PREFIX {
        return Ok(None);
    }
    let encoded = rest.get_u8() != 0;
    let len = usize::try_from(rest.get_u32()).unwrap_or(usize::MAX);
    if encoded || len <= PIECE {
        return Ok(Some((State::Whole(len), Bytes::copy_from_slice(head))));
    }
    let strange = || {
        let why = format!("a message of {len} bytes with unexpected fields");
        Status::data_loss(why)
    };
    let Some(field) = Header::read(rest).map_err(|_| strange())? else {
        return Ok(None);
    };
    let content = field.content_len();
    let is_data = field.number == DATA && matches!(field.value, Value::Delimited(_));
    if !is_data || field.len.checked_add(content) != Some(len) {
        return Err(strange());
    }
    let piece = PIECE.min(content);
    let rest = content - piece;
    Ok(Some((State::Cut { piece, rest }, head_of(piece))))
}

/// Returns the bytes that precede `content` bytes in a message of their own.
fn head_of(content: usize) -> Bytes {
    let field = wire::header_len(DATA, content);
    let mut head = BytesMut::with_capacity(PREFIX + field);
    head.put_u8(0);
    head.put_u32(u32::try_from(field + content).unwrap_or(u32::MAX));
    wire::put_header(DATA, content, &mut head);
    head.freeze()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let len = u32::try_from(message.len()).unwrap();
        [&[0][..], &len.to_be_bytes(), message].concat()
    }

    /// The messages that come out when these many bytes arrive first, and then so many at a time.
    fn cut(wire: &[u8], first: usize, at_a_time: usize) -> Result<Vec<Bytes>, Status> {
        let mut cutter = Cutter::default();
        let mut out = BytesMut::new();
        let (first, rest) = wire.split_at(first);
        for data in std::iter::once(first).chain(rest.chunks(at_a_time)) {
            cutter.take(Bytes::copy_from_slice(data))?;
            cutter.ready.drain(..).for_each(|bytes| out.put(bytes));
        }
        let mut messages = Vec::new();
        while !out.is_empty() {
            assert_eq!(out.get_u8(), 0);
            let len = usize::try_from(out.get_u32()).unwrap();
            messages.push(out.split_to(len).freeze());
        }
        Ok(messages)
    }

    #[test]
    fn messages_of_any_size_come_out_in_bounded_pieces_wherever_they_are_split() {
        let content = |len: usize| -> Bytes { (0..len).map(|at| at.to_le_bytes()[0]).collect() };
        let sizes = [2 * PIECE + 7, 0, 1, PIECE - 10, PIECE, PIECE + 1];
        let mut wire = Vec::new();
        for len in sizes {
            let message = ReadResponse { data: content(len) };
            wire.extend(framed(&message.encode_to_vec()));
        }
        let all = wire.len();
        let splits = (1..=12).map(|first| (first, all));
        for (first, at_a_time) in splits.chain([(0, 601), (0, 16_384), (0, PIECE + 3)]) {
            let messages = cut(&wire, first, at_a_time).unwrap();
            assert!(messages.iter().all(|message| message.len() <= MAX_MESSAGE));
            let pieces = messages.into_iter();
            let pieces: Vec<_> = pieces
                .map(|message| ReadResponse::decode(message).unwrap().data)
                .collect();
            assert_eq!(pieces.concat(), sizes.map(content).concat());
        }
    }

    #[test]
    fn a_large_message_that_holds_something_else_is_refused() {
        let data = ReadResponse {
            data: vec![0; PIECE].into(),
        }
        .encode_to_vec();
        for strange in [
            [&data[..], &[0x58, 1]].concat(),
            [&[0x58, 1], &data[..]].concat(),
            [&data[..1], &[0xff; 10][..], &data].concat(),
        ] {
            assert!(cut(&framed(&strange), 1, 1000).is_err());
        }
    }
}
