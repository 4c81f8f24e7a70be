//! Reading a blob: in one trip to another thread, or opened to be read in pieces.

use std::sync::Arc;

use bytes::Bytes;
use gorego_limits::{Permit, UNCOUNTED};

use crate::{
    core::{Core, Pin, now_ms},
    layout,
};
use gorego_storage::{BlobFile, CHUNK_SIZE, Digest, Error, Result, SHARE, read_at};

impl Core {
    /// Memory to read so many bytes as a whole, which takes one trip to another thread instead of
    /// two. `None` where they have to be read in pieces.
    pub(super) fn share_whole(&self, bytes: u64) -> Option<Permit> {
        if bytes <= UNCOUNTED {
            return Some(Permit::default());
        }
        let pieces = self
            .pieces
            .as_ref()
            .filter(|_| bytes <= CHUNK_SIZE as u64)?;
        Some(pieces.share(bytes, SHARE)).filter(|share| share.bytes() == bytes)
    }

    /// Opens, reads and closes. A file that is gone or has another size is forgotten. Blocks.
    pub(super) fn read_small(&self, digest: &Digest, offset: u64) -> Result<Bytes> {
        let path = layout::blob_path(digest);
        let file = self.open_blob(digest, &path)?;
        let len = usize::try_from(digest.size() - offset).unwrap_or(usize::MAX);
        // One byte more than there should be, to notice a file that is too long.
        let read = read_at(&file, offset, len.saturating_add(1))
            .map_err(|error| Error::io("reading", self.files.path(&path), error));
        let mut content = match read {
            Err(error) if error.is_unreadable() => return self.unreadable(digest),
            other => other?,
        };
        if content.len() != len {
            return self.not_found(digest);
        }
        content.truncate(len);
        if self.force_update_atime {
            self.files.set_atime(&path, now_ms())?;
        }
        Ok(content)
    }

    /// Opens a blob for reading in pieces. Blocks.
    pub(super) fn open_large(&self, digest: &Digest, offset: u64, pin: Pin) -> Result<BlobFile> {
        let path = layout::blob_path(digest);
        let file = self.open_blob(digest, &path)?;
        let len = file
            .metadata()
            .map_err(|e| Error::io("probing", self.files.path(&path), e))?
            .len();
        if len != digest.size() {
            return self.not_found(digest);
        }
        if self.force_update_atime {
            self.files.set_atime(&path, now_ms())?;
        }
        Ok(BlobFile {
            file: Arc::new(file),
            path: self.files.path(&path),
            offset,
            len: len - offset,
            guard: Some(Box::new(pin)),
        })
    }
}
