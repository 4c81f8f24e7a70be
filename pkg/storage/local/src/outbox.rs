//! A folder for the pending writes of a proxy: hard links to blobs, and small files.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    LocalStore,
    disk::Disk,
    layout::{self, OUTBOX},
};
use gorego_storage::{Blob, BlobFile, Digest, Result};

impl LocalStore {
    /// Returns the folder of the outbox below a data directory.
    pub fn outbox_of(data: &Path) -> PathBuf {
        data.join(OUTBOX)
    }

    /// Returns the names of all files in the outbox, sorted.
    pub async fn outbox_names(&self) -> Result<Vec<String>> {
        let list = |disk: &Arc<Disk>| disk.files.list(OUTBOX);
        let mut names = self.disk.run(list).await?;
        names.sort_unstable();
        Ok(names)
    }

    /// Links a blob's file into the outbox, as durably as blobs are written; writes an empty file if the file
    /// system does not support links.
    pub async fn outbox_link(&self, name: String, digest: Digest) -> Result<()> {
        let link = move |disk: &Arc<Disk>| {
            let Some(tmp) = disk.files.link_tmp(&layout::blob_path(&digest))? else {
                return disk.write_entry(&name, Bytes::new());
            };
            let installed = disk.install(&tmp, &entry_path(&name));
            if installed.is_err() {
                disk.files.unlink(&tmp)?;
            }
            installed
        };
        self.disk.run(link).await
    }

    /// Writes a file into the outbox atomically, and as durably as blobs are written.
    pub async fn outbox_write(&self, name: String, content: Vec<u8>) -> Result<()> {
        let write = move |disk: &Arc<Disk>| disk.write_entry(&name, content.into());
        self.disk.run(write).await
    }

    /// Opens a file of the outbox; `None` if it is missing.
    pub async fn outbox_open(&self, name: &str) -> Result<Option<Blob>> {
        let path = entry_path(name);
        let open = move |disk: &Arc<Disk>| {
            let opened = disk.files.open_read(&path)?;
            Ok(opened.map(|(file, meta)| {
                Blob::File(BlobFile {
                    file: Arc::new(file),
                    path: disk.files.path(&path),
                    offset: 0,
                    len: meta.size,
                    guard: None,
                })
            }))
        };
        self.disk.run(open).await
    }

    /// Removes files from the outbox. Ignores missing ones.
    pub async fn outbox_remove(&self, names: Vec<String>) -> Result<()> {
        let remove = move |disk: &Arc<Disk>| {
            let paths = names.iter().map(|name| entry_path(name));
            let unlinked = paths.map(|path| disk.files.unlink(&path));
            // All are tried, whichever fails.
            unlinked.fold(Ok(()), Result::and)
        };
        self.disk.run(remove).await
    }
}

impl Disk {
    fn write_entry(&self, name: &str, content: Bytes) -> Result<()> {
        let install = |tmp: &str| self.install(tmp, &entry_path(name));
        self.files.write_new(&[content], install)
    }
}

fn entry_path(name: &str) -> String {
    format!("{OUTBOX}/{name}")
}
