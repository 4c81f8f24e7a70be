//! The deletion of one directory.

use std::{fs, io, os::fd::OwnedFd, path::Path, sync::Arc};

use rustix::fs::{AtFlags, CWD, Mode};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::{BuildRoot, BuildRootError, MARKER, TRASH, Trash};
use crate::beneath::{DIRECTORY, create_file};

/// Deletes a directory that this process created, with what commands left in it: of any depth and with any permissions.
pub async fn remove_directory(path: &Path) -> Result<(), BuildRootError> {
    let opened = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty());
    let opened = opened.map_err(|errno| BuildRootError {
        dir: path.to_owned(),
        why: gorego_storage::Error::io("removing", path, errno.into()).into(),
    })?;
    remove(opened, path).await
}

/// Deletes the directory `dir` at `path`, which this process created, with what commands left in it: of any depth and
/// with any permissions.
pub(crate) async fn remove(dir: OwnedFd, path: &Path) -> Result<(), BuildRootError> {
    let refuse = |why: io::Error| BuildRootError {
        dir: path.to_owned(),
        why: gorego_storage::Error::io("removing", path, why).into(),
    };
    let at = path.to_owned();
    let opened = spawn_blocking(move || {
        // It is marked as the build root of nobody else, so that its content may be deleted.
        let _ = create_file(&dir, MARKER);
        BuildRoot::open(&at)
    });
    let root = opened.await.map_err(|error| refuse(error.into()))??;
    let trash = Trash(Arc::clone(&root));
    trash.empty(&CancellationToken::new()).await;
    let remove = || -> io::Result<()> {
        rustix::fs::unlinkat(&root.dir, MARKER, AtFlags::empty())?;
        rustix::fs::unlinkat(&root.dir, TRASH, AtFlags::REMOVEDIR)?;
        fs::remove_dir(path)
    };
    remove().map_err(refuse)
}
