//! Writes of content that is in memory.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use super::{
    disk::{Disk, Lookup, now_ms},
    retries::Retries,
};
use crate::index::{Lease, SIZE_END, Use};
use gorego_storage::{Digest, Error, Put, Result, verify};

/// The use by an upload of a blob that is already stored.
pub(super) const UPLOAD: Use = Use::new(Lease::Upload, false);

impl Disk {
    /// Stores content that is in memory.
    pub(super) async fn put_pieces(
        self: &Arc<Self>,
        digest: &Digest,
        pieces: Vec<Bytes>,
    ) -> Result<Put> {
        check_size(digest, pieces.iter().map(|piece| piece.len() as u64).sum())?;
        if self.has(digest, UPLOAD).await? {
            return Ok(Put::Existed);
        }
        let (digest, size) = (*digest, digest.size());
        let write = move |disk: &Self| disk.write_blob(&digest, &pieces);
        self.write(size, digest, write).await
    }

    /// Stores one blob of a batch. Blocks.
    pub(super) fn put_one(&self, digest: &Digest, content: &[Bytes]) -> Result<Put> {
        check_size(digest, content.iter().map(|piece| piece.len() as u64).sum())?;
        let is_stored = || {
            let found = self.touch(digest, now_ms(), UPLOAD);
            matches!(found, Lookup::Hit(found) if !found.unverified)
        };
        if digest.is_empty_blob() || is_stored() {
            return Ok(Put::Existed);
        }
        self.write_blob(digest, content)
    }

    /// Verifies and writes content in one go. Blocks.
    fn write_blob(&self, digest: &Digest, pieces: &[Bytes]) -> Result<Put> {
        verify(digest, pieces)?;
        self.files
            .write_new(pieces, |tmp| self.publish_blob(digest, tmp))
    }

    /// Reserves room for a file of `size` bytes and writes it on a thread that may block; again,
    /// after eviction, if the disk is full. `what` names it in errors.
    pub(super) async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        size: u64,
        what: impl fmt::Display,
        write: impl Fn(&Self) -> Result<T> + Clone + Send + 'static,
    ) -> Result<T> {
        let broken = Arc::default();
        let mut retries = Retries::new(self, &broken);
        loop {
            let mut room = self.room.reserve(size, &what, &broken).await?;
            let write = write.clone();
            let written = self.run_sized(size, move |disk| {
                // Released before a wait for eviction, since it counts as a file.
                room.write(u64::MAX, || write(disk))
            });
            match written.await {
                Err(error) => retries.make_space(error, &what, size).await?,
                written => return written,
            }
        }
    }
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
    Err(Error::mismatch(digest, format_args!("{size} bytes")))
}
