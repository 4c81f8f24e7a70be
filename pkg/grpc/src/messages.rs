//! The request messages of a call: reading them within limits of time and memory, and decoding them.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use gorego_limits::{Call, Pace, Permit};
use http_body::Body;
use hyper::body::Incoming;
use prost::Message;
use tokio::{
    task,
    time::{Instant, Sleep, sleep},
};
use tonic::{Code, Status};

use crate::{HEADER_LEN, Memory, full, malformed, status::too_slow, unavailable};

/// The size in bytes from which on encoded requests are decoded on a thread that other calls do not wait for.
const LARGE: usize = 256 * 1024;

/// The request messages of a call, each a header and that many bytes. Reading fails with `DEADLINE_EXCEEDED` when
/// the client sends nothing for the whole time-out, with `RESOURCE_EXHAUSTED` when it is too slow while others wait
/// for the call's memory, and with `CANCELLED` when it breaks the request off.
#[derive(Debug)]
pub struct Messages<B = Incoming> {
    body: B,
    /// The bytes that have arrived and are not taken.
    arrived: Bytes,
    memory: Memory,
    idle_timeout: Duration,
    /// The idle timer, created at the first wait: most requests arrive whole.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    pace: Pace,
}

impl<B> Messages<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    /// Creates the messages in the request of the current call. Whole messages reserve from `memory`.
    pub fn new(body: B, idle_timeout: Duration, memory: Memory) -> Self {
        Self {
            body,
            arrived: Bytes::new(),
            memory,
            idle_timeout,
            timer: None,
            waiting: false,
            pace: Pace::new(Call::current()),
        }
    }

    /// Reads the only message of the request, and reserves its memory.
    pub async fn only(mut self, limit: impl Into<Limit>) -> Result<(Bytes, Permit), Status> {
        let len = self
            .next_len(limit)
            .await?
            .ok_or_else(|| Status::invalid_argument("the request has no message"))?;
        let permit = self.reserve(len).await?;
        let message = self.whole(Bytes::new(), len).await?;
        if self.next_len(u64::MAX).await?.is_some() {
            return Err(Status::invalid_argument(
                "the request has a second message, this method takes one",
            ));
        }
        Ok((message, permit))
    }

    /// Reserves memory for a whole message of `len` bytes. From then on the client has to send it at the minimum
    /// rate while others wait for memory.
    pub async fn reserve(&mut self, len: usize) -> Result<Permit, Status> {
        self.memory.requests.reserve(len as u64).await.map_err(full)
    }

    /// Reads the length of the next message in bytes; `None` at the end of the request.
    pub async fn next_len(&mut self, limit: impl Into<Limit>) -> Result<Option<usize>, Status> {
        if !poll_fn(|cx| self.poll_fill(cx)).await? {
            return Ok(None);
        }
        let mut header = [0; HEADER_LEN];
        for byte in &mut header {
            if !poll_fn(|cx| self.poll_fill(cx)).await? {
                return Err(cut_off());
            }
            *byte = self.arrived.get_u8();
        }
        let [flag, len @ ..] = header;
        let (len, limit) = (u32::from_be_bytes(len), limit.into());
        match flag {
            0 if u64::from(len) > limit.bytes => {
                let most = limit.bytes;
                let why = format!("a message of {len} bytes, this method takes at most {most}");
                Err(Status::new(limit.refusal, why))
            }
            0 => Ok(Some(usize::try_from(len).unwrap_or(usize::MAX))),
            1 => Err(Status::unimplemented(
                "compressed messages are not supported, only compressed blobs",
            )),
            flag => Err(Status::invalid_argument(format!(
                "a message has the compression flag {flag}, accepted is 0"
            ))),
        }
    }

    /// Reads the next bytes of a message as they arrived, at least one and at most `limit`.
    pub async fn some(&mut self, limit: usize) -> Result<Bytes, Status> {
        if !poll_fn(|cx| self.poll_fill(cx)).await? {
            return Err(cut_off());
        }
        Ok(self.arrived.split_to(self.arrived.len().min(limit)))
    }

    /// Reads the rest of `len` bytes, of which `first` are the first. Copies them if they arrived in pieces.
    pub async fn whole(&mut self, mut first: Bytes, len: usize) -> Result<Bytes, Status> {
        if first.is_empty() && len > 0 {
            first = self.some(len).await?;
        }
        if first.len() == len {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(len);
        whole.extend_from_slice(&first);
        while whole.len() < len {
            whole.extend_from_slice(&self.some(len - whole.len()).await?);
        }
        Ok(whole.freeze())
    }

    /// Waits until bytes have arrived; false at the end of the request.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Status>> {
        while self.arrived.is_empty() {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                return self.poll_late(cx).map(Err);
            };
            self.waiting = false;
            let data = frame.map(|frame| frame.map(|frame| frame.into_data().unwrap_or_default()));
            let bytes = data.as_ref().and_then(|data| data.as_ref().ok());
            self.pace.moved(bytes.map_or(0, Bytes::len));
            match data {
                None => return Poll::Ready(Ok(false)),
                Some(Ok(data)) => self.arrived = data,
                Some(Err(why)) => {
                    let why = format!("the client broke the request off: {why}");
                    return Poll::Ready(Err(Status::cancelled(why)));
                }
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Waits until the client is too slow, or has sent nothing for the time-out.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if self.pace.poll_too_slow(cx).is_ready() {
            return Poll::Ready(too_slow());
        }
        let idle_timeout = self.idle_timeout;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep(idle_timeout)));
        if !self.waiting {
            self.waiting = true;
            timer.as_mut().reset(Instant::now() + idle_timeout);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Status::deadline_exceeded(format!(
            "nothing of the request arrived for {idle_timeout:?}"
        )))
    }
}

