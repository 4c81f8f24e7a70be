//! Blobs as inputs of actions: links and copies, and checks of what actions did to them.

use std::{ffi::OsStr, fs, os::fd::BorrowedFd, sync::atomic::Ordering::Relaxed};

use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use rustix::fs::AtFlags;

use super::{
    LocalStore,
    disk::Disk,
    files::{LinkedOut, Meta, copy, meta_of},
    layout,
};
use crate::index::{Form, Key, Stamp};
use gorego_storage::{
    Adopt, BlobStore as _, Digest, DigestFunction, Error, LinkedAs, Links, PinError, Pins, Result,
    create_input, hash_file,
};

/// The number of files that are adopted at once for one caller.
const ADOPTED_AT_ONCE: usize = 4;

#[async_trait]
impl Links for LocalStore {
    async fn pin(&self, digests: &[Digest]) -> Result<Pins, PinError> {
        let pins = self.reserve_pins(digests).await?;
        let missing = self.find_missing(digests).await?;
        if missing.is_empty() {
            Ok(pins)
        } else {
            Err(PinError::Missing(missing))
        }
    }

    fn lacking(&self) -> u64 {
        self.lacking_for_pins()
    }

    fn link(
        &self,
        digest: &Digest,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        executable: bool,
    ) -> Result<LinkedAs> {
        let form = if executable { Form::Blob } else { Form::Twin };
        if !digest.is_empty_blob() && self.disk.link(digest, form, dir, name)? {
            return Ok(LinkedAs::Link);
        }
        self.disk.copy(digest, dir, name, executable)?;
        Ok(LinkedAs::Copy)
    }

    fn copy(
        &self,
        digest: &Digest,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        executable: bool,
    ) -> Result<()> {
        self.disk.copy(digest, dir, name, executable)
    }

    fn altered(&self, digests: &[Digest]) -> Vec<Digest> {
        let linked = digests.iter().filter(|digest| !digest.is_empty_blob());
        let is_altered = |digest: &&Digest| {
            self.disk.check_linked(digest).map_or_else(
                |error| {
                    tracing::warn!(%digest, %error, "failed to check an input of an action");
                    true
                },
                |is_unaltered| !is_unaltered,
            )
        };
        linked.filter(is_altered).copied().collect()
    }

    fn losses(&self) -> u64 {
        let counters = &self.disk.counters;
        counters.corrupt.load(Relaxed) + counters.lost.load(Relaxed)
    }

    async fn adopt(&self, function: DigestFunction, files: Vec<Adopt>) -> Vec<Result<Digest>> {
        let adoptions = stream::iter(files).map(|file| self.disk.adopt(function, file));
        adoptions.buffered(ADOPTED_AT_ONCE).collect().await
    }
}

impl Disk {
    /// Links a blob's file, or its twin. `false`, and no file, if that is not possible, or if the file may have been
    /// altered. Blocks.
    fn link(&self, digest: &Digest, form: Form, dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
        if !self.is_verified(&Key::cas(digest), digest)? {
            return Err(Error::NotFound(*digest));
        }
        match form {
            Form::Blob => Ok(self.link_file(digest, form, dir, name)? == Some(true)),
            Form::Twin => self.link_twin(digest, dir, name),
        }
    }

