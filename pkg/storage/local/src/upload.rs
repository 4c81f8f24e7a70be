//! A blob that arrives as a stream: staged on disk as it arrives, kept when it breaks off.

mod buffer;
mod complete;
mod file;

use std::{future, mem, sync::Arc};

use bytes::Bytes;
use futures::FutureExt;
use tokio::{runtime::Handle, task::JoinHandle};

pub(super) use self::buffer::SLOW;
pub use self::complete::CompleteUpload;
use self::{buffer::WriteBuffer, file::StagedFile};
use super::{
    disk::{Disk, cut_off},
    inflight::Claim,
    layout,
    retries::Retries,
    room::{BrokenLeases, Reservation},
    write::check_size,
};
use crate::index::room_of;
use gorego_storage::{Digest, Error, Growth, Result, Resume};

/// The room that an upload reserves at a time beyond what has arrived, in bytes.
pub(super) const RESERVE_STEP: u64 = 8 * 1024 * 1024;

enum UploadState {
    /// Nothing is staged; all bytes are in memory.
    Memory,
    /// Staged, and no thread is writing.
    Staged(Box<StagedFile>),
    /// A thread opens the staged file, unless it is open, and writes to it.
    Writing(JoinHandle<WriteResult>),
    /// Published, removed or lost.
    Over,
}

/// The outcome of a write: the staged file, if it could be opened, and the pieces not written.
type WriteResult = (Option<Box<StagedFile>>, Vec<Bytes>, Result<()>);

/// The target of an upload, shared with the thread that writes it.
struct Target {
    disk: Arc<Disk>,
    digest: Digest,
    /// The start of the stream in the blob, in bytes.
    offset: u64,
    /// The claim to the file of an upload that a client can resume.
    claim: Option<Claim>,
    /// Shows others the file while it grows.
    growth: Option<Arc<Growth>>,
}

impl Target {
    /// Fails if fewer bytes than those before the stream's offset are stored.
    fn check_offset(&self, committed: u64) -> Result<()> {
        if committed >= self.offset {
            return Ok(());
        }
        Err(Error::UploadOffset {
            digest: self.digest,
            offset: self.offset,
            committed,
        })
    }
}

/// One stream being staged on disk. Bytes are buffered until a write is worth a thread switch, and received while a
/// thread writes. When it is dropped, a resumable upload keeps its staged and buffered bytes.
pub(super) struct StagedUpload {
    target: Arc<Target>,
    /// Bytes received, those before the stream's offset included.
    received: u64,
    pub(super) buffer: WriteBuffer,
    state: UploadState,
    broken: Arc<BrokenLeases>,
    /// Set once no caller waits for it: from then on it waits for no eviction.
    ended: bool,
}

impl StagedUpload {
    pub(super) async fn begin(
        disk: &Arc<Disk>,
        digest: &Digest,
        resume: Option<Resume>,
        growth: Option<Arc<Growth>>,
    ) -> Self {
        let mut claim = None;
        if let Some(resume) = &resume {
            let path = layout::upload_path(digest, &resume.upload);
            claim = Some(disk.claims.claim(&path).await);
        }
        let offset = resume.map_or(0, |resume| resume.offset);
        Self {
            target: Arc::new(Target {
                disk: Arc::clone(disk),
                digest: *digest,
                offset,
                claim,
                growth,
            }),
            received: offset,
            buffer: WriteBuffer::default(),
            state: UploadState::Memory,
            broken: Arc::default(),
            ended: false,
        }
    }

    /// Completes when a newer attempt takes the upload over.
    pub(super) fn superseded(&self) -> impl Future<Output = ()> + use<> {
        let superseded = self.target.claim.as_ref().map(Claim::superseded);
        superseded.map_or_else(|| future::pending().right_future(), FutureExt::left_future)
    }

    pub(super) async fn push(&mut self, chunk: Bytes) -> Result<()> {
        self.received = self.received.saturating_add(chunk.len() as u64);
        let digest = &self.target.digest;
        if self.received > digest.size() {
            let actual = format_args!("more than {} bytes", digest.size());
            return Err(Error::mismatch(digest, actual));
        }
        self.buffer.push(chunk);
        self.write_due().await
    }

    /// Writes the buffered bytes, if that is worth it by now.
    pub(super) async fn write_due(&mut self) -> Result<()> {
        if self.buffer.are_due() {
            self.flush().await
        } else {
            Ok(())
        }
    }

    async fn flush(&mut self) -> Result<()> {
        self.finish_write().await?;
        self.write_buffered().await
    }

    /// Passes the buffered bytes to a thread that writes them, as no other one does.
    async fn write_buffered(&mut self) -> Result<()> {
        let room = self.reserve(self.buffer.len() as u64).await?;
        let pieces = self.buffer.take();
        self.write(room, pieces)
    }

    fn write(&mut self, room: Option<Reservation>, pieces: Vec<Bytes>) -> Result<()> {
        let staged = self.take_staged()?;
        let target = Arc::clone(&self.target);
        let work = move || {
            let opened = match staged {
                Some(staged) => Ok(staged),
                None => StagedFile::open(target).map(Box::new),
            };
            match opened {
                Ok(mut staged) => {
                    staged.give(room);
                    let written = staged.append(&pieces);
                    (Some(staged), pieces, written)
                }
                Err(error) => (None, pieces, Err(error)),
            }
        };
        self.state = UploadState::Writing(tokio::task::spawn_blocking(work));
        Ok(())
    }

