//! Messages in a request's bytes.

use std::fmt;

use bytes::{Buf as _, Bytes, BytesMut};
use gorego_limits::{Budget, Permit};
use http_body::Body;
use hyper::body::Incoming;
use tonic::{Code, Status};

use crate::{RequestBody, full};

/// A request's body as a sequence of messages, each a header and that many bytes.
#[derive(Debug)]
pub struct Messages<B = Incoming> {
    body: RequestBody<B>,
    /// Arrived and not yet taken.
    arrived: Bytes,
    /// For messages that have to be here as a whole.
    memory: Budget,
}

impl<B> Messages<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    /// The messages in `body`. Each that is read as a whole reserves from `memory`.
    pub const fn new(body: RequestBody<B>, memory: Budget) -> Self {
        Self {
            body,
            arrived: Bytes::new(),
            memory,
        }
    }

    /// Waits for the memory that a message of `len` bytes takes as a whole. From then on the client
    /// has to send it without delay when others wait for theirs.
    pub async fn reserve(&mut self, len: usize) -> Result<Permit, Status> {
        self.memory.reserve(len as u64).await.map_err(full)
    }

    /// Waits until something has arrived; `false` at the end of the request.
    async fn fill(&mut self) -> Result<bool, Status> {
        while self.arrived.is_empty() {
            match self.body.data().await? {
                Some(data) => self.arrived = data,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The length of the next message in bytes; `None` at the end of the request.
    pub async fn next_len(&mut self) -> Result<Option<u32>, Status> {
        if !self.fill().await? {
            return Ok(None);
        }
        match self.byte().await? {
            0 => {}
            1 => {
                return Err(Status::unimplemented(
                    "compressed messages are not supported, only compressed blobs",
                ));
            }
            flag => {
                return Err(Status::invalid_argument(format!(
                    "a message has the compression flag {flag}, accepted is 0"
                )));
            }
        }
        let mut len = 0;
        for _ in 0..4 {
            len = (len << 8) | u32::from(self.byte().await?);
        }
        Ok(Some(len))
    }

    /// The length of the next message, within the limit.
    pub async fn next_len_within(&mut self, limit: Limit) -> Result<Option<usize>, Status> {
        let Some(len) = self.next_len().await? else {
            return Ok(None);
        };
        if u64::from(len) > limit.bytes {
            let most = limit.bytes;
            return Err(Status::new(
                limit.refusal,
                format!("a message of {len} bytes, this method takes at most {most}"),
            ));
        }
        Ok(Some(usize::try_from(len).unwrap_or(usize::MAX)))
    }

    async fn byte(&mut self) -> Result<u8, Status> {
        if self.fill().await? {
            Ok(self.arrived.get_u8())
        } else {
            Err(cut_off())
        }
    }

    /// The next bytes of a message, as many as are here, at least one and at most `limit`.
    pub async fn some(&mut self, limit: usize) -> Result<Bytes, Status> {
        if !self.fill().await? {
            return Err(cut_off());
        }
        Ok(self.arrived.split_to(self.arrived.len().min(limit)))
    }

    /// The next `len` bytes in one piece; not copied if they arrived so.
    pub async fn whole(&mut self, len: usize) -> Result<Bytes, Status> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let first = self.some(len).await?;
        if first.len() == len {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(len);
        whole.extend_from_slice(&first);
        self.append(len - first.len(), &mut whole).await?;
        Ok(whole.freeze())
    }

    /// Appends the next `len` bytes to what is there.
    pub async fn append(&mut self, mut len: usize, buffer: &mut BytesMut) -> Result<(), Status> {
        while len > 0 {
            let piece = self.some(len).await?;
            len -= piece.len();
            buffer.extend_from_slice(&piece);
        }
        Ok(())
    }
}

/// The size of a method's messages.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    bytes: u64,
    /// The code for a message beyond it.
    refusal: Code,
}

impl From<u64> for Limit {
    fn from(bytes: u64) -> Self {
        let refusal = Code::ResourceExhausted;
        Self { bytes, refusal }
    }
}

impl Limit {
    /// The limit of a message whose size beyond `bytes` breaks the advertised limit of a batch: the
    /// protocol defines another code for that.
    pub const fn of_batch(bytes: u64) -> Self {
        let refusal = Code::InvalidArgument;
        Self { bytes, refusal }
    }
}

fn cut_off() -> Status {
    Status::invalid_argument("the request ends within a message")
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use futures::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    fn messages(
        pieces: &[&'static [u8]],
    ) -> Messages<impl Body<Data = Bytes, Error = Infallible> + Unpin + use<>> {
        let frames: Vec<_> = pieces
            .iter()
            .map(|piece| Ok(Frame::data(Bytes::from_static(piece))))
            .collect();
        let body = StreamBody::new(stream::iter(frames));
        let budget = Budget::memory("tests", 1024);
        Messages::new(RequestBody::new(body, Duration::MAX), budget)
    }

    #[tokio::test]
    async fn a_message_is_the_same_however_it_is_cut_into_frames() {
        let mut whole = messages(&[b"\0\0\0\0\x05hello"]);
        let mut cut = messages(&[b"\0\0", b"", b"\0\0\x05h", b"el", b"lo"]);
        for messages in [&mut whole as &mut dyn Take, &mut cut] {
            assert_eq!(messages.take_one().await.unwrap().unwrap(), "hello");
            assert!(messages.take_one().await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn a_request_that_ends_within_a_message_is_refused() {
        let cut_off: [&[&[u8]]; 2] = [&[b"\0\0\0"], &[b"\0\0\0\0\x05", b"hell"]];
        for pieces in cut_off {
            let status = messages(pieces).take_one().await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
        }
    }

    #[tokio::test]
    async fn compressed_messages_are_refused() {
        let compressed = messages(&[b"\x01\0\0\0\x01x"]).take_one().await;
        assert_eq!(compressed.unwrap_err().code(), Code::Unimplemented);
        let nonsense = messages(&[b"\x02\0\0\0\x01x"]).take_one().await;
        assert_eq!(nonsense.unwrap_err().code(), Code::InvalidArgument);
    }

    #[async_trait::async_trait]
    trait Take {
        async fn take_one(&mut self) -> Result<Option<Bytes>, Status>;
    }

    #[async_trait::async_trait]
    impl<B> Take for Messages<B>
    where
        B: Body<Data = Bytes, Error = Infallible> + Unpin + Send,
    {
        async fn take_one(&mut self) -> Result<Option<Bytes>, Status> {
            match self.next_len().await? {
                Some(len) => self.whole(len as usize).await.map(Some),
                None => Ok(None),
            }
        }
    }
}
