//! gRPC over a channel: one request, and an answer that is read on demand.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use prost::Message;
use reapi::{
    bytestream::ReadResponse,
    wire::{Header, Value},
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header::CONTENT_TYPE},
    transport::Channel,
};
use tower::ServiceExt as _;

use super::{failure::Failure, foreign, pool::ConnectionUse};
use gorego_storage::Arrival;

/// The length of a message's header: a compression flag and the length.
const HEADER: usize = 5;
/// The longest beginning of a `ReadResponse` before its content: a key and a varint.
const BEFORE_CONTENT: usize = 11;
/// The most content that a download buffers, in bytes, whatever the size of the peer's messages.
const PIECE: usize = 1 << 20;

/// A connection and the headers of the one call that is made over it.
pub(super) struct Link {
    pub(super) channel: Channel,
    pub(super) headers: HeaderMap,
    pub(super) lease: ConnectionUse,
}

impl Link {
    /// Sends a request and waits for the headers of the answer.
    pub(super) async fn call(self, path: &'static str, body: Body) -> Result<Answer, Failure> {
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = Uri::from_static(path);
        *request.headers_mut() = self.headers;
        let headers = request.headers_mut();
        headers.insert("te", HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let answer = self.channel.oneshot(request).await;
        let answer = answer.map_err(|error| Status::from_error(error.into()))?;
        if foreign::is_foreign(&answer) {
            return Err(Failure::Page(foreign::page(answer).await));
        }
        let (mut head, body) = answer.into_parts();
        Ok(Answer {
            body,
            arrived: BytesMut::new(),
            is_complete: check(&mut head.headers)?,
            content_left: 0,
            _lease: self.lease,
        })
    }
}

/// Checks the status in headers or trailers; `false` if there is none.
fn check(headers: &mut HeaderMap) -> Result<bool, Status> {
    // Unused, and tonic panics on details that are not Base64.
    headers.remove(Status::GRPC_STATUS_DETAILS);
    match Status::from_header_map(headers) {
        Some(status) if status.code() != Code::Ok => Err(status),
        status => Ok(status.is_some()),
    }
}

/// An answer in progress. Its methods can be cancelled and called again.
pub(super) struct Answer {
    body: Body,
    arrived: BytesMut,
    /// Set once the status arrived: the end of the body is then that of the answer.
    is_complete: bool,
    /// The bytes of a download's message that are yet to be read.
    content_left: usize,
    /// Counts the call on its connection.
    _lease: ConnectionUse,
}

impl Answer {
    /// Waits until `len` bytes have arrived; `false` if the answer ends properly before that. hyper reports
    /// a stream that a balancer reset without an error as ended.
    async fn has(&mut self, len: usize) -> Result<bool, Status> {
        while self.arrived.len() < len {
            let Some(frame) = self.body.frame().await.transpose()? else {
                return if self.is_complete && self.arrived.is_empty() {
                    Ok(false)
                } else {
                    Err(cut_off())
                };
            };
            match frame.into_data() {
                Ok(data) => {
                    Arrival::report();
                    self.arrived.reserve(len - self.arrived.len());
                    self.arrived.extend_from_slice(&data);
                }
                Err(frame) => {
                    if let Ok(mut trailers) = frame.into_trailers() {
                        self.is_complete = check(&mut trailers)?;
                    }
                }
            }
        }
        Ok(true)
    }

    /// Returns the length of the next message; `None` at the end.
    async fn next_len(&mut self) -> Result<Option<usize>, Status> {
        if !self.has(HEADER).await? {
            return Ok(None);
        }
        let mut header = self.arrived.as_ref();
        if header.get_u8() != 0 {
            return Err(Status::internal("its answer is compressed"));
        }
        Ok(Some(
            usize::try_from(header.get_u32()).unwrap_or(usize::MAX),
        ))
    }

    /// Returns the one message of the answer, of at most `limit` bytes.
    pub(super) async fn only(mut self, limit: usize) -> Result<Bytes, Status> {
        let Some(len) = self.next_len().await? else {
            return Err(Status::internal("its answer is empty"));
        };
        if len > limit {
            let why = format!("its answer has {len} bytes, accepted are {limit}");
            return Err(Status::out_of_range(why));
        }
        self.has(HEADER + len).await?;
        self.arrived.advance(HEADER);
        let message = self.arrived.split_to(len).freeze();
        if self.has(1).await? {
            return Err(Status::internal("its answer has more than one message"));
        }
        Ok(message)
    }

