//! A file that is read while an upload writes it.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
};

use bytes::Bytes;

use crate::{BlobFile, Error, Result, read_at};

/// The growing file of an upload. Small uploads have none until they are published.
#[derive(Debug, Default)]
pub struct Growth {
    file: OnceLock<(Arc<fs::File>, PathBuf)>,
    len: AtomicU64,
}

impl Growth {
    /// Wraps a complete file.
    pub fn ended(file: &BlobFile) -> Self {
        let growth = Self::default();
        let whole = file.offset + file.len;
        growth.opened(&file.file, file.path.clone(), whole);
        growth
    }

    /// Returns the number of bytes that can be read, from the blob's first on.
    pub fn len(&self) -> u64 {
        self.len.load(Acquire)
    }

    /// Whether nothing can be read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads up to `len` bytes at `offset`, all before [`Self::len`]. Blocks.
    pub fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        let Some((file, path)) = self.file.get() else {
            return Err(Error::Unavailable("the upload has no file yet".to_owned()));
        };
        let there = usize::try_from(self.len().saturating_sub(offset)).unwrap_or(usize::MAX);
        read_at(file, offset, len.min(there))
            .map_err(|error| Error::io("reading", path.clone(), error))
    }

    /// Sets the file, readable up to `len`.
    pub fn opened(&self, file: &Arc<fs::File>, path: PathBuf, len: u64) {
        let _ = self.file.set((Arc::clone(file), path));
        self.grown(len);
    }

    /// Lets readers read up to `len`.
    pub fn grown(&self, len: u64) {
        self.len.store(len, Release);
    }
}
