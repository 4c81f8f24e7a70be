//! A blob that arrives as a stream: staged on disk as it comes, kept when it breaks off.

mod buffer;
mod complete;
mod file;

use std::{mem, sync::Arc};

use bytes::Bytes;
use tokio::{runtime::Handle, task::JoinHandle};

pub(super) use self::buffer::SLOW;
pub use self::complete::Complete;
use self::{buffer::WriteBuffer, file::StagedFile};
use super::{
    blobs::check_size,
    disk::{Disk, cut_off},
    growth::Growth,
    inflight::Claim,
    layout,
    retries::Retries,
    room::{BrokenLeases, Reservation},
};
use crate::index::room_of;
use gorego_storage::{Digest, Error, Result, Resume};

/// The room that an upload reserves at a time beyond what has arrived, in bytes.
pub(super) const RESERVE_STEP: u64 = 8 * 1024 * 1024;

/// The staged part of an upload.
enum UploadState {
    /// Nothing is staged; all bytes are in memory.
    Memory,
    /// Staged, and no thread is writing.
    Staged(Box<StagedFile>),
    /// A thread opens the staged file, unless it is open, and writes to it.
    Writing(JoinHandle<Written>),
    /// Published, removed or lost.
    Over,
}

/// The outcome of a write: the staged file, if it could be opened, and the pieces not written.
type Written = (Option<Box<StagedFile>>, Vec<Bytes>, Result<()>);

/// One stream on its way to the disk. Bytes are collected until writing them is worth a trip to
/// another thread, and received while that thread writes. Dropped, an upload that a client can resume
/// is kept, collected bytes included.
pub(super) struct Upload {
    disk: Arc<Disk>,
    digest: Digest,
    /// The start of the stream in the blob, in bytes.
    offset: u64,
    /// The claim to the file of an upload that a client can resume.
    pub(super) claim: Option<Arc<Claim>>,
    /// Shows others the file while it grows.
    growth: Option<Arc<Growth>>,
    /// Bytes received, those before the stream's offset included.
    received: u64,
    pub(super) buffer: WriteBuffer,
    state: UploadState,
    /// The leases evicted for it.
    broken: Arc<BrokenLeases>,
    /// Whether no caller waits for it any more: it waits for no eviction then.
    ended: bool,
}

impl Upload {
    pub(super) async fn begin(
        disk: &Arc<Disk>,
        digest: &Digest,
        resume: Option<Resume>,
        growth: Option<Arc<Growth>>,
    ) -> Self {
        let mut claim = None;
        if let Some(resume) = &resume {
            let path = layout::upload_path(digest, &resume.upload);
            claim = Some(Arc::new(disk.claims.claim(&path).await));
        }
        let offset = resume.map_or(0, |resume| resume.offset);
        Self {
            disk: Arc::clone(disk),
            digest: *digest,
            offset,
            claim,
            growth,
            received: offset,
            buffer: WriteBuffer::default(),
            state: UploadState::Memory,
            broken: Arc::default(),
            ended: false,
        }
    }

    pub(super) async fn push(&mut self, chunk: Bytes) -> Result<()> {
        self.received = self.received.saturating_add(chunk.len() as u64);
        if self.received > self.digest.size() {
            let actual = format!("more than {} bytes", self.digest.size());
            return Err(Error::Mismatch {
                expected: self.digest,
                actual,
            });
        }
        self.buffer.push(chunk);
        self.write_due().await
    }

