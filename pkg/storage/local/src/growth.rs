//! Lets others read what arrives while it is written.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Release},
    },
};

use bytes::Bytes;

use gorego_storage::{BlobFile, Error, Result, read_at};

/// How far the file of an upload has grown. Small uploads have none until they are published.
#[derive(Debug, Default)]
pub struct Growth {
    file: OnceLock<(Arc<fs::File>, PathBuf)>,
    len: AtomicU64,
}

impl Growth {
    /// A file that will grow no more, and is read from its first byte on.
    pub fn ended(file: &BlobFile) -> Self {
        let growth = Self::default();
        let whole = file.offset + file.len;
        growth.opened(&file.file, file.path.clone(), whole);
        growth
    }

    /// How many bytes can be read, from the blob's first on.
    pub fn len(&self) -> u64 {
        self.len.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Whether nothing can be read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Up to `len` bytes at `offset`, all before [`Self::len`]. Blocks.
    pub fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        let Some((file, path)) = self.file.get() else {
            return Err(Error::Unavailable("nothing is written yet".to_owned()));
        };
        let there = usize::try_from(self.len().saturating_sub(offset)).unwrap_or(usize::MAX);
        read_at(file, offset, len.min(there))
            .map_err(|error| Error::io("reading", path.clone(), error))
    }

    /// The file is there.
    pub(super) fn opened(&self, file: &Arc<fs::File>, path: PathBuf, len: u64) {
        let _ = self.file.set((Arc::clone(file), path));
        self.grown(len);
    }

    /// It has this many bytes.
    pub(super) fn grown(&self, len: u64) {
        self.len.store(len, Release);
    }
}
