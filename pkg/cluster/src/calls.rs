//! Calls to the services of other nodes, whose messages pass through encoded.

use std::{
    error::Error as _,
    future::{poll_fn, ready},
    pin::Pin,
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use gorego_grpc::{HEADER_LEN, full};
use gorego_limits::Budget;
use http::{
    Request,
    header::{CONTENT_TYPE, TE},
};
use tonic::{
    Code, Status,
    body::Body,
    codec::{EncodeBody, EncodeBuf, Encoder},
    codegen::Body as _,
    transport::Channel,
};
use tower::Service as _;

/// The largest message of another node, in bytes: a page of operations, or a result with inline outputs.
const MAX_MESSAGE: usize = 64 << 20;

/// Makes a call with one message at `path`, and returns the messages of the answer. The memory of a message is reserved
/// from `memory` before the message is read, and released when it is dropped.
pub async fn call(
    mut channel: Channel,
    path: &str,
    request: Bytes,
    memory: Budget,
) -> Result<BoxStream<'static, Result<Bytes, Status>>, Status> {
    let message = stream::once(ready(Ok(request)));
    let body = Body::new(EncodeBody::new_client(Encoded, message, None, None));
    let request = Request::post(path)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(body);
    let request = request.map_err(|why| Status::internal(why.to_string()))?;
    let failed = |why: tonic::transport::Error| Status::unavailable(why.to_string());
    let is_ready = poll_fn(|cx| channel.poll_ready(cx)).await;
    is_ready.map_err(failed)?;
    let answer = channel.call(request).await.map_err(failed)?;
    let status = answer.status();
    if !status.is_success() {
        return Err(Status::unavailable(format!(
            "the node answered with HTTP status {status}"
        )));
    }
    let status = Status::from_header_map(answer.headers());
    if let Some(status) = status.as_ref().filter(|status| status.code() != Code::Ok) {
        return Err(status.clone());
    }
    let answer = Answer {
        body: answer.into_body(),
        arrived: Bytes::new(),
        has_status: status.is_some(),
        memory,
    };
    let messages = stream::try_unfold(answer, async |mut answer: Answer| {
        let message = answer.message().await?;
        Ok(message.map(|message| (message, answer)))
    });
    Ok(messages.boxed())
}

/// The answer of another node.
struct Answer {
    body: Body,
    /// The bytes that have arrived and are not taken.
    arrived: Bytes,
    /// Set once the status of the call has arrived.
    has_status: bool,
    memory: Budget,
}

impl Answer {
    /// Reads the next message; `None` at the end.
    async fn message(&mut self) -> Result<Option<Bytes>, Status> {
        if !self.fill().await? {
            return Ok(None);
        }
        let mut header = [0; HEADER_LEN];
        for byte in &mut header {
            if !self.fill().await? {
                return Err(cut_off());
            }
            *byte = self.arrived.get_u8();
        }
        let [flag, len @ ..] = header;
        let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
        if flag != 0 || len > MAX_MESSAGE {
            let why = format!(
                "a node sent a message of {len} bytes, compressed: {}; accepted: up to {MAX_MESSAGE} bytes, \
                 not compressed",
                flag != 0
            );
            return Err(Status::resource_exhausted(why));
        }
        let permit = self.memory.reserve(len as u64).await.map_err(full)?;
        let mut message = BytesMut::with_capacity(len);
        while message.len() < len {
            if !self.fill().await? {
                return Err(cut_off());
            }
            let next = self.arrived.len().min(len - message.len());
            message.put(self.arrived.split_to(next));
        }
        Ok(Some(permit.hold(message.freeze())))
    }

    /// Waits until bytes have arrived; false at the end of a call that succeeded.
    async fn fill(&mut self) -> Result<bool, Status> {
        while self.arrived.is_empty() {
            let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
            let Some(frame) = frame else {
                return self.has_status.then_some(false).ok_or_else(cut_off);
            };
            match frame.map_err(broken)?.into_data() {
                Ok(data) => self.arrived = data,
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    match Status::from_header_map(&trailers) {
                        Some(status) if status.code() != Code::Ok => return Err(status),
                        status => self.has_status = status.is_some(),
                    }
                }
            }
        }
        Ok(true)
    }
}

fn cut_off() -> Status {
    Status::unavailable("the answer of the node ended early")
}

/// Returns the error of a call: `UNAVAILABLE` if the connection broke, for which tonic reports `UNKNOWN`.
fn broken(status: Status) -> Status {
    match status.code() {
        // The status of another node has no source.
        Code::Unknown if status.source().is_some() => Status::unavailable(status.message()),
        _ => status,
    }
}

/// Passes messages through without encoding them.
#[derive(Clone, Copy, Debug)]
struct Encoded;

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tonic::codec::SingleMessageCompressionOverride;

    use super::*;

    fn answer(messages: Vec<Result<Bytes, Status>>, memory: &Budget) -> Answer {
        let messages = stream::iter(messages);
        let uncompressed = SingleMessageCompressionOverride::Disable;
        let body = EncodeBody::new_server(Encoded, messages, None, uncompressed, None);
        Answer {
            body: Body::new(body),
            arrived: Bytes::new(),
            has_status: false,
            memory: memory.clone(),
        }
    }

    #[tokio::test]
    async fn messages_are_read_once_their_memory_is_reserved() {
        const LEN: usize = 1 << 20;
        let memory = Budget::memory("memory", (LEN + LEN / 2) as u64);
        let large = Bytes::from(vec![7; LEN]);
        let messages = [large.clone(), large.clone()].map(Ok);
        let mut answer = answer(messages.into(), &memory);
        let first = answer.message().await.unwrap().unwrap();
        assert_eq!(first, large);
        assert!(answer.message().now_or_never().is_none());
    }

    #[tokio::test]
    async fn the_status_of_a_call_ends_its_messages() {
        let memory = Budget::memory("memory", 1 << 20);
        let small = || Ok(Bytes::from_static(b"text"));
        let mut whole = answer(vec![small(), Ok(Bytes::new())], &memory);
        assert_eq!(whole.message().await.unwrap().unwrap(), "text");
        assert_eq!(whole.message().await.unwrap().unwrap(), "");
        assert_eq!(whole.message().await.unwrap(), None);
        let mut failed = answer(vec![small(), Err(Status::aborted("why"))], &memory);
        failed.message().await.unwrap().unwrap();
        assert_eq!(failed.message().await.unwrap_err().code(), Code::Aborted);
    }
}
