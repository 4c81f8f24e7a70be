//! A blob's content, in the shape in which it is at hand.

use std::{fmt, fs, io, path::PathBuf, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, future::BoxFuture, stream, stream::BoxStream};
use gorego_limits::{Budget, Permit};
use rustix::io::Errno;
use tokio::task::{self, JoinHandle};

use crate::{Error, Result};

/// How much of a file is read at a time. Large enough that the hop to another thread does not
/// count, small enough that many slow readers hold little.
pub const CHUNK_SIZE: usize = 256 * 1024;

/// The size of a piece read from a file where memory is short. A page less than 16 KiB, so that its
/// message fits into those.
const LEAST: u64 = 12 * 1024;
/// Pieces take at most one in so many of the bytes that are left for them.
pub const SHARE: u64 = 16;
/// Pieces from this size on are read before they are asked for.
const WORTH_AHEAD: u64 = 64 * 1024;

/// Content in pieces; none of them empty.
pub type Chunks = BoxStream<'static, Result<Bytes>>;

/// Content to store, or content found, from its offset to its end.
#[derive(Debug)]
pub enum Blob {
    /// In memory; the shape of small blobs.
    Bytes(Bytes),
    /// In an open file, which may be read or hard-linked.
    File(BlobFile),
    /// Arriving.
    Stream(BlobStream),
}

/// A part of an open file.
pub struct BlobFile {
    /// Open for reading.
    pub file: Arc<fs::File>,
    /// Where it was opened; by the time of use it may be gone.
    pub path: PathBuf,
    /// Where the content starts in the file, in bytes.
    pub offset: u64,
    /// The content's length in bytes.
    pub len: u64,
    /// Kept for as long as the content is in use: dropping it tells the store.
    pub guard: Option<Box<dyn InUse>>,
}

/// A store's hold on content that is in use.
pub trait InUse: Send + Sync {
    /// The content could not be read as it should be.
    fn unreadable(&self);
}

/// Arriving content.
pub struct BlobStream {
    /// The pieces, in order.
    pub chunks: Chunks,
    /// For a put whose beginning may have come earlier, and whose end may come later.
    pub resume: Option<Resume>,
    /// For content that is on its way from elsewhere: completes once all of it, also what is not
    /// asked for, has arrived and was found to match. The last chunk comes no earlier.
    pub verified: Option<Verified>,
}

/// See [`BlobStream::verified`].
pub type Verified = BoxFuture<'static, Result<()>>;

/// Which upload an arriving piece of content belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The client's name for the upload.
    pub upload: UploadId,
    /// Where in the blob the stream starts, in bytes. What a store kept beyond this is dropped.
    pub offset: u64,
}

/// A client's name for one upload: the `uuid` segment of a ByteStream write.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId(Box<str>);

impl UploadId {
    /// An upload's name as the client sent it. Any text: stores never use it as a path.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The name as the client sent it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Blob {
    /// A stream of content that starts at the blob's first byte and is not resumable.
    pub fn stream(chunks: impl futures::Stream<Item = Result<Bytes>> + Send + 'static) -> Self {
        Self::Stream(BlobStream {
            chunks: chunks.boxed(),
            resume: None,
            verified: None,
        })
    }

    /// Leaves out everything after the first `limit` bytes. The last of those comes only once the
    /// whole content was verified, if that is still to be done.
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
            Self::Stream(BlobStream {
                chunks,
                resume,
                verified,
            }) => Self::Stream(BlobStream {
                chunks: truncate_chunks(chunks, limit, verified),
                resume,
                verified: None,
            }),
        }
    }

    /// The content in pieces of at most [`CHUNK_SIZE`] for bytes and files. A file is read one
    /// piece ahead.
    pub fn into_chunks(self) -> Chunks {
        match self {
            Self::Bytes(bytes) => stream::iter(split(bytes).map(Ok)).boxed(),
            Self::File(file) => file.into_chunks(None),
            Self::Stream(stream) => stream.chunks,
        }
    }

    /// Returns chunks for a reader that may be slow: a file's pieces are counted in `memory` for as
    /// long as they are held. When little memory is left, pieces are small and nothing is read
    /// ahead.
    pub fn into_chunks_within(self, memory: &Budget) -> Chunks {
        match self {
            Self::File(file) => file.into_chunks(Some(memory.clone())),
            other => other.into_chunks(),
        }
    }

    /// The whole content in one piece; the caller knows that it is small enough.
    pub async fn into_bytes(self) -> Result<Bytes> {
        if let Self::Bytes(bytes) = self {
            return Ok(bytes);
        }
        let mut chunks = self.into_chunks();
        let Some(first) = chunks.next().await.transpose()? else {
            return Ok(Bytes::new());
        };
        let Some(second) = chunks.next().await.transpose()? else {
            // Small content comes in one chunk, and need not be copied.
            return Ok(first);
        };
        let mut whole = BytesMut::from(&*first);
        whole.extend_from_slice(&second);
        while let Some(chunk) = chunks.next().await {
            whole.extend_from_slice(&chunk?);
        }
        Ok(whole.freeze())
    }
}

