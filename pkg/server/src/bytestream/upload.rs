//! An upload: the content of the messages of a `Write`.
//!
//! The data of a `WriteRequest` is taken out as it arrives: a message may be larger than the memory for it, and its
//! bytes go to the store without being copied.

use std::{
    fmt, mem,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use gorego_grpc::{Messages, decode, malformed};
use gorego_storage::{CHUNK_SIZE, Error, Result as StoreResult, WriteName};
use http_body::Body;
use hyper::body::Incoming;
use reapi::{
    bytestream::WriteRequest,
    wire::{Header, Value},
};
use tonic::Status;

use crate::{
    compression::{Decompression, Malformed},
    status::invalid_field,
};

/// The most bytes before a message's data; also the most of a message whose data is not its last field.
const MAX_FIELDS: usize = 64 * 1024;

/// An upload in progress.
#[derive(Debug)]
pub(super) struct WriteStream<B = Incoming> {
    messages: Messages<B>,
    /// The data of the current message that has arrived.
    pub(super) arrived: Bytes,
    /// The bytes of its data that are still to arrive.
    left: usize,
    /// The name in the first message. Later ones may leave it out but not change it.
    name: String,
    /// The offset of the first message.
    pub(super) start: u64,
    /// The offset that the next message must have.
    next: u64,
    /// True if the current message is the last one.
    last: bool,
    pub(super) outcome: Arc<WriteOutcome>,
}

/// The outcome of an upload, which outlives it.
#[derive(Debug, Default)]
pub(super) struct WriteOutcome {
    /// The offset at which the upload began plus the bytes that arrived.
    pub(super) end: AtomicU64,
    /// The reason why the content could not be decompressed.
    pub(super) malformed: OnceLock<Malformed>,
}

impl<B> WriteStream<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: fmt::Display,
{
    fn new(messages: Messages<B>) -> Self {
        Self {
            messages,
            arrived: Bytes::new(),
            left: 0,
            name: String::new(),
            start: 0,
            next: 0,
            last: false,
            outcome: Arc::default(),
        }
    }

    /// Reads the first message, which names the blob and the offset.
    pub(super) async fn start(messages: Messages<B>) -> Result<(Self, WriteName), Status> {
        let mut upload = Self::new(messages);
        let head = upload.next_head().await?;
        let head = head.ok_or_else(|| Status::invalid_argument("the request has no message"))?;
        let name = WriteName::parse(&head.resource_name)
            .map_err(|why| invalid_field("resource_name", why))?;
        let size = name.digest.size();
        let start = u64::try_from(head.write_offset).unwrap_or(u64::MAX);
        if start > size {
            let why = format!("{} is not between 0 and {size}", head.write_offset);
            return Err(invalid_field("write_offset", why));
        }
        upload.name = head.resource_name;
        (upload.start, upload.next) = (start, start);
        upload.last = head.finish_write;
        Ok((upload, name))
    }

    /// Whether this is a whole upload in one message with at most a chunk of data.
    pub(super) fn is_small(&self) -> bool {
        self.last && self.start == 0 && self.data_len() <= CHUNK_SIZE
    }

    /// Reads the next message without its data; `None` at the end of the request. The data of the current message
    /// must have been taken.
    pub(super) async fn next_head(&mut self) -> Result<Option<WriteRequest>, Status> {
        let Some(len) = self.messages.next_len(u64::MAX).await? else {
            return Ok(None);
        };
        let (mut read, mut parsed) = (Bytes::new(), 0);
        while read.len() < len {
            let piece = self.messages.some(len - read.len()).await?;
            read = join(read, piece);
            if let Some((field, content)) = find_data(&read, len, &mut parsed)? {
                let fields = read.split_to(field);
                self.arrived = read.split_off(content - field);
                self.left = len - content - self.arrived.len();
                return decode(fields).map(Some);
            }
        }
        let mut request: WriteRequest = decode(read)?;
        self.arrived = mem::take(&mut request.data);
        Ok(Some(request))
    }

    /// Returns the number of bytes of the current message's data that are not taken.
    pub(super) fn data_len(&self) -> usize {
        self.arrived.len() + self.left
    }

    /// Waits until the rest of the current message's data has arrived, in one piece.
    pub(super) async fn gather(&mut self) -> Result<(), Status> {
        let len = self.data_len();
        let arrived = mem::take(&mut self.arrived);
        self.arrived = self.messages.whole(arrived, len).await?;
        self.left = 0;
        Ok(())
    }

    /// Reads the next piece of the current message's data, as it arrived; `None` at its end.
    async fn next_piece(&mut self) -> Result<Option<Bytes>, Status> {
        if self.arrived.is_empty() && self.left > 0 {
            self.arrived = self.messages.some(self.left).await?;
            self.left -= self.arrived.len();
        }
        let data = mem::take(&mut self.arrived);
        Ok((!data.is_empty()).then_some(data))
    }

    /// Reads the next bytes as they were sent; `None` at the end of the last message.
    async fn next_data(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(data) = self.next_piece().await? {
                self.next += data.len() as u64;
                self.outcome.end.store(self.next, Ordering::Relaxed);
                return Ok(Some(data));
            }
            if self.last {
                return Ok(None);
            }
            let head = self.next_head().await?.ok_or_else(|| {
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

    /// Returns the decompressed content. Malformed content ends without error but with the wrong size, so that a store
    /// keeps nothing of it; the outcome has the cause.
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

fn join(front: Bytes, back: Bytes) -> Bytes {
    if front.is_empty() {
        return back;
    }
    let mut both = BytesMut::from(front);
    both.extend_from_slice(&back);
    both.freeze()
}

/// Returns the offsets of the data and of its content in `read`, the start of a message of `len` bytes. `None` if it
/// has not arrived, or if the message has to be read whole: it is small and another field follows its data. The
/// fields up to `parsed` are not read again, since a client may send a byte at a time.
fn find_data(
    read: &[u8],
    len: usize,
    parsed: &mut usize,
) -> Result<Option<(usize, usize)>, Status> {
    while let Some(rest) = read.get(*parsed..).filter(|rest| !rest.is_empty()) {
        let field = *parsed;
        let Some(header) = Header::read(rest).map_err(malformed)? else {
            return Ok(None);
        };
        let content = field + header.len;
        let end = content.saturating_add(header.content_len());
        let is_data = header.number == WriteRequest::DATA;
        if end > len {
            return Err(malformed("a field is cut off"));
        } else if is_data && !matches!(header.value, Value::Delimited(_)) {
            return Err(malformed("data has the wrong wire type"));
        } else if is_data && end == len {
            return Ok(Some((field, content)));
        } else if len > MAX_FIELDS && (is_data || end > MAX_FIELDS) {
            return Err(Status::invalid_argument(format!(
                "data is not the last field of a message of {len} bytes, or more than {MAX_FIELDS} bytes precede it; \
                 accepted: data last, or at most {MAX_FIELDS} bytes"
            )));
        } else if is_data {
            return Ok(None);
        }
        *parsed = end;
    }
    Ok((read.len() == len).then_some((len, len)))
}

#[cfg(test)]
mod tests;