    /// Writes the collected bytes, if that is worth it by now.
    pub(super) async fn write_due(&mut self) -> Result<()> {
        if self.buffer.are_due() {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Hands the collected bytes to a thread that writes them.
    async fn flush(&mut self) -> Result<()> {
        self.settle().await?;
        let room = self.reserve(self.buffer.len() as u64).await?;
        let pieces = self.buffer.take();
        self.write(room, pieces)
    }

    fn write(&mut self, room: Option<Reservation>, pieces: Vec<Bytes>) -> Result<()> {
        let mut staged = match mem::replace(&mut self.state, UploadState::Over) {
            UploadState::Memory => None,
            UploadState::Staged(staged) => Some(staged),
            _ => return Err(self.lost()),
        };
        let (disk, digest, offset) = (Arc::clone(&self.disk), self.digest, self.offset);
        let (claim, growth) = (self.claim.clone(), self.growth.clone());
        let work = move || {
            let open = || StagedFile::open(disk, digest, offset, claim, growth).map(Box::new);
            let file = match &mut staged {
                Some(staged) => staged,
                None => match open() {
                    Ok(new) => staged.insert(new),
                    Err(error) => return (None, pieces, Err(error)),
                },
            };
            file.give(room);
            let written = file.append(&pieces);
            (staged, pieces, written)
        };
        self.state = UploadState::Writing(tokio::task::spawn_blocking(work));
        Ok(())
    }

    /// Waits until no write is in progress. A write that failed for lack of space is tried again
    /// after eviction.
    async fn settle(&mut self) -> Result<()> {
        let mut retries = Retries::new(&self.disk, &self.broken);
        while let UploadState::Writing(writing) = &mut self.state {
            let written = writing.await;
            self.state = UploadState::Over;
            let (staged, pieces, result) = written.map_err(|error| cut_off(&error))?;
            self.state = staged.map_or(UploadState::Memory, UploadState::Staged);
            if let Err(error) = result {
                let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
                retries.make_space(error, &self.digest, bytes).await?;
                let room = self.reserve(bytes).await?;
                self.write(room, pieces)?;
            }
        }
        Ok(())
    }

    /// Reserves the room that this many more bytes need, and some more.
    async fn reserve(&self, bytes: u64) -> Result<Option<Reservation>> {
        let (missing, end) = if let UploadState::Staged(staged) = &self.state {
            (staged.short_of(bytes), staged.len() + bytes)
        } else {
            let (digest, offset, committed) = (self.digest, self.offset, self.kept().await?);
            if committed < offset {
                return Err(Error::UploadOffset {
                    digest,
                    offset,
                    committed,
                });
            }
            // The room of what is kept becomes this upload's when it is opened.
            let end = offset.saturating_add(bytes);
            (room_of(end).saturating_sub(room_of(committed)), end)
        };
        if missing == 0 {
            return Ok(None);
        }
        let bytes = missing + RESERVE_STEP.min(self.digest.size().saturating_sub(end));
        let (room, what) = (&self.disk.room, self.digest.to_string());
        let reserved = if self.ended {
            room.reserve_now(bytes, &what)?
        } else {
            room.reserve(bytes, &what, &self.broken).await?
        };
        Ok(Some(reserved))
    }

    /// Ends a stream that came to its end: few bytes stay in memory, others are all staged.
    pub(super) async fn complete(&mut self) -> Result<()> {
        check_size(&self.digest, self.received)?;
        let is_small = matches!(self.state, UploadState::Memory) && self.offset == 0;
        if is_small {
            self.buffer.close();
        } else if self.buffer.len() > 0 || matches!(self.state, UploadState::Memory) {
            self.flush().await?;
        }
        self.settle().await
    }

    /// Ends an upload after an error: keeps it if a client can go on from there, else removes it.
    pub(super) async fn end(&mut self, error: &Error) -> Result<()> {
        match error {
            // The staged bytes of an earlier attempt stay; their room was reserved before.
            Error::Full { .. } if matches!(self.state, UploadState::Memory) => {
                self.ended = true;
                Ok(())
            }
            Error::Mismatch { .. } | Error::Full { .. } | Error::Io { .. } => self.discard().await,
            _ => self.suspend().await,
        }
    }

    /// Stages the collected bytes, and keeps all for a later attempt.
    async fn suspend(&mut self) -> Result<()> {
        self.ended = true;
        if self.claim.is_some() && self.buffer.len() > 0 {
            match self.flush().await {
                // Bytes that were staged before are kept all the same.
                Err(Error::Full { .. }) => {}
                other => other?,
            }
        }
        self.settle().await
    }

    /// Removes what was staged, by earlier attempts too.
    pub(super) async fn discard(&mut self) -> Result<()> {
        // After an error the file is removed all the same.
        let _ = self.settle().await;
        self.ended = true;
        match mem::replace(&mut self.state, UploadState::Over) {
            UploadState::Memory => self.remove_kept().await,
            UploadState::Staged(mut staged) => self.disk.run(move |_| staged.remove()).await,
            _ => Ok(()),
        }
    }

    /// Returns how many bytes an earlier attempt left. They do not change while this upload has the
    /// claim.
    async fn kept(&self) -> Result<u64> {
        let Some(claim) = self.claim.clone() else {
            return Ok(0);
        };
        let size = move |disk: &Arc<Disk>| disk.files.size(claim.path());
        Ok(self.disk.run(size).await?.unwrap_or_default())
    }

    /// Removes what an earlier attempt left, when this one did without it.
    async fn remove_kept(&self) -> Result<()> {
        if let Some(claim) = self.claim.clone() {
            let remove = move |disk: &Arc<Disk>| disk.remove_claimed(claim.path());
            self.disk.run(remove).await?;
        }
        Ok(())
    }

    fn lost(&self) -> Error {
        Error::Unavailable(format!("upload of {} lost its file", self.digest))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let takes_time = match self.state {
            UploadState::Memory | UploadState::Staged(_) => {
                self.claim.is_some() && self.buffer.len() > 0
            }
            UploadState::Writing(_) => true,
            UploadState::Over => false,
        };
        if self.ended || !takes_time {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let mut rest = Self {
            disk: Arc::clone(&self.disk),
            digest: self.digest,
            offset: self.offset,
            claim: self.claim.take(),
            growth: self.growth.take(),
            received: self.received,
            buffer: mem::take(&mut self.buffer),
            state: mem::replace(&mut self.state, UploadState::Over),
            broken: Arc::clone(&self.broken),
            ended: true,
        };
        let tracker = self.disk.tracker.clone();
        tracker.spawn_on(
            async move {
                if let Err(error) = rest.suspend().await {
                    tracing::debug!(%error, "could not keep an upload that broke off");
                }
            },
            &runtime,
        );
    }
}
