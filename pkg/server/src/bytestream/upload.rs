//! The content of one upload, taken out of the messages of a `Write`.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{Stream, stream};
use gorego_grpc::Messages;
use gorego_limits::Budget;
use gorego_storage::{CHUNK_SIZE, Error, Result as StoreResult, WriteName};
use http_body::Body;
use hyper::body::Incoming;
use reapi::bytestream::WriteRequest;
use tonic::Status;

use super::parts::Parts;
use crate::{
    compression::{Decompression, Malformed},
    status::invalid_field,
};

/// An upload in progress.
#[derive(Debug)]
pub(super) struct Upload<B = Incoming> {
    pub(super) parts: Parts<B>,
    /// The name in the first message. Later ones may leave it out but not change it.
    name: String,
    /// The offset of the first message.
    pub(super) start: u64,
    /// The offset that the next message must have.
    next: u64,
    /// True if the current message is the last one.
    last: bool,
    pub(super) outcome: Arc<Outcome>,
}

/// The outcome of an upload, which outlives it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    end: AtomicU64,
    malformed: OnceLock<Malformed>,
}

impl Outcome {
    /// Returns the offset at which the upload began plus the bytes that arrived.
    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }

    /// Fails if the content could not be decompressed.
    pub(super) fn check(&self) -> Result<(), Status> {
        match self.malformed.get() {
            Some(why) => Err(why.clone().into()),
            None => Ok(()),
        }
    }
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: fmt::Display,
{
    /// Reads the first message, which names the blob and the offset.
    pub(super) async fn start(
        messages: Messages<B>,
        files: Budget,
    ) -> Result<(Self, WriteName), Status> {
        let mut parts = Parts::new(messages, files);
        let head = parts
            .next_head()
            .await?
            .ok_or_else(|| Status::invalid_argument("the request has no message"))?;
        let name = WriteName::parse(&head.resource_name)
            .map_err(|why| invalid_field("resource_name", why))?;
        let start = u64::try_from(head.write_offset)
            .ok()
            .filter(|start| *start <= name.digest.size())
            .ok_or_else(|| {
                let size = name.digest.size();
                let why = format!("{} is not between 0 and {size}", head.write_offset);
                invalid_field("write_offset", why)
            })?;
        let upload = Self {
            parts,
            name: head.resource_name,
            start,
            next: start,
            last: head.finish_write,
            outcome: Arc::default(),
        };
        Ok((upload, name))
    }

    /// Whether this is a whole upload in one message with at most a chunk of data.
    pub(super) fn is_small(&self) -> bool {
        self.last && self.start == 0 && self.parts.data_len() <= CHUNK_SIZE
    }

    /// Reads the next bytes as they were sent; `None` at the end of the last message.
    async fn next_data(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(data) = self.parts.next_data().await? {
                self.next += data.len() as u64;
                self.outcome.end.store(self.next, Ordering::Relaxed);
                return Ok(Some(data));
            }
            if self.last {
                return Ok(None);
            }
            let head = self.parts.next_head().await?.ok_or_else(|| {
                Status::invalid_argument("the upload ends without a message with finish_write")
            })?;
            self.check(&head)?;
            self.last = head.finish_write;
        }
    }

    /// Checks that a message begins where the previous one ended.
    fn check(&self, head: &WriteRequest) -> Result<(), Status> {
        if !head.resource_name.is_empty() && head.resource_name != self.name {
            let why = "differs from that of the first message";
            return Err(invalid_field("resource_name", why));
        }
        if u64::try_from(head.write_offset) != Ok(self.next) {
            let why = format!("{}, but {} comes next", head.write_offset, self.next);
            return Err(invalid_field("write_offset", why));
        }
        Ok(())
    }

    /// Returns the content as it was sent. Ends with an error when the upload breaks off, so that a store keeps the
    /// rest for a later attempt.
    pub(super) fn into_chunks(self) -> impl Stream<Item = StoreResult<Bytes>> + Send {
        stream::try_unfold(self, |mut upload| async move {
            let data = upload.next_data().await.map_err(Error::source)?;
            Ok(data.map(|data| (data, upload)))
        })
    }

    /// Returns the decompressed content. Malformed content ends without error but with
    /// the wrong size, so that a store keeps nothing of it; the outcome has the cause.
    pub(super) fn into_decompressed_chunks(
        self,
        decompression: Decompression,
    ) -> impl Stream<Item = StoreResult<Bytes>> + Send {
        let state = Some((self, decompression, Bytes::new()));
        stream::try_unfold(state, |state| async move {
            let Some((mut upload, mut decompression, mut compressed)) = state else {
                return Ok(None);
            };
            let next = upload.next_content(&mut decompression, &mut compressed);
            match next.await.map_err(Error::source)? {
                Ok(content) => {
                    Ok(content.map(|content| (content, Some((upload, decompression, compressed)))))
                }
                Err(why) => {
                    let _ = upload.outcome.malformed.set(why);
                    // A byte too many, unless there are too few already.
                    let excess = (Bytes::from_static(b"\0"), None);
                    Ok((decompression.left == 0).then_some(excess))
                }
            }
        })
    }

    /// Returns the next decompressed content. The outer error is that of an upload that breaks off.
    async fn next_content(
        &mut self,
        decompression: &mut Decompression,
        compressed: &mut Bytes,
    ) -> Result<Result<Option<Bytes>, Malformed>, Status> {
        loop {
            decompression.ready(compressed).await?;
            let content = decompression.next(compressed);
            if !matches!(content, Ok(None)) {
                return Ok(content);
            }
            if compressed.is_empty() {
                match self.next_data().await? {
                    Some(data) => *compressed = data,
                    None => return Ok(decompression.finish().map(|()| None)),
                }
            }
        }
    }
}
