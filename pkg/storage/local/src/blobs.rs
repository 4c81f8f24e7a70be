//! Lookups and reads of blobs, and writes of blobs that arrive as a whole.

use std::{collections::HashSet, fs, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use gorego_limits::{Permit, UNCOUNTED};

use super::{
    LocalStore,
    disk::{Disk, Lookup, now_ms},
    layout,
    receive::Received,
    write::UPLOAD,
};
use crate::index::{Key, Lease, Use, room_of};
use gorego_storage::{
    Blob, BlobFile, BlobStore, CHUNK_SIZE, Digest, Error, InUse, Put, Result, SHARE, read_at,
};

/// The number of blobs of a batch that are hashed at once.
const HASHED_AT_ONCE: usize = 8;
/// The number of blobs that one trip to another thread looks up on the disk.
const LOOKED_UP_AT_ONCE: usize = 256;

/// The most bytes of a blob, and the most such blobs, that are read on the caller's thread if that needs no disk.
const SMALL: u64 = 16 << 10;
const FEW: usize = 8;

const LEASE: Use = Use::new(Lease::Full, false);
const READ: Use = Use::new(Lease::None, false);
const STREAM: Use = Use::new(Lease::None, true);

fn in_use(pin: impl InUse + 'static) -> Box<dyn InUse> {
    Box::new(pin)
}

impl LocalStore {
    /// Pins one blob for as long as it is read, without reserving room; `None` if it is missing.
    pub async fn pin_one(&self, digest: &Digest) -> Result<Option<Box<dyn InUse>>> {
        let found = self.disk.find(digest, STREAM).await?;
        Ok(found.and_then(|found| found.pin).map(in_use))
    }

    /// Pins a blob without hashing it first, even if it is unverified; `None` if it is missing.
    pub async fn pin_unverified(&self, digest: &Digest) -> Result<Option<Box<dyn InUse>>> {
        let digest = *digest;
        let touch = move |disk: &Arc<Disk>| disk.touch_on_disk(&digest, STREAM);
        let found = self.disk.run(touch).await?;
        Ok(found.and_then(|found| found.pin).map(in_use))
    }
}

#[async_trait]
impl BlobStore for LocalStore {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let (disk, now) = (&self.disk, now_ms());
        let mut missing = HashSet::new();
        let (mut unsure, mut unknown) = (Vec::new(), Vec::new());
        for digest in digests.iter().filter(|digest| !digest.is_empty_blob()) {
            match disk.touch(digest, now, LEASE) {
                Lookup::Hit(found) if !found.unverified => {}
                Lookup::Miss => drop(missing.insert(*digest)),
                Lookup::Hit(_) => unsure.push(*digest),
                Lookup::Unknown => unknown.push(*digest),
            }
        }
        let mut trips = stream::iter(unknown.chunks(LOOKED_UP_AT_ONCE).map(<[_]>::to_vec))
            .map(|digests| disk.run(move |disk| touch_all(disk, digests)))
            .buffered(HASHED_AT_ONCE);
        while let Some((absent, unverified)) = trips.try_next().await? {
            missing.extend(absent);
            unsure.extend(unverified);
        }
        if !unsure.is_empty() {
            let found = self.find_all(&unsure, LEASE).await;
            for (digest, found) in unsure.into_iter().zip(found) {
                if !found? {
                    missing.insert(digest);
                }
            }
        }
        if disk.options.force_update_atime {
            let digests = digests.to_vec();
            let set_all = move |disk: &Arc<Disk>| {
                let paths = digests.iter().map(layout::blob_path);
                let mut set = paths.map(|path| disk.files.set_atime(&path, now));
                set.try_for_each(|set| set)
            };
            disk.run(set_all).await?;
        }
        // Each once, in the order of the request.
        let in_order = digests
            .iter()
            .filter(|digest| !missing.is_empty() && missing.remove(digest));
        Ok(in_order.copied().collect())
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
        let past_end = Error::OffsetPastEnd {
            digest: *digest,
            offset,
        };
        if digest.is_empty_blob() {
            let empty = Blob::Bytes(Bytes::new());
            return (offset == 0).then_some(empty).ok_or(past_end);
        }
        let memory = self.memory_for(digest.size().saturating_sub(offset));
        let how = if memory.is_some() { READ } else { STREAM };
        let found = self.disk.find(digest, how).await?;
        let found = found.ok_or(Error::NotFound(*digest))?;
        if offset > digest.size() {
            return Err(past_end);
        }
        let cached = (offset == 0 && memory.is_some()).then(|| self.disk.read_cached(&[*digest]));
        let cached = cached.flatten().and_then(|mut contents| contents.pop());
        let memory = match (memory, cached) {
            (Some(memory), Some(content)) => return Ok(Blob::Bytes(memory.hold(content))),
            (memory, _) => memory,
        };
        let digest = *digest;
        let open = move |disk: &Arc<Disk>| {
            if let Some(memory) = memory {
                let content = disk.read_blob(&digest, offset)?;
                return Ok(Blob::Bytes(memory.hold(content)));
            }
            let (path, file) = disk.open_blob(&digest)?;
            Ok(Blob::File(BlobFile {
                file: Arc::new(file),
                path: disk.files.path(&path),
                offset,
                len: digest.size() - offset,
                guard: Some(disk.traffic.guard(found.pin.map(in_use))),
            }))
        };
        self.disk.run(open).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
        let (chunks, resume) = match blob {
            Blob::Bytes(content) => return self.disk.put_pieces(digest, vec![content]).await,
            Blob::Stream(stream) => (stream.chunks, stream.resume),
            file @ Blob::File(_) => (file.into_chunks(), None),
        };
        if let Some(other) = digest.other()
            && self.disk.has(&other, UPLOAD).await?
        {
            return Ok(Put::Existed);
        }
        match self.receive(digest, chunks, resume, None).await? {
            Received::Existed => Ok(Put::Existed),
            Received::Complete(complete) => complete.publish().await,
        }
    }

    /// Uses the blobs as reads do, so that they get no lease.
    async fn fetch_batch(&self, digests: &[Digest]) -> Vec<Result<Digest>> {
        let found = self.find_all(digests, READ).await.into_iter();
        let fetched = |(digest, found): (&Digest, Result<bool>)| {
            found?.then_some(*digest).ok_or(Error::NotFound(*digest))
        };
        digests.iter().zip(found).map(fetched).collect()
    }

    async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
        let mut found = Vec::with_capacity(digests.len());
        for digest in digests {
            found.push((*digest, self.disk.has(digest, READ).await));
        }
        let is_few = found.len() <= FEW
            && found
                .iter()
                .all(|(_, is_found)| matches!(is_found, Ok(true)));
        let cached = is_few.then(|| self.disk.read_cached(digests)).flatten();
        if let Some(contents) = cached {
            return contents.into_iter().map(Ok).collect();
        }
        let read_all = move |disk: &Arc<Disk>| {
            let read = |(digest, is_found): (Digest, Result<bool>)| match is_found? {
                true if digest.is_empty_blob() => Ok(Bytes::new()),
                true => disk.read_blob(&digest, 0),
                false => Err(Error::NotFound(digest)),
            };
            Ok(found.into_iter().map(read).collect())
        };
        let read = self.disk.run(read_all).await;
        read.unwrap_or_else(|error| vec![Err(error); digests.len()])
    }

    async fn put_batch(&self, blobs: Vec<(Digest, Bytes)>) -> Vec<Result<Put>> {
        let (disk, count) = (&self.disk, blobs.len());
        let is_new = |(digest, _): &&(Digest, Bytes)| disk.index.peek(&Key::cas(digest)).is_none();
        let total = blobs.iter().filter(is_new).fold(0u64, |sum, (digest, _)| {
            sum.saturating_add(room_of(digest.size()))
        });
        let what = format!("a batch of {count} blobs");
        let write = async {
            let mut room = disk.room.reserve(total, &what, &Arc::default()).await?;
            let write_all = move |disk: &Arc<Disk>| {
                let write = |(digest, content): &(Digest, Bytes)| {
                    disk.put_one(digest, std::slice::from_ref(content))
                };
                let results =
                    room.write(u64::MAX, || Ok(blobs.iter().map(write).collect::<Vec<_>>()))?;
                Ok((results, blobs))
            };
            disk.run(write_all).await
        };
        let (mut results, blobs) = match write.await {
            Ok(written) => written,
            Err(error) => return vec![Err(error); count],
        };
        // Retried one by one, with eviction, if the disk was full.
        for (result, (digest, content)) in results.iter_mut().zip(blobs) {
            if matches!(result, Err(error) if error.is_no_space()) {
                *result = disk.put_pieces(&digest, vec![content]).await;
            }
        }
        results
    }
}

