//! The file of an upload that is under way or broke off.

use std::{fs, sync::Arc};

use bytes::Bytes;

use super::{
    claims::Claim,
    core::{Core, now_ms},
    files::write_at,
    growth::Growth,
    layout,
    room::Reservation,
    verify,
};
use crate::index::room_of;
use gorego_storage::{BlobFile, Digest, Error, Hasher, Put, Result, Resume};

/// A growing file and the hash of what it holds. Dropped, it is kept for a later attempt if the
/// client gave the upload a name, and removed otherwise.
pub(super) struct Staged {
    core: Arc<Core>,
    digest: Digest,
    path: String,
    file: Arc<fs::File>,
    hasher: Hasher,
    /// Who else reads it.
    growth: Option<Arc<Growth>>,
    room: Option<Reservation>,
    /// Held for as long as the file may be written.
    claim: Option<Arc<Claim>>,
    resumed: bool,
    settled: bool,
}

impl Staged {
    /// Opens the upload's file, hashes what it holds up to the offset and drops the rest; or makes
    /// a new file. Blocks.
    pub(super) fn open(
        core: Arc<Core>,
        digest: &Digest,
        resume: Option<Resume>,
        claim: Option<Arc<Claim>>,
        growth: Option<Arc<Growth>>,
        mut room: Reservation,
    ) -> Result<Self> {
        let Some(Resume { upload, offset }) = resume else {
            let (path, file) = core.files.create_tmp()?;
            let hasher = Hasher::new(digest.function());
            let staged = Self::new(core, digest, path, file, hasher, room, None);
            return Ok(staged.read_by(growth));
        };
        let path = layout::upload_path(digest, &upload);
        let file = core.open_upload(&path)?;
        let failed = |error| Error::io("resuming", core.files.path(&path), error);
        let kept = file.metadata().map_err(failed)?.len();
        if kept < offset {
            if kept == 0 {
                core.files.unlink(&path)?;
            }
            return Err(Error::UploadOffset {
                digest: *digest,
                offset,
                committed: kept,
            });
        }
        let hasher = verify::hash_prefix(digest.function(), &file, offset).map_err(failed)?;
        file.set_len(offset).map_err(failed)?;
        room.merge(core.room.adopt_idle(&path, kept));
        Ok(Self::new(core, digest, path, file, hasher, room, claim).read_by(growth))
    }

    fn read_by(mut self, growth: Option<Arc<Growth>>) -> Self {
        if let Some(growth) = &growth {
            growth.opened(&self.file, self.core.files.path(&self.path), self.len());
        }
        self.growth = growth;
        self
    }

    fn new(
        core: Arc<Core>,
        digest: &Digest,
        path: String,
        file: fs::File,
        hasher: Hasher,
        room: Reservation,
        claim: Option<Arc<Claim>>,
    ) -> Self {
        let resumed = hasher.size() > 0;
        let room = Some(room);
        Self {
            core,
            digest: *digest,
            path,
            file: Arc::new(file),
            hasher,
            growth: None,
            room,
            claim,
            resumed,
            settled: false,
        }
    }

    /// Bytes staged so far.
    pub(super) const fn len(&self) -> u64 {
        self.hasher.size()
    }

    /// How much more room is needed to stage this many more bytes.
    pub(super) fn short_of(&self, bytes: u64) -> u64 {
        let has = self.room.as_ref().map_or(0, Reservation::bytes);
        room_of(self.len() + bytes).saturating_sub(has)
    }

    /// Adds to the room that the file may take.
    pub(super) fn give(&mut self, more: Reservation) {
        match &mut self.room {
            Some(room) => room.merge(more),
            None => self.room = Some(more),
        }
    }

    /// Writes and hashes the next pieces; on an error none of them counts. Blocks.
    pub(super) fn append(&mut self, pieces: &[Bytes]) -> Result<()> {
        write_at(&self.file, pieces, self.len())
            .map_err(|errno| self.core.files.error("writing", &self.path, errno))?;
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
            let failed = |error| Error::io("hashing", self.core.files.path(&self.path), error);
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

    /// What it holds.
    pub(super) fn blob(&self) -> BlobFile {
        BlobFile {
            file: Arc::clone(&self.file),
            path: self.core.files.path(&self.path),
            offset: 0,
            len: self.len(),
            guard: None,
        }
    }

    /// Verifies the whole content and puts it into its place. After an error, remove it. Blocks.
    pub(super) fn publish(&mut self) -> Result<Put> {
        self.verify()?;
        self.core
            .files
            .seal(&self.path, &self.file, self.claim.is_some())?;
        let published = self.core.publish(&self.digest, &self.path)?;
        self.settled = true;
        Ok(published)
    }

    /// Removes the file. Blocks.
    pub(super) fn remove(&mut self) -> Result<()> {
        self.settled = true;
        self.core.files.unlink(&self.path)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        // A write that failed may have left more than was counted.
        let kept = self.claim.is_some() && self.len() > 0;
        if kept && self.file.set_len(self.len()).is_ok() {
            self.core.room.add_idle(&self.path, self.len(), now_ms());
        } else if let Err(error) = self.core.files.unlink(&self.path) {
            tracing::warn!(%error, "could not remove an upload that broke off");
        }
    }
}