/// A limit on the size of a method's messages.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The most bytes of a message.
    pub bytes: u64,
    /// The code for larger messages.
    pub refusal: Code,
}

impl From<u64> for Limit {
    fn from(bytes: u64) -> Self {
        let refusal = Code::ResourceExhausted;
        Self { bytes, refusal }
    }
}

fn cut_off() -> Status {
    Status::invalid_argument("the request ends within a message")
}

/// Decodes a message from a client.
pub fn decode<M: Message + Default>(encoded: Bytes) -> Result<M, Status> {
    M::decode(encoded).map_err(malformed)
}

/// Decodes a message from a client once its memory is reserved. `measure` returns an upper bound of the memory of its
/// fields, in bytes. Returns two permits: `wire`, for the encoded message, and one for its fields.
pub async fn decode_within<Q: Message + Default + Send + 'static>(
    memory: &Memory,
    encoded: Bytes,
    wire: Permit,
    measure: fn(encoded: &[u8]) -> Result<usize, Status>,
) -> Result<(Q, [Permit; 2]), Status> {
    let large = is_large(&encoded);
    let measured = encoded.clone();
    let (bytes, wire) = run(large, move || (measure(&measured), wire)).await?;
    let fields = memory.decoded.reserve(bytes? as u64).await.map_err(full)?;
    let permits = [wire, fields];
    // The permits go along, since work on another thread does not end with the call.
    let (request, permits) = run(large, move || (decode(encoded), permits)).await?;
    Ok((request?, permits))
}

/// Whether an encoded request is so large that other calls would have to wait while it is read.
pub const fn is_large(encoded: &Bytes) -> bool {
    encoded.len() >= LARGE
}

/// Runs `work`, on a thread that other calls do not wait for if it is `large`.
pub async fn run<R: Send + 'static>(
    large: bool,
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, Status> {
    if !large {
        return Ok(work());
    }
    task::spawn_blocking(work)
        .await
        .map_err(|_| unavailable("the work on a request was cancelled"))
}

#[cfg(test)]
mod tests;