    /// Returns the next content of a download, cut into pieces; `None` at the end.
    pub(super) async fn content(&mut self) -> Result<Option<Bytes>, Status> {
        while self.content_left == 0 {
            let Some(len) = self.next_len().await? else {
                return Ok(None);
            };
            self.has(HEADER + len.min(BEFORE_CONTENT)).await?;
            let start = self.arrived.get(HEADER..).unwrap_or_default();
            let start = start.get(..len).unwrap_or(start);
            let (skipped, content) = content_of(start, len).ok_or_else(|| {
                Status::data_loss(format!("a message of {len} bytes with unexpected fields"))
            })?;
            self.arrived.advance(HEADER + skipped);
            self.content_left = content;
        }
        let piece = self.content_left.min(PIECE);
        if !self.has(piece).await? {
            return Err(cut_off());
        }
        self.content_left -= piece;
        Ok(Some(self.arrived.split_to(piece).freeze()))
    }
}

fn cut_off() -> Status {
    Status::unavailable("the answer was cut off")
}

/// Returns the length of the header and of the content, its only field, of a `ReadResponse` of `len` bytes
/// that begins with `start`.
fn content_of(start: &[u8], len: usize) -> Option<(usize, usize)> {
    if len == 0 {
        return Some((0, 0));
    }
    let field = Header::read(start).ok()??;
    let content = field.content_len();
    let is_data = field.number == ReadResponse::DATA && matches!(field.value, Value::Delimited(_));
    (is_data && field.len.checked_add(content)? == len).then_some((field.len, content))
}

pub(super) fn framed(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut framed = BytesMut::with_capacity(HEADER + len);
    framed.put_u8(0);
    // Batches and pieces of uploads are far below 4 GiB.
    framed.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    message.encode_raw(&mut framed);
    framed.freeze()
}

/// Returns a request's body of framed messages.
pub(super) fn body(messages: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    Body::new(StreamBody::new(
        messages.map(|message| Ok::<_, Status>(Frame::data(message))),
    ))
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, stream};

    use super::*;

    /// Returns an answer that arrives in these pieces, then ends with trailers.
    fn answer<'a>(wire: impl Iterator<Item = &'a [u8]>) -> Answer {
        let data = wire.map(|bytes| Frame::data(Bytes::copy_from_slice(bytes)));
        let mut trailers = HeaderMap::new();
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
        let frames: Vec<_> = data
            .chain([Frame::trailers(trailers)])
            .map(Ok::<_, Status>)
            .collect();
        Answer {
            body: Body::new(StreamBody::new(stream::iter(frames))),
            arrived: BytesMut::new(),
            is_complete: false,
            content_left: 0,
            _lease: ConnectionUse::default(),
        }
    }

    #[tokio::test]
    async fn a_download_arrives_in_bounded_pieces_wherever_its_messages_are_split() {
        let content = |len: usize| -> Bytes { (0..len).map(|at| at.to_le_bytes()[0]).collect() };
        let sizes = [2 * PIECE + 7, 0, 1, PIECE - 10, PIECE, PIECE + 1];
        let messages = sizes.map(|len| framed(&ReadResponse { data: content(len) }));
        let wire = messages.concat();
        let all = wire.len();
        let splits = (1..=12).map(|first| (first, all));
        for (first, at_a_time) in splits.chain([(0, 601), (0, 16_384), (0, PIECE + 3)]) {
            let (first, rest) = wire.split_at(first);
            let mut answer = answer(std::iter::once(first).chain(rest.chunks(at_a_time)));
            let mut pieces = Vec::new();
            while let Some(piece) = answer.content().await.unwrap() {
                assert!(piece.len() <= PIECE);
                pieces.push(piece);
            }
            assert!(pieces.concat() == sizes.map(content).concat());
        }
    }

    #[tokio::test]
    async fn an_answer_that_begins_is_reported_before_it_is_whole() {
        let begin = |data| {
            let frames = stream::iter(data).chain(stream::pending());
            Answer {
                body: Body::new(StreamBody::new(frames)),
                ..answer([].into_iter())
            }
        };
        let data = || Ok::<_, Status>(Frame::data(Bytes::from_static(&[0])));
        for (data, begins) in [(vec![], false), (vec![data()], true)] {
            let arrival = Arrival::default();
            let answer = begin(data);
            let answer = arrival.scope(answer.only(usize::MAX));
            assert!(answer.now_or_never().is_none());
            assert_eq!(arrival.begun().now_or_never().is_some(), begins);
        }
    }

    #[tokio::test]
    async fn a_download_with_unexpected_fields_is_refused() {
        let data = ReadResponse {
            data: vec![0; PIECE].into(),
        };
        let data = data.encode_to_vec();
        for strange in [
            [&data[..], &[0x58, 1]].concat(),
            [&[0x58, 1], &data[..]].concat(),
            [&[0x52], &[0xff; 10][..], &data].concat(),
        ] {
            let len = u32::try_from(strange.len()).unwrap();
            let wire = [&[0][..], &len.to_be_bytes(), &strange].concat();
            assert!(answer(wire.chunks(1000)).content().await.is_err());
        }
    }
}
