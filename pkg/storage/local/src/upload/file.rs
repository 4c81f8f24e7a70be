//! The file of an upload that is in progress or was interrupted.

use std::{fs, sync::Arc};

use bytes::Bytes;
use rustix::io::Errno;

use super::Target;
use crate::{disk::now_ms, files::write_at, index::room_of, room::Reservation};
use gorego_storage::{BlobFile, Digest, Error, Hasher, Put, Result, hash_file};

/// A growing file and the hash of its content. When it is dropped, it is kept for a later attempt if the client named
/// an upload id, and removed otherwise.
pub(super) struct StagedFile {
    /// Holds the claim for as long as the file may be written.
    target: Arc<Target>,
    digest: Digest,
    path: String,
    /// Closed before the file is published: the system refuses to execute a file that is open for writing.
    writer: Option<fs::File>,
    hasher: Hasher,
    room: Reservation,
    resumed: bool,
    /// Set once it was published or removed.
    is_finished: bool,
}

impl StagedFile {
    /// Opens the upload's file, hashes it up to the offset and cuts off the rest; or makes a new
    /// file. Blocks.
    pub(super) fn open(target: Arc<Target>) -> Result<Self> {
        let Target {
            disk,
            digest,
            offset,
            claim,
            ..
        } = &*target;
        let mut hasher = Hasher::new(digest.function());
        let (path, file, kept) = if let Some(claim) = claim {
            let path = claim.path().to_owned();
            let (file, meta) = disk.open_upload(&path)?;
            if meta.size == 0 && *offset > 0 {
                disk.files.unlink(&path)?;
            }
            target.check_offset(meta.size)?;
            let failed = |error| Error::io("resuming", disk.files.path(&path), error);
            hasher = hash_file(digest.function(), &file, *offset).map_err(failed)?;
            file.set_len(*offset).map_err(failed)?;
            (path, file, meta.size)
        } else {
            let (path, file) = disk.files.create_tmp()?;
            (path, file, 0)
        };
        let room = disk.room.adopt_idle(&path, kept);
        let staged = Self {
            digest: *digest,
            path,
            writer: Some(file),
            room,
            resumed: *offset > 0,
            hasher,
            is_finished: false,
            target,
        };
        if let Some(growth) = &staged.target.growth {
            let BlobFile { file, path, .. } = staged.blob()?;
            growth.opened(&file, path, staged.len());
        }
        Ok(staged)
    }

    pub(super) const fn len(&self) -> u64 {
        self.hasher.size()
    }

    /// Returns the room needed to stage this many more bytes, beyond what is reserved.
    pub(super) fn short_of(&self, bytes: u64) -> u64 {
        room_of(self.len() + bytes).saturating_sub(self.room.bytes())
    }

    /// Adds to the room that the file may take.
    pub(super) fn give(&mut self, more: Option<Reservation>) {
        if let Some(more) = more {
            self.room.merge(more);
        }
    }

    /// Writes and hashes the next pieces; on an error none of them counts. Blocks.
    pub(super) fn append(&mut self, pieces: &[Bytes]) -> Result<()> {
        let (files, len) = (&self.target.disk.files, self.len());
        let write = || {
            let failed = |errno| files.error("writing", &self.path, errno);
            let file = self.writer.as_ref().ok_or_else(|| failed(Errno::BADF))?;
            write_at(file, pieces, len).map_err(|errno| {
                // What a full disk took is given back: others wait for it.
                let _cut = file.set_len(len);
                failed(errno)
            })
        };
        let more = pieces.iter().map(|piece| piece.len() as u64).sum();
        self.room.write(more, write)?;
        for piece in pieces {
            self.hasher.update(piece);
        }
        if let Some(growth) = &self.target.growth {
            growth.grown(self.len());
        }
        Ok(())
    }

    /// Checks the whole content and returns its digest. If the client named no function, content
    /// that does not match is hashed once more under the other; that blocks.
    pub(super) fn verify(&mut self) -> Result<Digest> {
        let actual = self.hasher.clone().finish();
        if actual == self.digest {
            return Ok(actual);
        }
        if let Some(other) = self.digest.other() {
            let files = &self.target.disk.files;
            let hasher = hash_file(
                other.function(),
                &files.open_written(&self.path)?,
                self.len(),
            );
            let failed = |error| Error::io("hashing", files.path(&self.path), error);
            let hasher = hasher.map_err(failed)?;
            if hasher.clone().finish() == other {
                (self.digest, self.hasher) = (other, hasher);
                return Ok(other);
            }
        }
        Err(Error::mismatch(&self.digest, actual).if_resumed(self.resumed))
    }

    pub(super) fn blob(&self) -> Result<BlobFile> {
        let files = &self.target.disk.files;
        Ok(BlobFile {
            file: Arc::new(files.open_written(&self.path)?),
            path: files.path(&self.path),
            offset: 0,
            len: self.len(),
            guard: None,
        })
    }

    /// Verifies the whole content and publishes it. After an error, remove it. Blocks.
    pub(super) fn publish(&mut self) -> Result<Put> {
        self.verify()?;
        let (disk, is_writable) = (&self.target.disk, self.target.claim.is_some());
        if let Some(file) = &self.writer {
            disk.files.seal(&self.path, file, is_writable)?;
        }
        self.writer = None;
        let published = disk.publish_blob(&self.digest, &self.path)?;
        self.is_finished = true;
        Ok(published)
    }

    pub(super) fn remove(&mut self) -> Result<()> {
        self.is_finished = true;
        self.target.disk.files.unlink(&self.path)
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        // A write that failed may have left more than was counted.
        let (disk, kept) = (
            &self.target.disk,
            self.target.claim.is_some() && self.len() > 0,
        );
        let is_cut = |file: &fs::File| file.set_len(self.len()).is_ok();
        if kept && self.writer.as_ref().is_none_or(is_cut) {
            disk.room.add_idle(&self.path, self.len(), now_ms());
        } else if let Err(error) = disk.files.unlink(&self.path) {
            tracing::warn!(%error, "failed to remove an interrupted upload");
        }
    }
}
