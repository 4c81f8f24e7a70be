//! The directory of an action, in which blobs become files and files become blobs.

use std::{
    ffi::OsStr,
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use tempfile::TempDir;

use gorego_storage::{Adopt, Digest, Error, LinkedAs, Links};

/// The directory of an action.
#[derive(Debug)]
pub struct Tree {
    dir: TempDir,
    fd: Arc<OwnedFd>,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// Creates an empty directory.
    pub fn new() -> Self {
        Self::of(tempfile::tempdir().unwrap())
    }

    /// Uses a directory of the caller.
    pub fn of(dir: TempDir) -> Self {
        let fd = Arc::new(fs::File::open(dir.path()).unwrap().into());
        Self { dir, fd }
    }

    /// Returns the path of a file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Links a blob as a file.
    pub fn link(
        &self,
        store: &dyn Links,
        digest: &Digest,
        name: &str,
        executable: bool,
    ) -> Result<LinkedAs, Error> {
        store.link(digest, self.fd.as_fd(), OsStr::new(name), executable)
    }

    /// Copies a blob to a file.
    pub fn copy(
        &self,
        store: &dyn Links,
        digest: &Digest,
        name: &str,
        executable: bool,
    ) -> Result<(), Error> {
        store.copy(digest, self.fd.as_fd(), OsStr::new(name), executable)
    }

    /// Returns a file to be moved into a store.
    pub fn moved(&self, name: &str) -> Adopt {
        Adopt::Move {
            dir: Arc::clone(&self.fd),
            name: name.into(),
        }
    }

    /// Returns a file to be copied into a store.
    pub fn copied(&self, name: &str) -> Adopt {
        Adopt::Copy(fs::File::open(self.path(name)).unwrap())
    }

    /// Asserts that a file has this content and mode.
    pub fn expect_file(&self, name: &str, content: &Bytes, mode: u32) {
        let meta = fs::symlink_metadata(self.path(name)).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, mode, "{name}");
        let read = fs::read(self.path(name)).unwrap();
        assert!(read == *content, "{name} has other content");
    }
}
