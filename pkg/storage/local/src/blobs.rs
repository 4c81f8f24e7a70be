//! Blobs: look up, read, and write those that are at hand whole.

mod read;

use std::{collections::HashSet, fs, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};

use super::{
    LocalStore,
    core::{Core, blocking, now_ms},
    files::write_at,
    full::Attempts,
    layout, receive,
    room::Reservation,
    scanned::Known,
};
use crate::index::{Key, Lease, SIZE_END, Use, room_of};
use gorego_storage::{Blob, BlobStore, Digest, Error, Hasher, InUse, Put, Result};

/// The number of blobs of a batch that are hashed at once.
const HASHED_AT_ONCE: usize = 8;

const LEASE: Use = Use {
    lease: Lease::Full,
    pin: false,
};
const READ: Use = Use {
    lease: Lease::None,
    pin: false,
};
const STREAM: Use = Use {
    lease: Lease::None,
    pin: true,
};
/// The use by an upload of a blob that is already stored.
pub(super) const UPLOAD: Use = Use {
    lease: Lease::Upload,
    pin: false,
};

impl LocalStore {
    /// Keeps a blob from eviction until what this gives is dropped; `None` when it is not here.
    pub async fn keep(&self, digest: &Digest) -> Result<Option<Box<dyn InUse>>> {
        let found = self.core.seek(digest, STREAM).await?;
        let pin = found.and_then(|found| found.pin);
        Ok(pin.map(|pin| Box::new(pin) as Box<dyn InUse>))
    }

    /// Pins a blob without hashing it first, even if it is unverified; `None` when it is not here.
    pub async fn keep_unread(&self, digest: &Digest) -> Result<Option<Box<dyn InUse>>> {
        let (core, digest) = (Arc::clone(&self.core), *digest);
        let pin = blocking(move || core.pin_unread(&digest)).await?;
        Ok(pin.map(|pin| Box::new(pin) as Box<dyn InUse>))
    }
}

