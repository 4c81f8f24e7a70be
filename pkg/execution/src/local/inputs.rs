//! The inputs of a local action: fetched into files, each of which becomes the first file of the tree with its content.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use gorego_storage::{
    Adopt, BlobStore, Digest, DigestFunction, Error, LinkedAs, Links, Result, create_input,
};
use rustix::fs::{AtFlags, Mode, OFlags};
use tokio::io::AsyncWriteExt as _;

use super::{LocalError, file_name};
use crate::{Failure, abort::Abort, beneath::io as io_error, verify::digests, worker::block};

/// The size up to which blobs are fetched together, in bytes.
const SMALL: u64 = 256 << 10;
/// The most bytes of blobs that are fetched together.
const BATCH_BYTES: u64 = 2 << 20;
/// The most batches or large blobs that are fetched at once.
const AT_ONCE: usize = 8;

/// The blobs of an action's inputs as files of a directory.
#[derive(Debug)]
pub(super) struct FetchedInputs {
    dir: OwnedFd,
}

impl FetchedInputs {
    /// Fetches the blobs into files of the empty directory `dir`.
    pub(super) async fn fetch(
        blobs: &dyn BlobStore,
        digests: &[Digest],
        dir: OwnedFd,
    ) -> Result<Arc<Self>, LocalError> {
        let inputs = Arc::new(Self { dir });
        let batches = batches(digests).into_iter();
        let fetches = batches.map(|batch| Arc::clone(&inputs).fetch_batch(blobs, batch));
        let mut fetches = stream::iter(fetches).buffer_unordered(AT_ONCE);
        let mut missing = Vec::new();
        while let Some(batch) = fetches.try_next().await? {
            missing.extend(batch);
        }
        if missing.is_empty() {
            drop(fetches);
            return Ok(inputs);
        }
        Err(Failure::Missing(missing).into())
    }

    /// Fetches some blobs. Returns the missing ones.
    async fn fetch_batch(
        self: Arc<Self>,
        blobs: &dyn BlobStore,
        batch: Vec<Digest>,
    ) -> Result<Vec<Digest>, LocalError> {
        if let [large] = batch.as_slice()
            && large.size() > SMALL
        {
            return match self.fetch_large(blobs, large).await {
                Err(Error::NotFound(digest)) => Ok(vec![digest]),
                fetched => Ok(fetched.map(|()| Vec::new()).map_err(Failure::from_store)?),
            };
        }
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        let contents = blobs.get_batch(&batch).await;
        for (digest, content) in batch.into_iter().zip(contents) {
            match content {
                Ok(content) => found.push((digest, content)),
                Err(Error::NotFound(digest)) => missing.push(digest),
                Err(error) => return Err(Failure::from_store(error).into()),
            }
        }
        block(move || Ok(self.write(found)?)).await?;
        Ok(missing)
    }

    async fn fetch_large(&self, blobs: &dyn BlobStore, digest: &Digest) -> Result<()> {
        let name = file_name(digest);
        let file = create_input(self.dir.as_fd(), OsStr::new(&name), true)?;
        let mut file = tokio::fs::File::from_std(file);
        let mut chunks = blobs.get(digest, 0).await?.into_chunks();
        let failed = |error: io::Error| Error::io("writing", &name, error);
        while let Some(chunk) = chunks.try_next().await? {
            file.write_all(&chunk).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)
    }

    fn write(&self, blobs: Vec<(Digest, Bytes)>) -> Result<()> {
        for (digest, content) in blobs {
            let name = file_name(&digest);
            let mut file = create_input(self.dir.as_fd(), OsStr::new(&name), true)?;
            let written = file.write_all(&content);
            written.map_err(|error| Error::io("writing", &name, error))?;
        }
        Ok(())
    }

    /// Returns the inputs of an action whose tree is built, in the directory `dir`.
    pub(super) const fn none(dir: OwnedFd) -> Self {
        Self { dir }
    }

    /// Deletes the files' names in the directory. The tree keeps those that it took.
    pub(super) fn remove(&self, digests: &[Digest]) -> Result<(), Abort> {
        for digest in digests {
            let name = file_name(digest);
            let removed = rustix::fs::unlinkat(&self.dir, &name, AtFlags::empty());
            removed.map_err(io_error("removing", &name))?;
        }
        Ok(())
    }
}

/// Packs blobs into batches. Large ones are alone.
fn batches(digests: &[Digest]) -> Vec<Vec<Digest>> {
    let all = digests.iter().copied();
    let (small, large): (Vec<Digest>, Vec<_>) = all.partition(|digest| digest.size() <= SMALL);
    let mut batches: Vec<_> = large.into_iter().map(|digest| vec![digest]).collect();
    let mut bytes = BATCH_BYTES;
    for digest in small {
        // Each has a share of the message beside its content.
        let size = digest.size() + 100;
        match batches.last_mut() {
            Some(batch) if bytes + size <= BATCH_BYTES => {
                bytes += size;
                batch.push(digest);
            }
            _ => {
                bytes = size;
                batches.push(vec![digest]);
            }
        }
    }
    batches
}

#[async_trait]
impl Links for FetchedInputs {
    /// Gives the tree the file itself: its other name is removed before the action starts.
    fn link(
        &self,
        digest: &Digest,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        executable: bool,
    ) -> Result<LinkedAs> {
        let linked = rustix::fs::linkat(&self.dir, file_name(digest), dir, name, AtFlags::empty());
        let error = |errno: rustix::io::Errno| Error::io("creating", name, errno.into());
        linked.map_err(error)?;
        if !executable {
            let mode = Mode::RUSR | Mode::RGRP | Mode::ROTH;
            rustix::fs::chmodat(dir, name, mode, AtFlags::empty()).map_err(error)?;
        }
        Ok(LinkedAs::Link)
    }

    fn copy(
        &self,
        digest: &Digest,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        executable: bool,
    ) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.dir, file_name(digest), flags, Mode::empty());
        let error = |error: io::Error| Error::io("copying", name, error);
        let mut from = fs::File::from(opened.map_err(|errno| error(errno.into()))?);
        let mut to = create_input(dir, name, executable)?;
        io::copy(&mut from, &mut to).map(drop).map_err(error)
    }

    /// Returns the digests of outputs, which stay where they are.
    async fn adopt(&self, function: DigestFunction, files: Vec<Adopt>) -> Vec<Result<Digest>> {
        digests(function, files).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(number: u64, size: u64) -> Digest {
        let hash = DigestFunction::Sha256.digest(&number.to_le_bytes());
        Digest::from_hash(DigestFunction::Sha256, hash.hash(), size).unwrap()
    }

    #[test]
    fn each_blob_is_in_one_batch_and_large_ones_are_alone() {
        let sizes = [0, SMALL + 1, 1, SMALL, SMALL, 1 << 40, SMALL, 5];
        let sizes = sizes.into_iter().cycle().take(100);
        let all: Vec<_> = (0..).zip(sizes).map(|(n, size)| blob(n, size)).collect();
        let batches = batches(&all);
        for batch in &batches {
            let bytes: u64 = batch.iter().map(Digest::size).sum();
            assert!(bytes <= BATCH_BYTES || batch.len() == 1);
        }
        let mut packed = batches.concat();
        let mut all = all;
        packed.sort();
        all.sort();
        assert_eq!(packed, all);
    }
}