    /// Returns the staged file, if there is one. Puts the upload's state to [`UploadState::Over`].
    fn take_staged(&mut self) -> Result<Option<Box<StagedFile>>> {
        match mem::replace(&mut self.state, UploadState::Over) {
            UploadState::Memory => Ok(None),
            UploadState::Staged(staged) => Ok(Some(staged)),
            UploadState::Writing(_) | UploadState::Over => Err(self.lost()),
        }
    }

    /// Waits until no write is in progress. Retries a write that failed for lack of space after
    /// eviction.
    async fn finish_write(&mut self) -> Result<()> {
        let mut retries = Retries::new(&self.target.disk, &self.broken);
        while let UploadState::Writing(writing) = &mut self.state {
            let written = writing.await;
            self.state = UploadState::Over;
            let (staged, pieces, result) = written.map_err(|error| cut_off(&error))?;
            self.state = staged.map_or(UploadState::Memory, UploadState::Staged);
            if let Err(error) = result {
                let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
                // The caller may go away while this waits, and what is kept must have no hole.
                self.buffer.put_back(pieces);
                let digest = &self.target.digest;
                retries.make_space(error, digest, bytes).await?;
                self.write_buffered().await?;
            }
        }
        Ok(())
    }

    /// Reserves the room that this many more bytes need, and some more.
    async fn reserve(&self, bytes: u64) -> Result<Option<Reservation>> {
        let Target {
            disk,
            digest,
            offset,
            ..
        } = &*self.target;
        let (missing, end) = if let UploadState::Staged(staged) = &self.state {
            (staged.short_of(bytes), staged.len() + bytes)
        } else {
            let committed = self.kept().await?;
            self.target.check_offset(committed)?;
            // The kept bytes' room becomes this upload's when their file is opened.
            let end = offset.saturating_add(bytes);
            (room_of(end).saturating_sub(room_of(committed)), end)
        };
        if missing == 0 {
            return Ok(None);
        }
        let bytes = missing + RESERVE_STEP.min(digest.size().saturating_sub(end));
        let reserved = if self.ended {
            disk.room.reserve_now(bytes, digest)?
        } else {
            disk.room.reserve(bytes, digest, &self.broken).await?
        };
        Ok(Some(reserved))
    }

    /// Ends a stream that arrived as a whole: a small one stays in memory, others are staged.
    pub(super) async fn complete(&mut self) -> Result<()> {
        check_size(&self.target.digest, self.received)?;
        let is_small = matches!(self.state, UploadState::Memory) && self.target.offset == 0;
        if is_small {
            self.buffer.close();
        } else if self.buffer.len() > 0 || matches!(self.state, UploadState::Memory) {
            self.flush().await?;
        }
        self.finish_write().await
    }

    /// Ends an upload after an error: keeps it if a client can resume it, else removes it.
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

    /// Stages the buffered bytes, and keeps all for a later attempt.
    async fn suspend(&mut self) -> Result<()> {
        self.ended = true;
        if self.target.claim.is_some() && self.buffer.len() > 0 {
            match self.flush().await {
                // Bytes that were staged before are kept all the same.
                Err(Error::Full { .. }) => {}
                other => other?,
            }
        }
        self.finish_write().await
    }

    /// Removes what was staged, by earlier attempts too.
    pub(super) async fn discard(&mut self) -> Result<()> {
        // After an error the file is removed all the same.
        let _ = self.finish_write().await;
        self.ended = true;
        match self.take_staged() {
            Ok(None) => self.remove_kept().await,
            Ok(Some(mut staged)) => self.target.disk.run(move |_| staged.remove()).await,
            Err(_) => Ok(()),
        }
    }

    /// Returns the number of bytes that an earlier attempt left. They do not change while this upload
    /// has the claim.
    async fn kept(&self) -> Result<u64> {
        let Some(path) = self.target.claim.as_ref().map(Claim::path) else {
            return Ok(0);
        };
        let path = path.to_owned();
        let size = self.target.disk.run(move |disk| disk.files.size(&path));
        Ok(size.await?.unwrap_or_default())
    }

    /// Removes the file of an earlier attempt, if this one did not need it.
    async fn remove_kept(&self) -> Result<()> {
        // Shared, since the claim must not end before the removal.
        let target = Arc::clone(&self.target);
        if target.claim.is_none() {
            return Ok(());
        }
        let remove = move |disk: &Arc<Disk>| {
            let path = target.claim.as_ref().map(Claim::path);
            path.map_or(Ok(None), |path| disk.remove_claimed(path))
        };
        self.target.disk.run(remove).await.map(drop)
    }

    fn lost(&self) -> Error {
        let digest = self.target.digest;
        Error::Unavailable(format!("upload of {digest} lost its file"))
    }
}

impl Drop for StagedUpload {
    fn drop(&mut self) {
        let takes_time = match self.state {
            UploadState::Memory | UploadState::Staged(_) => {
                self.target.claim.is_some() && self.buffer.len() > 0
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
            target: Arc::clone(&self.target),
            received: self.received,
            buffer: mem::take(&mut self.buffer),
            state: mem::replace(&mut self.state, UploadState::Over),
            broken: Arc::clone(&self.broken),
            ended: true,
        };
        let suspend = async move {
            if let Err(error) = rest.suspend().await {
                tracing::debug!(%error, "failed to keep an interrupted upload");
            }
        };
        self.target.disk.tracker.spawn_on(suspend, &runtime);
    }
}