#[async_trait]
impl BlobStore for LocalStore {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let core = &self.core;
        let now = now_ms();
        // Those that only the disk can tell about, and those that have to be hashed first.
        let (mut unseen, mut in_doubt) = (Vec::new(), Vec::new());
        let mut missing = Vec::new();
        for digest in digests.iter().filter(|digest| !digest.is_empty_blob()) {
            let (key, size) = (Key::cas(digest), Some(digest.size()));
            match core
                .scanned
                .known(|| core.index.touch(&key, size, now, LEASE))
            {
                Known::Here(seen) if seen.in_doubt => in_doubt.push(*digest),
                Known::Here(_) => {}
                Known::Nowhere => missing.push(*digest),
                Known::Unseen => unseen.push(*digest),
            }
        }
        if !unseen.is_empty() {
            let core = Arc::clone(core);
            let (absent, doubtful) = blocking(move || core.look_for(unseen)).await?;
            missing.extend(absent);
            in_doubt.extend(doubtful);
        }
        for digest in in_doubt {
            if !core.settle(&digest).await? {
                missing.push(digest);
            }
        }
        if core.force_update_atime {
            let (core, digests) = (Arc::clone(core), digests.to_vec());
            blocking(move || {
                digests
                    .iter()
                    .try_for_each(|digest| core.write_atime(digest))
            })
            .await?;
        }
        // Each once, in the order in which they were asked for.
        let mut missing: HashSet<Digest> = missing.into_iter().collect();
        let in_order = digests.iter().filter(|digest| missing.remove(digest));
        Ok(in_order.copied().collect())
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        if digest.is_empty_blob() {
            return match offset {
                0 => Ok(Blob::Bytes(Bytes::new())),
                _ => Err(Error::OffsetPastEnd {
                    digest: *digest,
                    offset,
                }),
            };
        }
        let whole = self.core.share_whole(digest.size().saturating_sub(offset));
        let found = self
            .core
            .seek(digest, if whole.is_some() { READ } else { STREAM })
            .await?;
        let found = found.ok_or(Error::NotFound(*digest))?;
        if offset > digest.size() {
            return Err(Error::OffsetPastEnd {
                digest: *digest,
                offset,
            });
        }
        let (core, digest) = (Arc::clone(&self.core), *digest);
        blocking(move || match found.pin {
            None => {
                let content = core.read_small(&digest, offset)?;
                Ok(Blob::Bytes(whole.unwrap_or_default().hold(content)))
            }
            Some(pin) => core.open_large(&digest, offset, pin).map(Blob::File),
        })
        .await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        match blob {
            Blob::Bytes(content) => self.core.put_pieces(digest, vec![content]).await,
            Blob::File(file) => {
                let chunks = Blob::File(file).into_chunks();
                receive::put_stream(&self.core, digest, chunks, None).await
            }
            Blob::Stream(stream) => {
                receive::put_stream(&self.core, digest, stream.chunks, stream.resume).await
            }
        }
    }

    /// Uses the blobs as reads do, so that they get no lease.
    async fn fetch_batch(&self, digests: &[Digest]) -> Vec<Result<Digest>> {
        let seek = |digest: Digest| {
            let core = Arc::clone(&self.core);
            async move {
                if digest.is_empty_blob() {
                    return Ok(digest);
                }
                let found = core.seek(&digest, READ).await?;
                found.map(|_| digest).ok_or(Error::NotFound(digest))
            }
        };
        let seeks: Vec<_> = digests.iter().copied().map(seek).collect();
        stream::iter(seeks).buffered(HASHED_AT_ONCE).collect().await
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        let mut found = Vec::with_capacity(digests.len());
        for digest in digests {
            let here = digest.is_empty_blob()
                || match self.core.seek(digest, READ).await {
                    Ok(here) => here.is_some(),
                    Err(error) => {
                        found.push((*digest, Err(error)));
                        continue;
                    }
                };
            found.push((*digest, Ok(here)));
        }
        let core = Arc::clone(&self.core);
        let read = move |(digest, here): (Digest, Result<bool>)| match here? {
            true if digest.size() == 0 => Ok(Bytes::new()),
            true => core.read_small(&digest, 0),
            false => Err(Error::NotFound(digest)),
        };
        let work = blocking(move || Ok(found.into_iter().map(read).collect::<Vec<_>>())).await;
        work.unwrap_or_else(|error| vec![Err(error); digests.len()])
    }

    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        let count = blobs.len();
        let new =
            |(digest, _): &&(Digest, Bytes)| self.core.index.peek(&Key::cas(digest)).is_none();
        let total = blobs.iter().filter(new).fold(0u64, |sum, (digest, _)| {
            sum.saturating_add(room_of(digest.size()))
        });
        let what = format!("a batch of {count} blobs");
        let broken = Arc::default();
        let reservation = match self.core.room.reserve(total, &what, &broken).await {
            Ok(reservation) => reservation,
            Err(error) => return vec![Err(error); count],
        };
        let core = Arc::clone(&self.core);
        let (retry, mut results) =
            match blocking(move || Ok(core.write_batch(blobs, &reservation))).await {
                Ok(done) => done,
                Err(error) => return vec![Err(error); count],
            };
        // The disk was full for these: one by one, each with what eviction can do for it.
        for (at, digest, content) in retry {
            let result = self.core.put_pieces(&digest, vec![content]).await;
            if let Some(place) = results.get_mut(at) {
                *place = result;
            }
        }
        results
    }
}

/// Places in a batch that are worth another attempt.
type Retry = Vec<(usize, Digest, Bytes)>;

impl Core {
    /// Stores content that is in memory.
    pub(super) async fn put_pieces(
        self: &Arc<Self>,
        digest: &Digest,
        pieces: Vec<Bytes>,
    ) -> Result<Put> {
        check_size(digest, pieces.iter().map(|piece| piece.len() as u64).sum())?;
        if digest.is_empty_blob() || self.seek(digest, UPLOAD).await?.is_some() {
            return Ok(Put::Existed);
        }
        let broken = Arc::default();
        let mut attempts = Attempts::new(self, &broken);
        loop {
            let reservation = self
                .room
                .reserve(digest.size(), &digest.to_string(), &broken)
                .await?;
            let (core, digest, content) = (Arc::clone(self), *digest, pieces.clone());
            match blocking(move || core.write_whole(&digest, &content, &reservation)).await {
                Err(error) if error.is_no_space() => {
                    if !attempts.again(digest.size()).await {
                        return Err(disk_full(&digest, &error));
                    }
                }
                other => return other,
            }
        }
    }