fn split(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        (!bytes.is_empty()).then(|| bytes.split_to(bytes.len().min(CHUNK_SIZE)))
    })
}

fn truncate_chunks(chunks: Chunks, limit: u64, verified: Option<Verified>) -> Chunks {
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
        // Nobody is to wait for a reader that wants no more.
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

impl BlobFile {
    fn into_chunks(self, memory: Option<Budget>) -> Chunks {
        let (at, end) = (self.offset, self.offset + self.len);
        let pieces = Pieces {
            file: self,
            memory,
            at,
            end,
            ahead: None,
        };
        stream::unfold(pieces, Pieces::next).boxed()
    }
}

/// A file that is read in pieces.
struct Pieces {
    file: BlobFile,
    /// The budget that counts the pieces, if there is one.
    memory: Option<Budget>,
    at: u64,
    end: u64,
    ahead: Option<JoinHandle<Result<Bytes>>>,
}

impl Pieces {
    async fn next(mut self) -> Option<(Result<Bytes>, Self)> {
        let reading = match self.ahead.take() {
            Some(reading) => reading,
            None => self.read(self.share())?,
        };
        let read = reading.await.unwrap_or_else(|_| {
            let cut_off = "reading was cut off".to_owned();
            Err(Error::Unavailable(cut_off))
        });
        match &read {
            Ok(piece) => {
                self.at += piece.len() as u64;
                let share = self.share();
                let in_large_pieces = share.bytes() >= WORTH_AHEAD || self.memory.is_none();
                self.ahead = in_large_pieces.then(|| self.read(share)).flatten();
            }
            Err(error) => {
                self.at = self.end;
                if let (Some(guard), Error::Io { .. }) = (&self.file.guard, error) {
                    guard.unreadable();
                }
            }
        }
        Some((read, self))
    }

    /// Memory for the next piece; none where the piece has to be small.
    fn share(&self) -> Permit {
        let most = (CHUNK_SIZE as u64).min(self.end - self.at);
        let share = |memory: &Budget| memory.share(most, SHARE);
        let share = self.memory.as_ref().map(share).unwrap_or_default();
        if share.bytes() > LEAST {
            share
        } else {
            Permit::default()
        }
    }

    /// Starts reading the piece at hand; `None` at the content's end.
    fn read(&self, memory: Permit) -> Option<JoinHandle<Result<Bytes>>> {
        let most = match (&self.memory, memory.bytes()) {
            (None, _) => CHUNK_SIZE as u64,
            (_, 0) => LEAST,
            (_, bytes) => bytes,
        };
        let len = usize::try_from(most.min(self.end - self.at)).unwrap_or(usize::MAX);
        let (at, file, path) = (self.at, Arc::clone(&self.file.file), self.file.path.clone());
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

/// Reads up to `len` bytes at `at`; fewer only at the file's end.
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

    struct Told(Arc<AtomicBool>);

    impl InUse for Told {
        fn unreadable(&self) {
            self.0.store(true, Relaxed);
        }
    }

    #[tokio::test]
    async fn the_store_is_told_when_its_content_cannot_be_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "short").unwrap();
        for (len, unreadable) in [(5, false), (6, true)] {
            let told = Arc::new(AtomicBool::new(false));
            let blob = Blob::File(BlobFile {
                file: Arc::new(fs::File::open(file.path()).unwrap()),
                path: file.path().to_owned(),
                offset: 0,
                len,
                guard: Some(Box::new(Told(Arc::clone(&told)))),
            });
            assert_eq!(blob.into_bytes().await.is_err(), unreadable);
            assert_eq!(told.load(Relaxed), unreadable);
        }
    }

    #[tokio::test]
    async fn a_slow_reader_holds_little_where_memory_is_short() {
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
            (0, LEAST),
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
            assert_eq!(free(), total, "all of it is given back");
        }
    }
}
