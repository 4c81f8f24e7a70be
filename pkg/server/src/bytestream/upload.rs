//! The content of one upload, out of the messages of a `Write`.

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
use gorego_limits::{Budget, Permit};
use gorego_storage::{CHUNK_SIZE, Compressor, Error, Result as StoreResult, Resume, WriteName};
use http_body::Body;
use hyper::body::Incoming;
use tonic::Status;

use super::parts::{Head, Parts};
use crate::{
    compression::{Decompressor, Malformed},
    status::invalid_field,
};

/// An upload under way.
#[derive(Debug)]
pub(super) struct Upload<B = Incoming> {
    parts: Parts<B>,
    /// As the first message spelled it; later ones may leave it out but not change it.
    name: String,
    /// The first message's offset.
    start: u64,
    /// Where the next message has to start.
    next: u64,
    /// Whether the present message is the last one.
    last: bool,
    verdict: Verdict,
}

/// What became of an upload; outlives it.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict(Arc<Outcome>);

#[derive(Debug, Default)]
struct Outcome {
    end: AtomicU64,
    malformed: OnceLock<Malformed>,
}

impl Verdict {
    /// The offset at which the upload began plus the bytes that arrived.
    pub(super) fn end(&self) -> u64 {
        self.0.end.load(Ordering::Relaxed)
    }

    /// An error if the content could not be decompressed.
    pub(super) fn check(&self) -> Result<(), Status> {
        match self.0.malformed.get() {
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
    /// Waits for the first message, which says what is uploaded and from where on.
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
            verdict: Verdict::default(),
        };
        Ok((upload, name))
    }

    /// Whether this is a whole upload in one message with no more than a chunk of data.
    pub(super) fn is_small(&self) -> bool {
        self.last && self.start == 0 && self.parts.data_len() <= CHUNK_SIZE
    }

    /// All that the only message brings, in one piece.
    pub(super) async fn only_data(mut self) -> Result<Bytes, Status> {
        self.parts.whole_data().await
    }

    /// Waits until all data of the present message is here.
    pub(super) async fn gather(&mut self) -> Result<(), Status> {
        self.parts.gather().await
    }

    /// Reserves the file that a store keeps open for this upload, if one is free.
    pub(super) fn try_reserve_file(&mut self) -> Option<Permit> {
        let reserved = self.parts.try_reserve_file();
        reserved.then(|| self.parts.take_file())
    }

    /// Reserves the file that a store keeps open for this upload.
    pub(super) async fn reserve_file(&mut self) -> Result<Permit, Status> {
        self.parts.reserve_file().await?;
        Ok(self.parts.take_file())
    }

    /// Refuses content of the empty blob, as far as it is here already: the rest, and what would
    /// have to be decompressed, nobody reads.
    pub(super) fn check_empty(&self, name: &WriteName) -> Result<(), Status> {
        if name.compressor == Compressor::Identity && self.parts.data_len() > 0 {
            return Err(invalid_field("data", "the empty blob has no content"));
        }
        Ok(())
    }

    /// Which upload this is, for a store that keeps what arrives of it.
    pub(super) fn resume(&self, name: &WriteName) -> Resume {
        Resume {
            upload: name.upload.clone(),
            offset: self.start,
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        self.verdict.clone()
    }

    /// The next bytes as they were sent; `None` once the client said that it is finished.
    async fn next_data(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(data) = self.parts.next_data().await? {
                self.next += data.len() as u64;
                self.verdict.0.end.store(self.next, Ordering::Relaxed);
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

    /// Checks that a message goes on where the one before it ended.
    fn check(&self, head: &Head) -> Result<(), Status> {
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

    /// The content as it was sent. Ends with an error when the upload breaks off, so that a store
    /// keeps what it has for a later attempt.
    pub(super) fn into_chunks(self) -> impl Stream<Item = StoreResult<Bytes>> + Send {
        stream::try_unfold(self, |mut upload| async move {
            let data = upload.next_data().await.map_err(Error::source)?;
            Ok(data.map(|data| (data, upload)))
        })
    }

    /// The content decompressed; it should come to `size` bytes. Content that cannot be
    /// decompressed ends without error but with the wrong size, so that a store keeps nothing of
    /// it; the verdict then tells what was wrong.
    pub(super) fn into_decompressed_chunks(
        self,
        decompressor: Decompressor,
        size: u64,
    ) -> impl Stream<Item = StoreResult<Bytes>> + Send {
        let state = Decompressed {
            upload: self,
            decompressor,
            compressed: Bytes::new(),
            left: size,
        };
        stream::try_unfold(Some(state), |state| async move {
            let Some(mut state) = state else {
                return Ok(None);
            };
            match state.next_content().await {
                Ok(content) => Ok(content.map(|content| (content, Some(state)))),
                Err(Stop::BrokenOff(status)) => Err(Error::source(status)),
                Err(Stop::Malformed(why)) => {
                    // A byte too many, unless there are too few already.
                    let excess = (state.left == 0).then(|| (Bytes::from_static(b"\0"), None));
                    let _ = state.upload.verdict.0.malformed.set(why);
                    Ok(excess)
                }
            }
        })
    }
}

/// An upload whose content is decompressed as it arrives.
struct Decompressed<B> {
    upload: Upload<B>,
    decompressor: Decompressor,
    /// Arrived and not yet decompressed.
    compressed: Bytes,
    /// How much content is still due, in bytes.
    left: u64,
}

/// Why no more content comes.
enum Stop {
    BrokenOff(Status),
    Malformed(Malformed),
}

impl<B> Decompressed<B>
where
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: fmt::Display,
{
    async fn next_content(&mut self) -> Result<Option<Bytes>, Stop> {
        loop {
            let ready = self.decompressor.ready(&self.compressed).await;
            ready.map_err(Stop::BrokenOff)?;
            let content = self
                .decompressor
                .next(&mut self.compressed)
                .map_err(Stop::Malformed)?;
            if let Some(content) = content {
                self.left = self.left.saturating_sub(content.len() as u64);
                return Ok(Some(content));
            }
            if !self.compressed.is_empty() {
                continue;
            }
            let Some(compressed) = self.upload.next_data().await.map_err(Stop::BrokenOff)? else {
                self.decompressor.finish().map_err(Stop::Malformed)?;
                return Ok(None);
            };
            self.compressed = compressed;
        }
    }
}