    /// Links a blob's file, or its twin; `None` if there is none. `false`, and no file, if the system refuses it, or if
    /// the file may have been altered. Blocks.
    pub(super) fn link_file(
        &self,
        digest: &Digest,
        form: Form,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<Option<bool>> {
        let key = Key::cas(digest);
        let path = match form {
            Form::Blob => layout::blob_path(digest),
            Form::Twin => layout::twin_path(&key),
        };
        Ok(match self.files.link_out(&path, dir, name)? {
            LinkedOut::Linked(meta) if self.is_unaltered(&key, form, digest, &meta) => Some(true),
            LinkedOut::Linked(_) => {
                remove(dir, name)?;
                Some(false)
            }
            LinkedOut::Refused => Some(false),
            LinkedOut::Missing => None,
        })
    }

    /// Verifies a blob if that is due; `false` if it is corrupt or missing. Blocks.
    fn is_verified(&self, key: &Key, digest: &Digest) -> Result<bool> {
        match self.index.peek(key) {
            Some(hit) if hit.unverified => self.verify(digest),
            _ => Ok(true),
        }
    }

    /// Returns whether a file has the right mode, owner and size, and the time that it had when it was first linked.
    fn is_unaltered(&self, key: &Key, form: Form, digest: &Digest, meta: &Meta) -> bool {
        self.files.is_intact(meta, form, digest.size())
            && self.index.is_linked(key, form, meta.stamp)
    }

    /// Creates an input with the content of a blob. Blocks.
    fn copy(
        &self,
        digest: &Digest,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        executable: bool,
    ) -> Result<()> {
        let to = create_input(dir, name, executable)?;
        if digest.is_empty_blob() {
            return Ok(());
        }
        let copied = self.copy_to(digest, &to, name);
        if copied.is_err() {
            remove(dir, name)?;
        }
        copied
    }

    /// Copies the content of a blob to an empty file; `name` names it in errors. Blocks.
    pub(super) fn copy_to(&self, digest: &Digest, to: &fs::File, name: &OsStr) -> Result<()> {
        let key = Key::cas(digest);
        if !self.is_verified(&key, digest)? {
            return Err(Error::NotFound(*digest));
        }
        let (_, from) = self.open_blob(digest)?;
        let failed = |error| Error::io("copying a blob to", name, error);
        let copied = copy(&from, to, digest.size()).map_err(failed)?;
        // After the copy, so that no change escapes.
        let meta = meta_of(&from).map_err(failed)?;
        if copied == digest.size() && self.is_unaltered(&key, Form::Blob, digest, &meta) {
            return Ok(());
        }
        let actual = hash_file(digest.function(), to, u64::MAX).map_err(failed)?;
        if actual.finish() == *digest {
            return Ok(());
        }
        self.verify(digest)?;
        Err(Error::NotFound(*digest))
    }

    /// Checks the files of a blob that were linked; `false` if one may have had other content. Blocks.
    fn check_linked(&self, digest: &Digest) -> Result<bool> {
        let linked = self.index.linked(&Key::cas(digest));
        let Some(twin) = linked.twin else {
            return self.check_blob(digest, linked.blob);
        };
        let is_right = self.check_twin(digest, twin)?;
        Ok((linked.blob.is_none() || self.check_blob(digest, linked.blob)?) && is_right)
    }

    /// Checks the file of a blob that was linked; `false` if the linked file may have had other content. Quarantines a
    /// corrupt one, and restores the mode, owner and time of one with the right content. Blocks.
    fn check_blob(&self, digest: &Digest, linked: Option<Stamp>) -> Result<bool> {
        let (key, path) = (Key::cas(digest), layout::blob_path(digest));
        let there = self.files.stat_file(&path)?;
        if let (Some(linked), Some(meta)) = (linked, &there)
            && self.files.is_intact(meta, Form::Blob, digest.size())
            && meta.stamp == linked
        {
            return Ok(true);
        }
        // Readers that come before the end of the check hash it, too.
        self.index.set_unverified(&key, true);
        if !self.verify(digest)? {
            return Ok(false);
        }
        let Some((file, meta)) = self.files.open_read(&path)? else {
            return Ok(false);
        };
        // Another file is there: the linked one was quarantined or removed.
        if linked.is_some_and(|linked| linked.inode != meta.stamp.inode) {
            return Ok(false);
        }
        let restored = self.files.set_meta(&file, Form::Blob, linked);
        restored.map_err(|error| Error::io("restoring", self.files.path(&path), error))?;
        Ok(true)
    }
}

fn remove(dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    rustix::fs::unlinkat(dir, name, AtFlags::empty())
        .map_err(|errno| Error::io("removing", name, errno.into()))
}
