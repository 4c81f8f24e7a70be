//! Responses: messages, then a status in the trailers.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use gorego_limits::Permit;
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use http_body::Frame;
use prost::Message;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use crate::{
    HEADER_LEN, Memory, full,
    observer::Observation,
    status::{panicked, too_late},
    watchdog,
};

/// A response to a call.
pub(crate) type Response = http::Response<Body>;

/// The largest content, in bytes, that is copied behind its fields, since sending it apart would cost more.
pub const COPIED: usize = 16 * 1024;

/// The bytes handed to the HTTP/2 layer at a time, and the most that a client which stalls at the end of a response
/// keeps there.
const PIECE: usize = 64 * 1024;

/// A message, or a piece of one, as it goes over the wire. In two parts, so that the bytes of a blob need not
/// be copied behind the fields that precede them.
#[derive(Debug, Default)]
pub struct Framed {
    /// The header and the encoded fields up to the payload.
    pub head: Bytes,
    /// The content of the last field.
    pub payload: Bytes,
}

impl Framed {
    /// Encodes a whole message, header included.
    pub fn encode(message: &impl Message) -> Self {
        let len = message.encoded_len();
        let mut head = BytesMut::with_capacity(HEADER_LEN + len);
        put_header(&mut head, len);
        message.encode_raw(&mut head);
        Self {
            head: head.freeze(),
            payload: Bytes::new(),
        }
    }

    /// Encodes a whole message, whose memory is reserved until the client has taken it.
    pub fn encode_within(message: &impl Message, mut permit: Permit) -> Self {
        permit.shrink(message.encoded_len() as u64);
        let Self { head, payload } = Self::encode(message);
        let head = permit.hold(head);
        Self { head, payload }
    }
}

/// Writes the header of a message of `len` bytes.
pub fn put_header(buffer: &mut BytesMut, len: usize) {
    buffer.put_u8(0);
    // No message of this server comes near 4 GiB: blobs are sent in chunks, and batches are limited.
    buffer.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
}

/// The body of a response: messages, then trailers.
#[derive(Default)]
pub struct Body {
    ready: Framed,
    /// The messages to come.
    messages: Option<BoxStream<'static, Result<Framed, Status>>>,
    /// False once the status is sent, in the trailers or in the headers.
    open: bool,
    /// The memory of the content, until the client has taken it.
    _permit: Permit,
    /// The timer of the call's deadline.
    deadline: Option<Pin<Box<Sleep>>>,
    observed: Observation,
}

impl Body {
    /// Creates a body of one message, then `OK`.
    pub fn message(message: Framed, permit: Permit) -> Self {
        Self {
            ready: message,
            open: true,
            _permit: permit,
            ..Self::default()
        }
    }

    /// Creates a body of one message, then `OK`, once there is memory for the message.
    pub async fn reply(memory: &Memory, message: &impl Message) -> Result<Self, Status> {
        let bytes = message.encoded_len() as u64;
        let permit = memory.responses.reserve(bytes).await.map_err(full)?;
        Ok(Self::message(Framed::encode(message), permit))
    }

    /// Creates a body of one message of `len` bytes, which is encoded in pieces while the client takes it; then `OK`.
    pub fn pieces(
        len: usize,
        pieces: impl Iterator<Item = Bytes> + Send + 'static,
        permit: Permit,
    ) -> Self {
        let mut header = BytesMut::with_capacity(HEADER_LEN);
        put_header(&mut header, len);
        let piece = |payload| {
            Ok(Framed {
                payload,
                ..Framed::default()
            })
        };
        let mut body = Self::messages(stream::iter(pieces.map(piece)).boxed(), permit);
        body.ready.head = header.freeze();
        body
    }

    /// Creates a body of messages, then `OK` or the error that ended them. The permit is that of their source.
    pub fn messages(messages: BoxStream<'static, Result<Framed, Status>>, permit: Permit) -> Self {
        Self {
            messages: Some(messages),
            open: true,
            _permit: permit,
            ..Self::default()
        }
    }

