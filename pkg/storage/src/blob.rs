//! The content of blobs: in memory, in a file, or as a stream.

use std::{fmt, fs, io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, future::BoxFuture, stream, stream::BoxStream};
use gorego_limits::{Budget, Permit};
use rustix::io::Errno;
use tokio::task::{self, JoinHandle};

use crate::{Error, Result};

/// The size in which files are read. Large enough to make the switch to another thread cheap, small enough
/// that many slow readers take little memory.
pub const CHUNK_SIZE: usize = 256 * 1024;

/// The size of a chunk read from a file when memory is short: 16 KiB with the rest of its message.
const MIN_CHUNK: u64 = 12 * 1024;
/// A chunk takes at most this fraction of the free memory.
pub const SHARE: u64 = 16;
/// The size from which on the next chunk is read ahead.
const READ_AHEAD: u64 = 64 * 1024;

/// Content in chunks, none of them empty.
pub type Chunks = BoxStream<'static, Result<Bytes>>;

/// The content of a blob to store, or the content from an offset to the end.
#[derive(Debug)]
pub enum Blob {
    /// In memory, for small blobs.
    Bytes(Bytes),
    /// In an open file, to be read or hard-linked.
    File(BlobFile),
    /// As a stream.
    Stream(BlobStream),
}

/// A part of an open file.
pub struct BlobFile {
    /// The file, open for reading.
    pub file: Arc<fs::File>,
    /// The path of the file when it was opened. The file may have been removed since.
    pub path: PathBuf,
    /// The offset of the content in the file, in bytes.
    pub offset: u64,
    /// The content's length in bytes.
    pub len: u64,
    /// The store's guard, dropped when the content is no longer in use.
    pub guard: Option<Box<dyn InUse>>,
}

/// A store's guard of content in use.
pub trait InUse: Send + Sync {
    /// Notifies the store that the content cannot be read.
    fn unreadable(&self);

    /// Notifies the store that a reader got `bytes` more bytes of the content.
    fn was_read(&self, bytes: u64) {
        let _ = bytes;
    }
}

/// A stream of content.
pub struct BlobStream {
    /// The content in order.
    pub chunks: Chunks,
    /// The upload of a put, if it can be resumed.
    pub resume: Option<Resume>,
    /// For content still being fetched from another store: completes when the whole blob has arrived and
    /// matches its digest. The last chunk of `chunks` is not returned earlier.
    pub verified: Option<BoxFuture<'static, Result<()>>>,
}

/// The place of a stream in a resumable upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The client's id of the upload.
    pub upload: UploadId,
    /// The offset of the stream in the blob, in bytes. The store drops the bytes that it has beyond it.
    pub offset: u64,
}

/// A client's id of an upload: the `uuid` segment of a ByteStream write.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId(Box<str>);

impl UploadId {
    /// Wraps an id sent by a client. It may be any text, since stores do not use it as a path.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// Returns the id as the client sent it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Blob {
    /// Creates a stream that begins with the blob's first byte and cannot be resumed.
    pub fn stream(chunks: impl futures::Stream<Item = Result<Bytes>> + Send + 'static) -> Self {
        Self::Stream(BlobStream {
            chunks: chunks.boxed(),
            resume: None,
            verified: None,
        })
    }

    /// Truncates the content to `limit` bytes. If the blob is still being verified, the last chunk waits for
    /// the result.
    #[must_use]
    pub fn truncate(self, limit: u64) -> Self {
        match self {
            Self::Bytes(mut bytes) => {
                bytes.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
                Self::Bytes(bytes)
            }
            Self::File(file) => Self::File(BlobFile {
                len: file.len.min(limit),
                ..file
            }),
            Self::Stream(stream) => Self::Stream(BlobStream {
                chunks: truncate_chunks(stream.chunks, limit, stream.verified),
                verified: None,
                ..stream
            }),
        }
    }

    /// Returns the content in chunks, of at most [`CHUNK_SIZE`] for bytes and files. Reads a file one chunk
    /// ahead.
    pub fn into_chunks(self) -> Chunks {
        self.chunks(None)
    }

    /// Returns the content in chunks for a reader that may be slow. The chunks of a file reserve `memory` until
    /// they are dropped. When little memory is left, they are small and not read ahead.
    pub fn into_chunks_within(self, memory: &Budget) -> Chunks {
        self.chunks(Some(memory.clone()))
    }

    fn chunks(self, memory: Option<Budget>) -> Chunks {
        match self {
            Self::Bytes(bytes) => stream::iter(split(bytes).map(Ok)).boxed(),
            Self::File(rest) => {
                let ahead = None;
                let reader = FileReader {
                    rest,
                    memory,
                    ahead,
                };
                stream::unfold(reader, FileReader::next).boxed()
            }
            Self::Stream(stream) => stream.chunks,
        }
    }

    /// Returns the whole content. The caller limits its size.
    pub async fn into_bytes(self) -> Result<Bytes> {
        if let Self::Bytes(bytes) = self {
            return Ok(bytes);
        }
        let chunks: Vec<Bytes> = self.into_chunks().try_collect().await?;
        // Small content is a single chunk, which need not be copied.
        if let [whole] = chunks.as_slice() {
            return Ok(whole.clone());
        }
        Ok(chunks.concat().into())
    }
}

fn split(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        (!bytes.is_empty()).then(|| bytes.split_to(bytes.len().min(CHUNK_SIZE)))
    })
}