    /// Verifies and writes content in one go. Blocks.
    pub(super) fn write_whole(
        &self,
        digest: &Digest,
        pieces: &[Bytes],
        _room: &Reservation,
    ) -> Result<Put> {
        check_content(digest, pieces)?;
        let (tmp, file) = self.files.create_tmp()?;
        let written = write_at(&file, pieces, 0)
            .map_err(|errno| self.files.error("writing", &tmp, errno))
            .and_then(|()| self.files.seal(&tmp, &file, false))
            .and_then(|()| self.publish(digest, &tmp));
        if written.is_err() {
            self.files.unlink(&tmp)?;
        }
        written
    }

    fn write_batch(
        &self,
        blobs: Vec<(Digest, Bytes)>,
        room: &Reservation,
    ) -> (Retry, Vec<Result<Put>>) {
        let mut retry = Vec::new();
        let mut results = Vec::with_capacity(blobs.len());
        for (at, (digest, content)) in blobs.into_iter().enumerate() {
            let here = self
                .index
                .touch(&Key::cas(&digest), Some(digest.size()), now_ms(), UPLOAD);
            results.push(match check_size(&digest, content.len() as u64) {
                Err(error) => Err(error),
                Ok(()) if digest.is_empty_blob() => Ok(Put::Existed),
                Ok(()) if here.is_some_and(|seen| !seen.in_doubt) => Ok(Put::Existed),
                Ok(()) => self.write_whole(&digest, std::slice::from_ref(&content), room),
            });
            if results
                .last()
                .is_some_and(|r| matches!(r, Err(error) if error.is_no_space()))
            {
                retry.push((at, digest, content));
            }
        }
        (retry, results)
    }

    /// Opens a blob's file. What cannot be opened as one is forgotten. Blocks.
    fn open_blob(&self, digest: &Digest, path: &str) -> Result<fs::File> {
        match self.files.open_read(path) {
            Ok(Some(file)) => Ok(file),
            Ok(None) => self.not_found(digest),
            Err(error) if error.is_unreadable() => self.unreadable(digest),
            Err(error) => Err(error),
        }
    }

    fn unreadable<T>(&self, digest: &Digest) -> Result<T> {
        self.verify(digest)?;
        Err(Error::NotFound(*digest))
    }

    fn not_found<T>(&self, digest: &Digest) -> Result<T> {
        self.forget(digest)?;
        Err(Error::NotFound(*digest))
    }

    /// Looks for blobs that the scan has not reached. Those that are not here, and those that have
    /// to be hashed. Blocks.
    fn look_for(&self, unseen: Vec<Digest>) -> Result<(Vec<Digest>, Vec<Digest>)> {
        let (mut absent, mut in_doubt) = (Vec::new(), Vec::new());
        for digest in unseen {
            self.look_on_disk(&digest)?;
            let found = self
                .index
                .touch(&Key::cas(&digest), Some(digest.size()), now_ms(), LEASE);
            match found {
                Some(seen) if seen.in_doubt => in_doubt.push(digest),
                Some(_) => {}
                None => absent.push(digest),
            }
        }
        Ok((absent, in_doubt))
    }

    fn write_atime(&self, digest: &Digest) -> Result<()> {
        self.files.set_atime(&layout::blob_path(digest), now_ms())
    }
}

/// Refuses content of another hash.
pub(super) fn check_content(digest: &Digest, pieces: &[Bytes]) -> Result<()> {
    let mut hasher = Hasher::new(digest.function());
    for piece in pieces {
        hasher.update(piece);
    }
    let actual = hasher.finish();
    if actual == *digest {
        return Ok(());
    }
    Err(Error::Mismatch {
        expected: *digest,
        actual: actual.to_string(),
    })
}

/// Refuses content of another size, and sizes that no store can hold.
pub(super) fn check_size(digest: &Digest, size: u64) -> Result<()> {
    if digest.size() >= SIZE_END {
        return Err(Error::Full {
            what: digest.to_string(),
            bytes: digest.size(),
            why: format!("blobs are smaller than {SIZE_END} bytes"),
        });
    }
    if size == digest.size() && (size > 0 || digest.is_empty_blob()) {
        return Ok(());
    }
    Err(Error::Mismatch {
        expected: *digest,
        actual: format!("{size} bytes"),
    })
}

/// The refusal after eviction did not help against a full disk.
pub(super) fn disk_full(digest: &Digest, error: &Error) -> Error {
    let cause = error.io_cause().unwrap_or_else(|| error.to_string());
    Error::Full {
        what: digest.to_string(),
        bytes: digest.size(),
        why: format!("{cause} and nothing more can be evicted for it"),
    }
}