    /// Creates the response that starts with this body and ends at the call's deadline.
    pub(crate) fn into_response(
        mut self,
        deadline: Option<Instant>,
        observed: Observation,
    ) -> Response {
        self.observed = observed;
        self.deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        let mut response = http::Response::new(self);
        response.headers_mut().insert(
            CONTENT_TYPE,
            const { HeaderValue::from_static("application/grpc") },
        );
        response
    }

    fn next_piece(&mut self) -> Option<Bytes> {
        let part = if self.ready.head.is_empty() {
            &mut self.ready.payload
        } else {
            &mut self.ready.head
        };
        (!part.is_empty()).then(|| part.split_to(part.len().min(PIECE)))
    }

    fn end(&mut self, status: &Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.ready = Framed::default();
        self.messages = None;
        self.open = false;
        let mut observed = mem::take(&mut self.observed);
        observed.answered(status.code());
        Poll::Ready(Some(Ok(Frame::trailers(trailers(status)))))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let me = self.get_mut();
        if !me.open {
            return Poll::Ready(None);
        }
        if let Some(deadline) = &mut me.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return me.end(&too_late());
        }
        loop {
            if let Some(piece) = me.next_piece() {
                watchdog::sent(piece.len());
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            // Sent, and no longer held while the next message waits for memory of its own.
            me.ready = Framed::default();
            let Some(messages) = &mut me.messages else {
                return me.end(&Status::ok(""));
            };
            let next = || messages.as_mut().poll_next(cx);
            let polled = catch_unwind(AssertUnwindSafe(|| me.observed.step(next)));
            match polled
                .ok()
                .flatten()
                .unwrap_or_else(|| Poll::Ready(Some(Err(panicked()))))
            {
                Poll::Pending => {
                    watchdog::waiting();
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(message))) => me.ready = message,
                Poll::Ready(Some(Err(status))) => return me.end(&status),
                Poll::Ready(None) => return me.end(&Status::ok("")),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        !self.open
    }
}

/// Creates a response that consists of a status.
pub(crate) fn refuse(status: &Status) -> Response {
    let mut response = Body::default().into_response(None, Observation::default());
    response.headers_mut().extend(trailers(status));
    response
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    if let Err(unencodable) = status.add_header(&mut trailers) {
        trailers.insert(Status::GRPC_STATUS, (unencodable.code() as i32).into());
    }
    trailers
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::FutureExt as _;
    use gorego_limits::Budget;
    use http_body::Body as _;
    use tonic_health::pb::HealthCheckRequest;

    use super::*;

    const LEN: usize = 1024 * 1024;

    #[tokio::test]
    async fn a_taken_message_leaves_its_memory_to_the_next() {
        let budget = Budget::memory("tests", LEN as u64);
        let memory = budget.clone();
        let messages = stream::iter(0..3).then(move |_| {
            let memory = memory.clone();
            async move {
                let permit = memory.reserve(LEN as u64).await.map_err(full)?;
                Ok(Framed {
                    payload: permit.hold(vec![0; LEN].into()),
                    ..Framed::default()
                })
            }
        });
        let mut body = Body::messages(messages.boxed(), Permit::default());
        let mut frame = async || poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        assert!(frame().await.is_some());
        assert!(budget.reserve(LEN as u64).now_or_never().is_none());
        let mut frames = 1;
        while frame().await.is_some() {
            frames += 1;
        }
        assert_eq!(frames, 3 * LEN / PIECE + 1);
        assert!(budget.reserve(LEN as u64).now_or_never().is_some());
    }

    #[tokio::test]
    async fn large_responses_wait_for_memory_and_small_ones_do_not() {
        let memory = Memory {
            responses: Budget::memory("tests", LEN as u64),
            ..Memory::default()
        };
        let reply = |len| {
            let service = "x".repeat(len);
            Body::reply(&memory, &HealthCheckRequest { service })
                .now_or_never()
                .map(Result::unwrap)
        };
        let first = reply(700_000).unwrap();
        assert!(reply(700_000).is_none());
        assert!(reply(10_000).is_some());
        drop(first);
        assert!(reply(700_000).is_some());
    }
}
