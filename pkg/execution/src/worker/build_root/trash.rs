//! The deletion of directories that actions left, of any depth and with any permissions.

use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags},
    io::Errno,
};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::BuildRoot;
use crate::beneath::DIRECTORY;

/// The most files that are deleted before the deleter looks whether it has to end.
const BATCH: usize = 4096;

/// The deleter of a build root's trash.
#[derive(Debug)]
pub(crate) struct Trash(pub Arc<BuildRoot>);

impl Trash {
    /// Deletes what is in the trash and what comes to it, one file after the other, until `stop` is cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.0.dirty.notified() => {}
            }
            self.empty(&stop).await;
        }
    }

    /// Deletes what is in the trash now, after another deletion has ended. Files that cannot be deleted are logged.
    pub(crate) async fn empty(&self, stop: &CancellationToken) {
        let _deleting = self.0.deleting.lock().await;
        let mut skipped = HashSet::new();
        while !stop.is_cancelled() {
            let root = Arc::clone(&self.0);
            let pass = spawn_blocking(move || {
                let mut pass = Pass {
                    root: &root,
                    left: BATCH,
                    skipped,
                };
                let is_empty = pass.run();
                (is_empty, pass.skipped)
            });
            match pass.await {
                Ok((false, rest)) => skipped = rest,
                _ => return,
            }
        }
    }
}

/// A part of the deletion.
struct Pass<'a> {
    root: &'a BuildRoot,
    left: usize,
    /// The names that could not be deleted.
    skipped: HashSet<CString>,
}

impl Pass<'_> {
    /// Deletes up to `left` files. Returns whether nothing is left that can be deleted.
    fn run(&mut self) -> bool {
        let trash = &self.root.trash;
        let Ok(names) = Dir::read_from(trash) else {
            return true;
        };
        let mut is_empty = true;
        for (name, kind) in entries(names) {
            if self.skipped.contains(&name) {
                continue;
            }
            if self.left == 0 {
                return false;
            }
            is_empty = false;
            let deleted = match kind {
                FileType::Directory => self.directory(&name),
                _ => self.file(trash, &name),
            };
            if let Err(error) = deleted {
                let path = self.root.path.display();
                tracing::warn!(%error, "failed to delete {name:?} in the trash of {path}");
                self.skipped.insert(name);
            }
        }
        // Folders of deleted directories came to the trash meanwhile.
        is_empty
    }

    fn file(&mut self, at: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        self.left = self.left.saturating_sub(1);
        match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // The type was unknown to the listing.
            Err(Errno::ISDIR) => self.up(at, name),
            Err(errno) => Err(errno),
        }
    }

    /// Deletes a directory in the trash, after its files were deleted and its folders were moved to the trash: so depth
    /// takes neither descriptors nor stack.
    fn directory(&mut self, name: &CStr) -> Result<(), Errno> {
        let trash = &self.root.trash;
        let directory = open_writable(trash, name)?;
        for (name, kind) in entries(Dir::read_from(&directory)?) {
            if self.left == 0 {
                return Ok(());
            }
            match kind {
                FileType::Directory => self.folder(&directory, &name)?,
                _ => self.file(&directory, &name)?,
            }
        }
        self.left = self.left.saturating_sub(1);
        match rustix::fs::unlinkat(trash, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Deletes an empty folder, or moves it to the trash.
    fn folder(&mut self, at: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        match rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR) {
            Ok(()) => Ok(()),
            Err(_) => self.up(at, name),
        }
    }

    /// Moves a folder to the trash.
    fn up(&mut self, at: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        let trash = &self.root.trash;
        let new = self.root.new_name();
        match rustix::fs::renameat(at, name, trash, &*new) {
            // A directory that moves has to be writable, since its parent changes.
            Err(Errno::ACCESS) => {
                open_writable(at, name)?;
                rustix::fs::renameat(at, name, trash, &*new)
            }
            moved => moved,
        }
    }
}

fn entries(names: Dir) -> impl Iterator<Item = (CString, FileType)> {
    let entries = names.filter_map(Result::ok);
    let entries = entries.map(|entry| (entry.file_name().to_owned(), entry.file_type()));
    entries.filter(|(name, _)| !matches!(name.as_bytes(), b"." | b".."))
}

/// Opens a directory, after its owner got all permissions.
fn open_writable(at: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(at, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&directory)?;
    if !Mode::from_raw_mode(stat.st_mode).contains(Mode::RWXU) {
        // A descriptor without access has no mode calls of its own.
        let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
        rustix::fs::chmod(link, Mode::RWXU)?;
    }
    rustix::fs::openat(directory.as_fd(), ".", DIRECTORY, Mode::empty())
}
