//! What goes back to the client: messages, then a status in the trailers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::stream::BoxStream;
use gorego_limits::Permit;
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use http_body::Frame;
use prost::Message;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use crate::{HEADER_LEN, call::panicked, watchdog};

/// A response to one call.
pub type Response = http::Response<Body>;

/// Up to this length, copying content behind what precedes it costs less than sending it apart.
pub const COPIED: usize = 16 * 1024;

/// How much is handed to the HTTP/2 layer at a time: small, so that a client that stops taking a
/// response pins no more than this in there once the response is handed over completely.
const PIECE: usize = 64 * 1024;

/// A message on the wire. In two parts, so that a blob's bytes need not be copied behind the
/// fields that precede them.
#[derive(Debug, Default)]
pub struct Framed {
    /// The header and the encoded fields up to the payload.
    pub head: Bytes,
    /// The last field's content, which is not copied.
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
            ..Self::default()
        }
    }
}

/// Writes the header of a message of `len` bytes.
pub fn put_header(buffer: &mut BytesMut, len: usize) {
    buffer.put_u8(0);
    // No message of ours comes near 4 GiB: blobs go in chunks, batches are limited.
    buffer.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
}

/// A response's body: messages, then trailers.
#[derive(Default)]
pub struct Body {
    ready: Framed,
    source: Source,
    /// Memory set aside for the content, until the client has it.
    _permit: Permit,
    /// The time at which the client has no more use for it.
    deadline: Option<Pin<Box<Sleep>>>,
}

#[derive(Default)]
enum Source {
    /// Everything is said, in the trailers or in the headers.
    #[default]
    Ended,
    /// `OK` is still to be said.
    Ok,
    /// More messages may come.
    Messages(BoxStream<'static, Result<Framed, Status>>),
    /// The message goes on.
    Pieces(Box<dyn Iterator<Item = Bytes> + Send>),
}

impl Body {
    /// One message, then `OK`.
    pub fn message(message: Framed, permit: Permit) -> Self {
        Self {
            ready: message,
            source: Source::Ok,
            _permit: permit,
            deadline: None,
        }
    }

    /// One message that is encoded piece by piece, header included, as the client takes it; then
    /// `OK`.
    pub fn pieces(pieces: impl Iterator<Item = Bytes> + Send + 'static, permit: Permit) -> Self {
        Self {
            source: Source::Pieces(Box::new(pieces)),
            _permit: permit,
            ..Self::default()
        }
    }

    /// Messages as they come, then `OK` or the error that ended them. The permit is for what they
    /// come from.
    pub fn messages(messages: BoxStream<'static, Result<Framed, Status>>, permit: Permit) -> Self {
        Self {
            source: Source::Messages(messages),
            _permit: permit,
            ..Self::default()
        }
    }

    /// Ends what is still to come at `deadline`.
    pub(crate) fn end_at(&mut self, deadline: Instant) {
        if !http_body::Body::is_end_stream(self) {
            self.deadline = Some(Box::pin(sleep_until(deadline)));
        }
    }

    /// The response that starts with this body.
    pub(crate) fn into_response(self) -> Response {
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

    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.source = Source::Ended;
        Frame::trailers(trailers(status))
    }
}

/// A response that consists of a status.
pub fn refuse(status: &Status) -> Response {
    let mut response = Body::default().into_response();
    response.headers_mut().extend(trailers(status));
    response
}

/// The end of a call that took longer than its client gave it.
pub(crate) fn too_late() -> Status {
    Status::deadline_exceeded("the time that the client gave this call (grpc-timeout) is over")
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    if let Err(unencodable) = status.add_header(&mut trailers) {
        trailers.insert(Status::GRPC_STATUS, (unencodable.code() as i32).into());
    }
    trailers
}

type Polled = Poll<Option<Result<Frame<Bytes>, Status>>>;

impl Body {
    /// Asks the source for the next frame, or for more to be `ready`.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Step, Status>>> {
        match &mut self.source {
            Source::Ended => Poll::Ready(None),
            Source::Ok => Poll::Ready(Some(Ok(Step::Frame(self.end(&Status::ok("")))))),
            Source::Pieces(pieces) => Poll::Ready(Some(Ok(match pieces.next() {
                Some(piece) => {
                    self.ready.payload = piece;
                    Step::Again
                }
                None => Step::Frame(self.end(&Status::ok(""))),
            }))),
            Source::Messages(messages) => messages.as_mut().poll_next(cx).map(|next| {
                Some(Ok(match next {
                    Some(Ok(framed)) => {
                        self.ready = framed;
                        Step::Again
                    }
                    Some(Err(status)) => Step::Frame(self.end(&status)),
                    None => Step::Frame(self.end(&Status::ok(""))),
                }))
            }),
        }
    }
}

/// What came of asking the source.
enum Step {
    Frame(Frame<Bytes>),
    Again,
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let me = self.get_mut();
        if let Some(deadline) = &mut me.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            me.deadline = None;
            me.ready = Framed::default();
            return Poll::Ready(Some(Ok(me.end(&too_late()))));
        }
        loop {
            if let Some(piece) = me.next_piece() {
                watchdog::sent(piece.len());
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            // Sent, and no longer held while the next message waits for memory of its own.
            me.ready = Framed::default();
            let polled = catch_unwind(AssertUnwindSafe(|| me.poll_source(cx)));
            let Ok(polled) = polled else {
                let status = panicked();
                return Poll::Ready(Some(Ok(me.end(&status))));
            };
            match polled {
                Poll::Pending => {
                    watchdog::waiting();
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(Step::Again))) => {}
                Poll::Ready(Some(Ok(Step::Frame(frame)))) => {
                    if let Some(data) = frame.data_ref() {
                        watchdog::sent(data.len());
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
                Poll::Ready(None) => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.source, Source::Ended)
            && self.ready.head.is_empty()
            && self.ready.payload.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::{FutureExt as _, StreamExt as _, stream};
    use gorego_limits::Budget;
    use http_body::Body as _;

    use super::*;
    use crate::full;

    #[tokio::test]
    async fn a_message_that_was_taken_leaves_its_memory_to_the_next() {
        const LEN: usize = 1024 * 1024;
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
}