fn truncate_chunks(
    chunks: Chunks,
    limit: u64,
    verified: Option<BoxFuture<'static, Result<()>>>,
) -> Chunks {
    if limit == 0 {
        return stream::empty().boxed();
    }
    let state = (Some(chunks), limit, verified);
    stream::unfold(state, |(chunks, left, mut verified)| async move {
        let mut chunks = chunks?;
        let mut item = chunks.next().await?.map(|mut chunk| {
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            chunk
        });
        let left = left - item.as_ref().map_or(0, |chunk| chunk.len() as u64);
        if left > 0 {
            return Some((item, (Some(chunks), left, verified)));
        }
        // Other readers do not wait for this one.
        drop(chunks);
        if let Some(verified) = verified.take()
            && let Err(error) = verified.await
        {
            item = Err(error);
        }
        Some((item, (None, 0, None)))
    })
    .boxed()
}

struct FileReader {
    /// The part that was not returned yet.
    rest: BlobFile,
    /// The budget of the chunks, if they are counted.
    memory: Option<Budget>,
    ahead: Option<JoinHandle<Result<Bytes>>>,
}

impl FileReader {
    async fn next(mut self) -> Option<(Result<Bytes>, Self)> {
        let reading = match self.ahead.take() {
            Some(reading) => reading,
            None => self.read(false)?,
        };
        let read = reading.await.unwrap_or_else(|_| {
            let cancelled = "the read was cancelled".to_owned();
            Err(Error::Unavailable(cancelled))
        });
        match &read {
            Ok(chunk) => {
                self.rest.offset += chunk.len() as u64;
                self.rest.len -= chunk.len() as u64;
                if let Some(guard) = &self.rest.guard {
                    guard.was_read(chunk.len() as u64);
                }
                self.ahead = self.read(true);
            }
            Err(error) => {
                self.rest.len = 0;
                if let (Some(guard), Error::Io { .. }) = (&self.rest.guard, error) {
                    guard.unreadable();
                }
            }
        }
        Some((read, self))
    }

    /// Starts to read the next chunk, within memory that is reserved for it if there is enough. `None` at the content's
    /// end, or if too little memory is left to read `ahead`.
    fn read(&self, ahead: bool) -> Option<JoinHandle<Result<Bytes>>> {
        let BlobFile {
            offset: at,
            len: left,
            ..
        } = self.rest;
        let share = |memory: &Budget| memory.share(left.min(CHUNK_SIZE as u64), SHARE);
        let share = self.memory.as_ref().map(share);
        let (most, memory) = match share {
            None => (CHUNK_SIZE as u64, Permit::default()),
            Some(share) if ahead && share.bytes() < READ_AHEAD => return None,
            Some(share) if share.bytes() > MIN_CHUNK => (share.bytes(), share),
            Some(_) => (MIN_CHUNK, Permit::default()),
        };
        let len = usize::try_from(most.min(left)).unwrap_or(usize::MAX);
        let (file, path) = (Arc::clone(&self.rest.file), self.rest.path.clone());
        (len > 0).then(|| {
            task::spawn_blocking(move || {
                let read = read_at(&file, at, len).and_then(|bytes| {
                    let whole = bytes.len() == len;
                    whole
                        .then_some(bytes)
                        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
                });
                read.map(|bytes| memory.hold(bytes))
                    .map_err(|source| Error::io("reading", path, source))
            })
        })
    }
}

/// Reads `len` bytes at `at`, or fewer at the file's end.
pub fn read_at(file: &fs::File, at: u64, len: usize) -> io::Result<Bytes> {
    let mut buffer = Vec::with_capacity(len);
    while buffer.len() < len {
        let from = at + buffer.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut buffer), from) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    buffer.truncate(len);
    Ok(buffer.into())
}

impl fmt::Debug for BlobFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobFile")
            .field("path", &self.path)
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStream")
            .field("resume", &self.resume)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    struct Guard(Arc<AtomicBool>);

    impl InUse for Guard {
        fn unreadable(&self) {
            self.0.store(true, Relaxed);
        }
    }

    #[tokio::test]
    async fn a_failed_read_notifies_the_store() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "short").unwrap();
        for (len, unreadable) in [(5, false), (6, true)] {
            let notified = Arc::new(AtomicBool::new(false));
            let blob = Blob::File(BlobFile {
                file: Arc::new(fs::File::open(file.path()).unwrap()),
                path: file.path().to_owned(),
                offset: 0,
                len,
                guard: Some(Box::new(Guard(Arc::clone(&notified)))),
            });
            assert_eq!(blob.into_bytes().await.is_err(), unreadable);
            assert_eq!(notified.load(Relaxed), unreadable);
        }
    }

    #[tokio::test]
    async fn chunks_become_smaller_when_memory_is_short() {
        const LEN: u64 = 4 * CHUNK_SIZE as u64;
        let file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..=255).cycle().take(4 * CHUNK_SIZE).collect();
        fs::write(file.path(), &content).unwrap();
        let blob = || {
            Blob::File(BlobFile {
                file: Arc::new(fs::File::open(file.path()).unwrap()),
                path: file.path().to_owned(),
                offset: 0,
                len: LEN,
                guard: None,
            })
        };
        for (total, first) in [
            (64 << 20, CHUNK_SIZE as u64),
            (1 << 20, 64 << 10),
            (0, MIN_CHUNK),
        ] {
            let memory = Budget::memory("tests", total);
            let free = || memory.share(u64::MAX, 1).bytes();
            let mut chunks = blob().into_chunks_within(&memory);
            let piece = chunks.next().await.unwrap().unwrap();
            assert_eq!(piece.len() as u64, first);
            assert!(free() >= total.saturating_sub(2 * first));
            let mut read = piece.to_vec();
            drop(piece);
            while let Some(piece) = chunks.next().await {
                read.extend_from_slice(&piece.unwrap());
            }
            assert!(read == content);
            assert_eq!(free(), total, "all memory is released");
        }
    }
}