impl LocalStore {
    /// Looks blobs up, a few at once, since unverified ones are hashed.
    async fn find_all(&self, digests: &[Digest], how: Use) -> Vec<Result<bool>> {
        let finds = stream::iter(digests.to_vec());
        let finds = finds.map(|digest| async move { self.disk.has(&digest, how).await });
        finds.buffered(HASHED_AT_ONCE).collect().await
    }

    /// Reserves memory to read this many bytes at once, which takes one trip to another thread instead of
    /// two. `None` if they have to be read in pieces.
    fn memory_for(&self, bytes: u64) -> Option<Permit> {
        if bytes <= UNCOUNTED {
            return Some(Permit::default());
        }
        let pieces = self.disk.options.pieces.as_ref();
        let pieces = pieces.filter(|_| bytes <= CHUNK_SIZE as u64)?;
        Some(pieces.share(bytes, SHARE)).filter(|share| share.bytes() == bytes)
    }
}

/// Looks up blobs that the scan has not reached. Returns the missing and the unverified ones. Blocks.
fn touch_all(disk: &Disk, digests: Vec<Digest>) -> Result<(Vec<Digest>, Vec<Digest>)> {
    let (mut missing, mut unverified) = (Vec::new(), Vec::new());
    for digest in digests {
        match disk.touch_on_disk(&digest, LEASE)? {
            Some(found) if found.unverified => unverified.push(digest),
            Some(_) => {}
            None => missing.push(digest),
        }
    }
    Ok((missing, unverified))
}

