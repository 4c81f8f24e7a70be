//! A folder for the pending writes of a proxy: hard links to blobs, and small files.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    LocalStore,
    core::{Core, blocking},
    files::write_at,
    layout::{self, OUTBOX},
};
use gorego_storage::{Blob, BlobFile, Digest, Error, Result};

impl LocalStore {
    /// Returns the folder of the outbox below a data directory.
    pub fn outbox_of(data: &Path) -> PathBuf {
        data.join(OUTBOX)
    }

    /// Returns the names of all files in the outbox, sorted.
    pub async fn outbox_names(&self) -> Result<Vec<String>> {
        let core = Arc::clone(&self.core);
        blocking(move || {
            let mut names = core.files.list(OUTBOX)?;
            names.sort_unstable();
            Ok(names)
        })
        .await
    }

    /// Links a blob's file into the outbox, as durably as blobs are written. Where the file system makes
    /// no link, an empty file takes its place.
    pub async fn outbox_link(&self, name: String, digest: Digest) -> Result<()> {
        let core = Arc::clone(&self.core);
        blocking(move || {
            let linked = core.files.link_tmp(&layout::blob_path(&digest))?;
            let tmp = linked.map_or_else(|| core.write_tmp(Bytes::new()), Ok)?;
            core.install_entry(&tmp, &name)
        })
        .await
    }

    /// Writes a file into the outbox, as durably as blobs are written. It appears as a whole.
    pub async fn outbox_write(&self, name: String, content: Vec<u8>) -> Result<()> {
        let core = Arc::clone(&self.core);
        blocking(move || {
            let tmp = core.write_tmp(content.into())?;
            core.install_entry(&tmp, &name)
        })
        .await
    }

    /// Opens a file of the outbox; `None` if it is gone.
    pub async fn outbox_open(&self, name: &str) -> Result<Option<Blob>> {
        let (core, path) = (Arc::clone(&self.core), format!("{OUTBOX}/{name}"));
        blocking(move || {
            let Some(file) = core.files.open_read(&path)? else {
                return Ok(None);
            };
            let path = core.files.path(&path);
            let metadata = file.metadata();
            let len = metadata.map_err(|error| Error::io("looking up", &path, error))?;
            Ok(Some(Blob::File(BlobFile {
                file: Arc::new(file),
                path,
                offset: 0,
                len: len.len(),
                guard: None,
            })))
        })
        .await
    }

    /// Removes files from the outbox; those that are gone are fine.
    pub async fn outbox_remove(&self, names: Vec<String>) -> Result<()> {
        let core = Arc::clone(&self.core);
        blocking(move || {
            let unlinked = names
                .iter()
                .map(|name| core.files.unlink(&format!("{OUTBOX}/{name}")));
            // All are tried, whichever fails.
            unlinked.fold(Ok(()), Result::and)
        })
        .await
    }
}

impl Core {
    fn write_tmp(&self, content: Bytes) -> Result<String> {
        let (tmp, file) = self.files.create_tmp()?;
        let written = write_at(&file, &[content], 0)
            .map_err(|errno| self.files.error("writing", &tmp, errno))
            .and_then(|()| self.files.seal(&tmp, &file, false));
        if written.is_err() {
            self.files.unlink(&tmp)?;
        }
        written.map(|()| tmp)
    }

    /// Moves a finished file into the outbox. Blocks.
    fn install_entry(&self, tmp: &str, name: &str) -> Result<()> {
        let installed = self.install(tmp, &format!("{OUTBOX}/{name}"));
        if installed.is_err() {
            self.files.unlink(tmp)?;
        }
        installed
    }
}
