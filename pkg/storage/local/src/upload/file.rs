//! The file of an upload that is under way or broke off.

use std::{fs, sync::Arc};

use bytes::Bytes;

use crate::{
    disk::{Disk, now_ms},
    files::write_at,
    growth::Growth,
    index::room_of,
    inflight::Claim,
    room::Reservation,
    verify,
};
use gorego_storage::{BlobFile, Digest, Error, Hasher, Put, Result};

/// A growing file and the hash of its content. Dropped, it is kept for a later attempt if the client
/// gave the upload a name, and removed otherwise.
pub(super) struct StagedFile {
    disk: Arc<Disk>,
    digest: Digest,
    path: String,
    file: Arc<fs::File>,
    hasher: Hasher,
    /// Shows others the file while it grows.
    growth: Option<Arc<Growth>>,
    room: Option<Reservation>,
    /// Held for as long as the file may be written.
    claim: Option<Arc<Claim>>,
    resumed: bool,
    /// Whether it was published or removed.
    gone: bool,
}

impl StagedFile {
    /// Opens the upload's file, hashes it up to the offset and cuts off the rest; or makes a new
    /// file. Blocks.
    pub(super) fn open(
        disk: Arc<Disk>,
        digest: Digest,
        offset: u64,
        claim: Option<Arc<Claim>>,
        growth: Option<Arc<Growth>>,
    ) -> Result<Self> {
        let (path, file, hasher, room) = match &claim {
            None => {
                let (path, file) = disk.files.create_tmp()?;
                (path, file, Hasher::new(digest.function()), None)
            }
            Some(claim) => {
                let path = claim.path().to_owned();
                let (file, meta) = disk.open_upload(&path)?;
                if meta.size < offset {
                    if meta.size == 0 {
                        disk.files.unlink(&path)?;
                    }
                    return Err(Error::UploadOffset {
                        digest,
                        offset,
                        committed: meta.size,
                    });
                }
                let failed = |error| Error::io("resuming", disk.files.path(&path), error);
                let hasher =
                    verify::hash_prefix(digest.function(), &file, offset).map_err(failed)?;
                file.set_len(offset).map_err(failed)?;
                let room = disk.room.adopt_idle(&path, meta.size);
                (path, file, hasher, Some(room))
            }
        };
        let file = Arc::new(file);
        if let Some(growth) = &growth {
            growth.opened(&file, disk.files.path(&path), hasher.size());
        }
        Ok(Self {
            disk,
            digest,
            path,
            file,
            growth,
            room,
            claim,
            resumed: hasher.size() > 0,
            hasher,
            gone: false,
        })
    }

    /// Returns the number of bytes staged so far.
    pub(super) const fn len(&self) -> u64 {
        self.hasher.size()
    }

    /// Returns the room needed to stage this many more bytes, beyond what is reserved.
    pub(super) fn short_of(&self, bytes: u64) -> u64 {
        let has = self.room.as_ref().map_or(0, Reservation::bytes);
        room_of(self.len() + bytes).saturating_sub(has)
    }

    /// Adds to the room that the file may take.
    pub(super) fn give(&mut self, more: Option<Reservation>) {
        match (&mut self.room, more) {
            (Some(room), Some(more)) => room.merge(more),
            (None, more) => self.room = more,
            (Some(_), None) => {}
        }
    }

    /// Writes and hashes the next pieces; on an error none of them counts. Blocks.
    pub(super) fn append(&mut self, pieces: &[Bytes]) -> Result<()> {
        write_at(&self.file, pieces, self.len())
            .map_err(|errno| self.disk.files.error("writing", &self.path, errno))?;
        for piece in pieces {
            self.hasher.update(piece);
        }
        if let Some(growth) = &self.growth {
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
            let hasher = verify::hash_prefix(other.function(), &self.file, self.len());
            let failed = |error| Error::io("hashing", self.disk.files.path(&self.path), error);
            let hasher = hasher.map_err(failed)?;
            if hasher.clone().finish() == other {
                (self.digest, self.hasher) = (other, hasher);
                return Ok(other);
            }
        }
        let (expected, actual) = (self.digest, actual.to_string());
        Err(if self.resumed {
            Error::ResumedMismatch { expected, actual }
        } else {
            Error::Mismatch { expected, actual }
        })
    }

    /// Returns the content.
    pub(super) fn blob(&self) -> BlobFile {
        BlobFile {
            file: Arc::clone(&self.file),
            path: self.disk.files.path(&self.path),
            offset: 0,
            len: self.len(),
            guard: None,
        }
    }

    /// Verifies the whole content and publishes it. After an error, remove it. Blocks.
    pub(super) fn publish(&mut self) -> Result<Put> {
        self.verify()?;
        let is_writable = self.claim.is_some();
        self.disk.files.seal(&self.path, &self.file, is_writable)?;
        let published = self.disk.publish_blob(&self.digest, &self.path)?;
        self.gone = true;
        Ok(published)
    }

    /// Removes the file. Blocks.
    pub(super) fn remove(&mut self) -> Result<()> {
        self.gone = true;
        self.disk.files.unlink(&self.path)
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        // A write that failed may have left more than was counted.
        let kept = self.claim.is_some() && self.len() > 0;
        if kept && self.file.set_len(self.len()).is_ok() {
            self.disk.room.add_idle(&self.path, self.len(), now_ms());
        } else if let Err(error) = self.disk.files.unlink(&self.path) {
            tracing::warn!(%error, "could not remove an upload that broke off");
        }
    }
}
