//! Repair of the data directory after other programs removed folders and files from it.

use std::{io::ErrorKind, sync::atomic::Ordering::Relaxed};

use super::{
    disk::Disk,
    files::Files,
    layout::{LOCK_FILE, ROOTS, VERSION_FILE},
    store::{OpenError, lock, write_version},
};
use crate::index::{Key, SHARDS};
use gorego_storage::{Error, Result};

impl Files {
    /// Recreates missing folders and the version of the data directory.
    pub(super) fn restore(&self) -> Result<()> {
        let mut made = Vec::new();
        let mut make = || {
            let mut folders = ROOTS.iter();
            folders.try_for_each(|folder| self.make_dir(folder, &mut made))
        };
        match make() {
            // The data directory itself was removed.
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                self.reopen()?;
                make()?;
            }
            done => done?,
        }
        let dir = self.path("");
        if self.stat(VERSION_FILE)?.is_none() {
            write_version(&dir)
                .map_err(|error| Error::io("writing", self.path(VERSION_FILE), error))?;
            made.push(VERSION_FILE);
        }
        if !made.is_empty() {
            let dir = dir.display();
            tracing::warn!(?made, %dir, "recreated removed parts of the data directory");
            self.cleared.store(true, Relaxed);
        }
        Ok(())
    }
}

impl Disk {
    /// Recreates removed parts of the data directory, the lock included. Blocks.
    pub(super) fn repair(&self) -> Result<()> {
        let mut held = self.lock_file.lock();
        let Some(file) = &*held else {
            return Ok(());
        };
        self.files.restore()?;
        if !self.files.is_same(file, LOCK_FILE)? {
            let locked = lock(&self.files.path(""));
            let dir = self.files.path("");
            let error = |why| Error::Unavailable(OpenError { dir, why }.to_string());
            *held = Some(locked.map_err(error)?);
        }
        Ok(())
    }

    /// Compares the index with the disk after folders were removed: drops entries without a file, and
    /// counts the folders again. Blocks.
    pub(super) fn forget_cleared(&self) -> Result<()> {
        if !self.is_scanned() || !self.files.cleared.swap(false, Relaxed) {
            return Ok(());
        }
        let compared = self.compare_with_disk();
        // Retried after an error.
        self.files.cleared.fetch_or(compared.is_err(), Relaxed);
        compared
    }

    fn compare_with_disk(&self) -> Result<()> {
        let mut lost = 0_u64;
        for part in 0..SHARDS {
            let keys = self.index.pick(part, |entry| Some(entry.key()));
            for key in keys.iter().take_while(|_| !self.cancel.is_cancelled()) {
                lost += u64::from(self.drop_if_missing(key)?);
            }
        }
        self.count_folders()?;
        if lost > 0 {
            tracing::warn!(
                lost,
                "files of blobs and action results were removed by another program"
            );
        }
        Ok(())
    }

    /// Drops an entry whose file is missing; `true` if it did. Blocks.
    pub(super) fn drop_if_missing(&self, key: &Key) -> Result<bool> {
        let _changing = self.lock(key);
        let gone = self.locate(key)?.is_none() && self.index.remove(key).is_some();
        self.counters.lost.fetch_add(u64::from(gone), Relaxed);
        Ok(gone)
    }
}
