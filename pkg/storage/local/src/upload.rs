//! Blobs that arrive as a stream: staged on disk as they come, kept when they break off.

mod checked;

use std::{mem, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinHandle;

use super::{
    LocalStore,
    blobs::{check_size, disk_full},
    claims::Claim,
    collected::Collected,
    core::{Core, blocking, cut_off},
    full::Attempts,
    growth::Growth,
    layout,
    room::{BrokenLeases, Reservation},
    staged::Staged,
};
use crate::index::room_of;
use gorego_storage::{Blob, Digest, Error, Put, Result, Resume, UploadId, Uploads};

/// How much room an upload takes at a time beyond what has arrived.
pub(super) const RESERVE_STEP: u64 = 8 * 1024 * 1024;

#[async_trait]
impl Uploads for LocalStore {
    async fn committed(&self, digest: &Digest, upload: &UploadId) -> Result<u64> {
        let (core, path) = (Arc::clone(&self.core), layout::upload_path(digest, upload));
        let meta = blocking(move || core.files.stat(&path)).await?;
        Ok(meta.map_or(0, |meta| meta.size.min(digest.size())))
    }
}

/// Where an upload's bytes are.
enum Phase {
    /// All in memory: nothing was staged yet.
    Unopened,
    /// The staged file is being opened, and what it holds hashed.
    Opening(JoinHandle<Result<Staged>>),
    /// Staged, and nobody is writing.
    Ready(Box<Staged>),
    /// Another thread is writing; it gives back the pieces that it could not write.
    Busy(JoinHandle<Written>),
    /// Gone: an earlier step failed and removed it.
    Lost,
}

type Written = (Box<Staged>, Vec<Bytes>, Result<()>);

/// One stream on its way to the disk. Bytes are collected until writing them is worth a trip to
/// another thread, and received while that thread writes.
pub(super) struct Upload {
    pub(super) core: Arc<Core>,
    digest: Digest,
    resume: Option<Resume>,
    pub(super) claim: Option<Arc<Claim>>,
    /// Who else reads the file while it grows.
    growth: Option<Arc<Growth>>,
    /// Bytes received, those before the stream's offset included.
    received: u64,
    collected: Box<Collected>,
    phase: Phase,
    /// The leases that it cost.
    broken: Arc<BrokenLeases>,
    /// Nothing more comes of it, and others may be waiting for its end.
    ended: bool,
}

impl Upload {
    pub(super) async fn begin(
        core: &Arc<Core>,
        digest: &Digest,
        resume: Option<Resume>,
        growth: Option<Arc<Growth>>,
    ) -> Self {
        let claim = match &resume {
            Some(resume) => {
                let path = layout::upload_path(digest, &resume.upload);
                Some(Arc::new(core.claims.claim(&path).await))
            }
            None => None,
        };
        Self {
            core: Arc::clone(core),
            digest: *digest,
            received: resume.as_ref().map_or(0, |resume| resume.offset),
            resume,
            claim,
            growth,
            collected: Box::default(),
            phase: Phase::Unopened,
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
        self.collected.push(chunk);
        self.write_due().await
    }

    /// Whether so much is in memory that it is written even if no more comes.
    pub(super) fn has_much(&self) -> bool {
        self.collected.are_many()
    }

    /// Writes what was collected, if that is worth it by now.
    pub(super) async fn write_due(&mut self) -> Result<()> {
        if self.collected.are_due() {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Hands what was collected to a thread that writes it.
    async fn flush(&mut self) -> Result<()> {
        let bytes = self.collected.len() as u64;
        self.reserve(bytes).await?;
        let Phase::Ready(mut staged) = mem::replace(&mut self.phase, Phase::Lost) else {
            return Err(self.lost());
        };
        let pieces = self.collected.take();
        self.phase = Phase::Busy(tokio::task::spawn_blocking(move || {
            let result = staged.append(&pieces);
            let pieces = if result.is_err() { pieces } else { Vec::new() };
            (staged, pieces, result)
        }));
        Ok(())
    }

    /// Opens the staged file, or waits until it is at hand, and takes room for more of it.
    async fn reserve(&mut self, bytes: u64) -> Result<()> {
        let mut attempts = Attempts::new(&self.core, &self.broken);
        loop {
            if matches!(self.phase, Phase::Unopened) {
                self.open(bytes).await?;
            }
            match self.ready().await {
                Err(error) if error.is_no_space() => {
                    if !attempts.again(1).await {
                        return Err(disk_full(&self.digest, &error));
                    }
                }
                ready => break ready?,
            }
        }
        let Phase::Ready(staged) = &mut self.phase else {
            return Err(self.lost());
        };
        let short = staged.short_of(bytes);
        if short > 0 {
            let rest = self.digest.size().saturating_sub(staged.len() + bytes);
            let step = short + RESERVE_STEP.min(rest);
            let more = self.room(step).await?;
            if let Phase::Ready(staged) = &mut self.phase {
                staged.give(more);
            }
        }
        Ok(())
    }

    /// Begins to open the staged file, with room for its first bytes.
    async fn open(&mut self, bytes: u64) -> Result<()> {
        let offset = self.resume.as_ref().map_or(0, |resume| resume.offset);
        let kept = self.kept().await?;
        if kept < offset {
            let digest = self.digest;
            return Err(Error::UploadOffset {
                digest,
                offset,
                committed: kept,
            });
        }
        let rest = self.digest.size().saturating_sub(offset);
        let first = offset.saturating_add(bytes.max(RESERVE_STEP.min(rest)));
        // The room of what is kept becomes this upload's when it is opened.
        let more = room_of(first).saturating_sub(room_of(kept));
        let room = self.room(more).await?;
        let (core, digest) = (Arc::clone(&self.core), self.digest);
        let (resume, claim) = (self.resume.clone(), self.claim.clone());
        let growth = self.growth.clone();
        // Whoever gives this upload up meanwhile has to wait for its file all the same.
        self.phase = Phase::Opening(tokio::task::spawn_blocking(move || {
            Staged::open(core, &digest, resume, claim, growth, room)
        }));
        Ok(())
    }

    /// Takes room; for an upload that has ended only what is free.
    async fn room(&self, bytes: u64) -> Result<Reservation> {
        let (room, what) = (&self.core.room, self.digest.to_string());
        if self.ended {
            room.reserve_now(bytes, &what)
        } else {
            room.reserve(bytes, &what, &self.broken).await
        }
    }

    /// Waits until no write is in progress. A write that failed for lack of space is tried again
    /// after eviction.
    async fn ready(&mut self) -> Result<()> {
        if let Phase::Opening(opening) = &mut self.phase {
            let opened = opening.await;
            self.phase = Phase::Unopened;
            let staged = opened.unwrap_or_else(|error| Err(cut_off(&error)))?;
            self.phase = Phase::Ready(Box::new(staged));
        }
        let mut attempts = Attempts::new(&self.core, &self.broken);
        while let Phase::Busy(writing) = &mut self.phase {
            let (staged, pieces, result) = match writing.await {
                Ok(written) => written,
                Err(error) => {
                    self.phase = Phase::Lost;
                    return Err(cut_off(&error));
                }
            };
            self.phase = Phase::Ready(staged);
            match result {
                Ok(()) => {}
                Err(error) if error.is_no_space() => {
                    let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
                    if !attempts.again(bytes).await {
                        return Err(disk_full(&self.digest, &error));
                    }
                    self.write_again(pieces);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_again(&mut self, pieces: Vec<Bytes>) {
        if let Phase::Ready(mut staged) = mem::replace(&mut self.phase, Phase::Lost) {
            self.phase = Phase::Busy(tokio::task::spawn_blocking(move || {
                let result = staged.append(&pieces);
                (staged, pieces, result)
            }));
        }
    }

    /// All bytes came: has them in memory if they are few, and otherwise all in the staged file.
    pub(super) async fn complete(mut self) -> Result<Self> {
        if let Err(error) = check_size(&self.digest, self.received) {
            self.discard().await?;
            return Err(error);
        }
        if self.is_small() {
            self.collected.close();
            return Ok(self);
        }
        let staged = async {
            self.reserve(self.collected.len() as u64).await?;
            if self.collected.len() > 0 {
                self.flush_and_wait().await?;
            }
            Ok::<_, Error>(())
        };
        match staged.await {
            Ok(()) => Ok(self),
            Err(error) => Err(self.end(error.clone()).await.err().unwrap_or(error)),
        }
    }

    fn is_small(&self) -> bool {
        let offset = self.resume.as_ref().map_or(0, |resume| resume.offset);
        matches!(self.phase, Phase::Unopened) && offset == 0
    }

    /// The content of a complete upload.
    pub(super) fn blob(&self) -> Result<Blob> {
        match &self.phase {
            Phase::Ready(staged) => Ok(Blob::File(staged.blob())),
            _ if self.is_small() => Ok(Blob::Bytes(self.collected.pieces().concat().into())),
            _ => Err(self.lost()),
        }
    }

    /// Verifies a complete upload and puts it into its place.
    pub(super) async fn publish(mut self) -> Result<Put> {
        if self.is_small() {
            let pieces = self.collected.take();
            let mut put = self.core.put_pieces(&self.digest, pieces.clone()).await;
            if let (Err(Error::Mismatch { .. }), Some(_)) = (&put, self.digest.other())
                && let Ok(digest) = self.digest_of(&pieces)
            {
                put = self.core.put_pieces(&digest, pieces).await;
            }
            self.drop_kept().await?;
            return put;
        }
        let Phase::Ready(staged) = mem::replace(&mut self.phase, Phase::Lost) else {
            return Err(self.lost());
        };
        self.publish_staged(staged).await
    }

    /// Verifies a staged file and puts it into its place, again after eviction when the disk has no
    /// room for the name.
    async fn publish_staged(&self, mut staged: Box<Staged>) -> Result<Put> {
        let mut attempts = Attempts::new(&self.core, &self.broken);
        loop {
            let attempt = move || {
                let published = staged.publish();
                Ok((staged, published))
            };
            let published;
            (staged, published) = blocking(attempt).await?;
            let Err(error) = published else {
                return published;
            };
            let full = error.is_no_space();
            if full && attempts.again(1).await {
                continue;
            }
            // A closed store keeps what came for its successor.
            if !matches!(error, Error::Unavailable(_)) {
                blocking(move || staged.remove()).await?;
            }
            return Err(if full {
                disk_full(&self.digest, &error)
            } else {
                error
            });
        }
    }

    async fn flush_and_wait(&mut self) -> Result<()> {
        self.flush().await?;
        self.ready().await
    }

    /// After an error: keeps what a client can go on from, drops what it cannot.
    pub(super) async fn end(self, error: Error) -> Result<()> {
        match error {
            // What an earlier attempt left takes no room that it did not have.
            Error::Full { .. } if matches!(self.phase, Phase::Unopened) => Ok(()),
            Error::Mismatch { .. } | Error::Full { .. } | Error::Io { .. } => self.discard().await,
            _ => self.suspend().await,
        }
    }

    /// Stages what was collected, and keeps it for a later attempt.
    pub(super) async fn suspend(mut self) -> Result<()> {
        self.ended = true;
        if self.resume.is_some() && self.collected.len() > 0 {
            match self.flush_and_wait().await {
                // What was staged before is kept all the same.
                Err(Error::Full { .. }) => {}
                other => other?,
            }
        }
        self.ready().await
    }

    pub(super) async fn discard(mut self) -> Result<()> {
        let ready = self.ready().await;
        if matches!(self.phase, Phase::Unopened) {
            return self.drop_kept().await;
        }
        if let Phase::Ready(staged) = mem::replace(&mut self.phase, Phase::Lost) {
            let mut staged = staged;
            blocking(move || staged.remove()).await?;
        }
        ready.or(Ok(()))
    }

    /// How much an earlier attempt left, in bytes. Nobody changes it while this upload has the
    /// claim.
    async fn kept(&self) -> Result<u64> {
        let Some(resume) = &self.resume else {
            return Ok(0);
        };
        let path = layout::upload_path(&self.digest, &resume.upload);
        let core = Arc::clone(&self.core);
        let meta = blocking(move || core.files.stat(&path)).await?;
        Ok(meta.map_or(0, |meta| meta.size))
    }

    /// Removes what an earlier attempt left, when this one did without it.
    async fn drop_kept(&self) -> Result<()> {
        let Some(resume) = &self.resume else {
            return Ok(());
        };
        let path = layout::upload_path(&self.digest, &resume.upload);
        let core = Arc::clone(&self.core);
        blocking(move || match core.take_idle(&path)? {
            Some((aside, _)) => core.files.unlink(&aside),
            None => Ok(()),
        })
        .await
    }

    fn lost(&self) -> Error {
        Error::Unavailable(format!("upload of {} lost its file", self.digest))
    }
}