impl Disk {
    /// Reads small blobs that are in the memory of the kernel; `None` if one is not.
    fn read_cached(&self, digests: &[Digest]) -> Option<Vec<Bytes>> {
        let read = |digest: &Digest| {
            let is_small = digest.size() <= SMALL && !self.options.force_update_atime;
            let len = usize::try_from(digest.size()).ok().filter(|_| is_small)?;
            self.files.read_cached(&layout::blob_path(digest), len)
        };
        let contents = digests.iter().map(read).collect::<Option<Vec<_>>>()?;
        let bytes = contents.iter().map(|content| content.len() as u64).sum();
        self.traffic.add_read(bytes);
        Some(contents)
    }

    fn read_blob(&self, digest: &Digest, offset: u64) -> Result<Bytes> {
        let (path, file) = self.open_blob(digest)?;
        let len = usize::try_from(digest.size() - offset).unwrap_or(usize::MAX);
        match read_at(&file, offset, len) {
            Ok(content) if content.len() == len => {
                self.traffic.add_read(content.len() as u64);
                Ok(content)
            }
            Ok(_) => self.not_found(digest, &path),
            Err(error) => {
                let error = Error::io("reading", self.files.path(&path), error);
                self.unreadable(digest, error)
            }
        }
    }

    /// Opens a blob's file. Drops the entry of one that is missing or has another size. Blocks.
    pub(super) fn open_blob(&self, digest: &Digest) -> Result<(String, fs::File)> {
        let path = layout::blob_path(digest);
        match self.files.open_read(&path) {
            Ok(Some((file, meta))) if meta.size == digest.size() => {
                if self.options.force_update_atime {
                    self.files.set_atime(&path, now_ms())?;
                }
                Ok((path, file))
            }
            Ok(_) => self.not_found(digest, &path),
            Err(error) => self.unreadable(digest, error),
        }
    }

    fn unreadable<T>(&self, digest: &Digest, error: Error) -> Result<T> {
        if !error.is_unreadable() {
            return Err(error);
        }
        self.verify(digest)?;
        Err(Error::NotFound(*digest))
    }

    fn not_found<T>(&self, digest: &Digest, path: &str) -> Result<T> {
        self.forget(&Key::cas(digest), path, Some(digest.size()))?;
        Err(Error::NotFound(*digest))
    }
}
