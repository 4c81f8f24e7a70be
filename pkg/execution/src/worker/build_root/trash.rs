//! The deletion of directories that actions left, of any depth and with any permissions.

use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, RawDir},
    io::Errno,
};
use tokio::{task::spawn_blocking, time::sleep};
use tokio_util::sync::CancellationToken;

use super::BuildRoot;
use crate::beneath::DIRECTORY;

/// The most files that are deleted before the deleter looks whether it has to end.
const BATCH: usize = 4096;
/// The most levels of directories that are deleted where they are, each with an open descriptor.
const DEPTH: usize = 32;
/// The bytes of a buffer for names in a directory.
const BUFFER: usize = 4096;
/// The time in which directories come together before they are deleted.
const PAUSE: Duration = Duration::from_millis(50);

/// The deleter of a build root's trash.
#[derive(Debug)]
pub(crate) struct Trash(pub Arc<BuildRoot>);

impl Trash {
    /// Deletes what is in the trash and what comes to it, until `stop` is cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.0.dirty.notified() => {}
            }
            let _ = stop.run_until_cancelled(sleep(PAUSE)).await;
            self.empty(&stop).await;
        }
    }

    /// Deletes what is in the trash now, after another deletion has ended. Files that cannot be deleted are logged.
    pub(crate) async fn empty(&self, stop: &CancellationToken) {
        let Some(_deleting) = stop.run_until_cancelled(self.0.deleting.lock()).await else {
            return;
        };
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
        // Folders of deleted directories come to the trash.
        while self.trash() {
            if self.left == 0 {
                return false;
            }
        }
        true
    }

    /// Deletes what is in the trash now. Returns whether there was something that can be deleted.
    fn trash(&mut self) -> bool {
        let trash = &self.root.trash;
        let Ok(names) = Dir::read_from(trash) else {
            return false;
        };
        let mut is_empty = true;
        for entry in names.filter_map(Result::ok) {
            let name = entry.file_name();
            if is_itself(name) || self.skipped.contains(name) {
                continue;
            }
            is_empty = false;
            if self.left == 0 {
                break;
            }
            let deleted = match entry.file_type() {
                FileType::Directory => self.directory(trash, name, DEPTH),
                _ => self.file(trash, name, DEPTH),
            };
            if let Err(error) = deleted {
                let path = self.root.path.display();
                tracing::warn!(%error, "failed to delete {name:?} in the trash of {path}");
                self.skipped.insert(name.to_owned());
            }
        }
        !is_empty
    }

    fn file(&mut self, at: &OwnedFd, name: &CStr, depth: usize) -> Result<(), Errno> {
        self.left = self.left.saturating_sub(1);
        match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // The type was unknown to the listing.
            Err(Errno::ISDIR) => self.folder(at, name, depth),
            Err(errno) => Err(errno),
        }
    }

    /// Deletes a directory. Its folders `depth` levels below, and those that another process fills, move to the trash
    /// instead: so depth takes neither descriptors nor stack.
    fn directory(&mut self, at: &OwnedFd, name: &CStr, depth: usize) -> Result<(), Errno> {
        let directory = open_writable(at, name)?;
        let mut buffer = Vec::with_capacity(BUFFER);
        let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if is_itself(name) {
                continue;
            }
            if self.left == 0 {
                return Ok(());
            }
            match entry.file_type() {
                FileType::Directory => self.folder(&directory, name, depth)?,
                _ => self.file(&directory, name, depth)?,
            }
        }
        if self.left == 0 {
            return Ok(());
        }
        self.left = self.left.saturating_sub(1);
        match rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY) if depth < DEPTH => self.up(at, name),
            Err(errno) => Err(errno),
        }
    }

    /// Deletes a folder of a directory, or moves it to the trash.
    fn folder(&mut self, at: &OwnedFd, name: &CStr, depth: usize) -> Result<(), Errno> {
        match rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR) {
            Ok(()) => Ok(()),
            Err(_) if depth > 0 => self.directory(at, name, depth - 1),
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

fn is_itself(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Opens a directory, after its owner got all permissions.
fn open_writable(at: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let open = |flags| rustix::fs::openat(at, name, flags | OFlags::NOFOLLOW, Mode::empty());
    if let Ok(directory) = open(DIRECTORY) {
        let stat = rustix::fs::fstat(&directory)?;
        if !Mode::from_raw_mode(stat.st_mode).contains(Mode::RWXU) {
            rustix::fs::fchmod(&directory, Mode::RWXU)?;
        }
        return Ok(directory);
    }
    let directory = open(DIRECTORY | OFlags::PATH)?;
    // A descriptor without access has no mode calls of its own.
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    rustix::fs::chmod(link, Mode::RWXU)?;
    rustix::fs::openat(directory.as_fd(), ".", DIRECTORY, Mode::empty())
}
