//! File operations below the data directory, relative to its descriptor. All of them block.

mod open;

use std::{
    fs,
    io::ErrorKind,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64},
    },
};

use bytes::Bytes;
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps},
    io::Errno,
};

use super::{
    folders::Folders,
    full::Free,
    layout::{self, TMP},
};
use gorego_storage::{Error, Result};

/// Read-only and executable: a hard link to a blob can be an action's input.
const BLOB_MODE: Mode = Mode::from_bits_retain(0o555);
const UPLOAD_MODE: Mode = Mode::from_bits_retain(0o755);
const DIR_MODE: Mode = Mode::from_bits_retain(0o777);

/// How often a folder is made anew for a file that goes there, while others remove it as empty.
const ATTEMPTS: usize = 16;

/// Whether an upload outlives a loss of power.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// Perhaps not; after an unclean stop recent blobs are hashed before their first use.
    #[default]
    None,
    /// Its bytes are on the disk before the upload is acknowledged.
    Data,
    /// Its bytes and its name are.
    Full,
}

/// A file's size and times; milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meta {
    pub(super) size: u64,
    pub(super) atime_ms: u64,
    pub(super) mtime_ms: u64,
}

/// The data directory.
pub(super) struct Files {
    root: PathBuf,
    dir: RwLock<Arc<OwnedFd>>,
    sync: SyncMode,
    pub(super) folders: Arc<Folders>,
    /// Where the umask takes bits of [`BLOB_MODE`] away, each file's mode is set explicitly.
    chmod: bool,
    /// Cleared when the system refuses `O_NOATIME`.
    noatime: AtomicBool,
    next_tmp: AtomicU64,
    /// Whether somebody has removed folders, so that files may be gone.
    pub(super) cleared: AtomicBool,
}

impl Files {
    /// Opens the data directory, which must exist and be writable.
    pub(super) fn open(root: &Path, sync: SyncMode) -> Result<Self> {
        let dir = RwLock::new(open_root(root)?);
        let mut files = Self {
            root: root.to_owned(),
            dir,
            sync,
            folders: Arc::new(Folders::new()),
            chmod: false,
            noatime: AtomicBool::new(true),
            next_tmp: AtomicU64::new(0),
            cleared: AtomicBool::new(false),
        };
        for folder in layout::ROOTS {
            match files.make_dir(folder, |_| ()) {
                // It is made when it is needed, once something was evicted.
                Err(error) if error.is_no_space() => {}
                made => made?,
            }
        }
        for name in files.list(TMP)? {
            let path = format!("{TMP}/{name}");
            match rustix::fs::unlinkat(files.dir(), &*path, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM | Errno::BUSY) => {
                    tracing::warn!(path, "not a gorego file; remove it by hand");
                }
                Err(errno) => return Err(files.error("removing", &path, errno)),
            }
        }
        files.chmod = match files.create_tmp() {
            Ok((probe, file)) => {
                let stat =
                    rustix::fs::fstat(&file).map_err(|e| files.error("probing", &probe, e))?;
                files.unlink(&probe)?;
                Mode::from_raw_mode(stat.st_mode) & BLOB_MODE != BLOB_MODE
            }
            // Eviction needs a running server.
            Err(error) if error.is_no_space() => true,
            Err(error) => return Err(error),
        };
        Ok(files)
    }

    fn dir(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.dir.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Recreates the data directory itself after it was removed.
    pub(super) fn reopen(&self) -> Result<()> {
        fs::create_dir_all(&self.root).map_err(|e| Error::io("creating", &self.root, e))?;
        let dir = open_root(&self.root)?;
        *self.dir.write().unwrap_or_else(PoisonError::into_inner) = dir;
        Ok(())
    }

    /// Writes and removes a small file.
    pub(super) fn probe(&self) -> Result<()> {
        let (name, _) = self.create_tmp()?;
        self.unlink(&name)
    }

    pub(super) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    pub(super) fn error(&self, action: &'static str, relative: &str, errno: Errno) -> Error {
        Error::io(action, self.path(relative), errno.into())
    }

    /// Makes a directory and those above it, and tells of each; one that is there is fine.
    pub(super) fn make_dir<'a>(
        &self,
        relative: &'a str,
        mut made: impl FnMut(&'a str),
    ) -> Result<()> {
        let ends = relative
            .match_indices('/')
            .map(|(end, _)| end)
            .chain([relative.len()]);
        let _changing = self.folders.changing();
        for path in ends.filter_map(|end| relative.get(..end)) {
            match rustix::fs::mkdirat(self.dir(), path, DIR_MODE) {
                Ok(()) => made(path),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.error("creating", path, errno)),
            }
        }
        Ok(())
    }

    /// Removes a folder if it is empty; says whether it is gone.
    pub(super) fn remove_empty(&self, relative: &str) -> bool {
        let _changing = self.folders.changing();
        match rustix::fs::unlinkat(self.dir(), relative, AtFlags::REMOVEDIR) {
            Ok(()) => {
                self.folders.removed(relative);
                true
            }
            Err(errno) => errno == Errno::NOENT,
        }
    }

    /// Gives a finished file its mode, and its bytes to the disk where that was asked for.
    pub(super) fn seal(&self, relative: &str, file: &fs::File, writable: bool) -> Result<()> {
        if self.chmod || writable {
            rustix::fs::fchmod(file, BLOB_MODE).map_err(|e| self.error("sealing", relative, e))?;
        }
        if self.sync != SyncMode::None {
            rustix::fs::fdatasync(file).map_err(|e| self.error("syncing", relative, e))?;
        }
        Ok(())
    }

    /// Moves a file to its place, replacing what is there, and makes the folders on the way.
    pub(super) fn publish(&self, from: &str, to: &str) -> Result<()> {
        let folder = to.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut made = Vec::new();
        for _ in 0..ATTEMPTS {
            match rustix::fs::renameat(self.dir(), from, self.dir(), to) {
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(self.error("publishing", to, errno)),
                Ok(()) if self.sync == SyncMode::Full => return self.sync_dirs(folder, &made),
                Ok(()) => return Ok(()),
            }
            let new = |path| {
                if !layout::is_root(path) {
                    self.folders.made(path);
                }
                made.push(path);
            };
            match self.make_dir(folder, new) {
                // Others removed one as empty before the next one was made in it.
                Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Err(self.error("publishing", to, Errno::NOENT))
    }

    /// Gives a name in `folder` to the disk, and the names of the folders made for it.
    fn sync_dirs(&self, folder: &str, made: &[&str]) -> Result<()> {
        let above = made
            .iter()
            .map(|path| path.rsplit_once('/').map_or(".", |(above, _)| above));
        above
            .chain([folder])
            .try_for_each(|path| self.sync_dir(path))
    }

    fn sync_dir(&self, relative: &str) -> Result<()> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(self.dir(), relative, flags, Mode::empty())
            .and_then(rustix::fs::fsync)
            .map_err(|errno| self.error("syncing", relative, errno))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        rustix::fs::renameat(self.dir(), from, self.dir(), to)
            .map_err(|errno| self.error("moving", from, errno))
    }

    /// Removes a file; one that is not there is fine.
    pub(super) fn unlink(&self, relative: &str) -> Result<()> {
        match rustix::fs::unlinkat(self.dir(), relative, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.error("removing", relative, errno)),
        }
    }

    /// A file's size and times; `None` when there is none, or no regular one.
    pub(super) fn stat(&self, relative: &str) -> Result<Option<Meta>> {
        match rustix::fs::statat(self.dir(), relative, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(regular(&stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(self.error("looking up", relative, errno)),
        }
    }

    /// Whether anything exists at a path, of whatever type.
    pub(super) fn is_there(&self, relative: &str) -> Result<bool> {
        match rustix::fs::statat(self.dir(), relative, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(self.error("looking up", relative, errno)),
        }
    }

    /// Whether a path leads to a folder; `None` if nothing exists there.
    pub(super) fn is_folder(&self, relative: &str) -> Option<bool> {
        let stat = rustix::fs::statat(self.dir(), relative, AtFlags::empty()).ok()?;
        Some(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    /// Whether a path still leads to this open file.
    pub(super) fn is_same(&self, file: &fs::File, relative: &str) -> Result<bool> {
        let opened = rustix::fs::fstat(file).map_err(|e| self.error("looking up", relative, e))?;
        match rustix::fs::statat(self.dir(), relative, AtFlags::empty()) {
            Ok(there) => Ok((there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(self.error("looking up", relative, errno)),
        }
    }

    /// Records a file's last use; one that is not there is fine.
    pub(super) fn set_atime(&self, relative: &str, ms: u64) -> Result<()> {
        self.set_times(relative, timespec(ms), UNCHANGED)
    }

    /// Records that a file was changed now; one that is not there is fine.
    pub(super) fn set_mtime_now(&self, relative: &str) -> Result<()> {
        self.set_times(relative, UNCHANGED, NOW)
    }

    fn set_times(&self, relative: &str, atime: Timespec, mtime: Timespec) -> Result<()> {
        let times = Timestamps {
            last_access: atime,
            last_modification: mtime,
        };
        match rustix::fs::utimensat(self.dir(), relative, &times, AtFlags::SYMLINK_NOFOLLOW) {
            // Without it eviction is less exact, which is no reason to fail.
            Ok(()) | Err(Errno::NOENT | Errno::PERM | Errno::ACCESS | Errno::ROFS) => Ok(()),
            Err(errno) => Err(self.error("setting the time of", relative, errno)),
        }
    }

    /// The names and types in a folder; a folder that is not there is empty.
    pub(super) fn list(&self, relative: &str) -> Result<Vec<String>> {
        let read = || -> rustix::io::Result<Vec<String>> {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
            let dir = rustix::fs::openat(self.dir(), relative, flags, Mode::empty())?;
            let names = rustix::fs::Dir::read_from(dir)?.filter_map(|entry| {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(errno) => return Some(Err(errno)),
                };
                let name = entry.file_name().to_str().ok()?;
                (!matches!(name, "." | "..")).then(|| Ok(name.to_owned()))
            });
            names.collect()
        };
        match read() {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Vec::new()),
            other => other.map_err(|errno| self.error("listing", relative, errno)),
        }
    }

    /// Flushes the whole file system that holds the data.
    pub(super) fn sync_all(&self) -> Result<()> {
        rustix::fs::syncfs(self.dir()).map_err(|errno| self.error("syncing", "", errno))
    }

    /// Returns the space that the file system has left for the store.
    pub(super) fn free(&self) -> Option<Free> {
        let stat = rustix::fs::fstatvfs(self.dir()).ok()?;
        Some(Free {
            bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            files: (stat.f_files > 0).then_some(stat.f_favail),
        })
    }

    /// Replaces a small file atomically.
    pub(super) fn replace(&self, relative: &str, content: &[u8]) -> Result<()> {
        let (tmp, file) = self.create_tmp()?;
        let replaced = write_at(&file, &[Bytes::copy_from_slice(content)], 0)
            .map_err(|errno| self.error("writing", relative, errno))
            .and_then(|()| {
                rustix::fs::fdatasync(&file).map_err(|e| self.error("syncing", relative, e))
            })
            .and_then(|()| self.rename(&tmp, relative));
        if replaced.is_err() {
            self.unlink(&tmp)?;
        }
        replaced
    }
}

fn open_root(root: &Path) -> Result<Arc<OwnedFd>> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, root, flags, Mode::empty())
        .map_err(|errno| Error::io("opening", root, errno.into()))?;
    Ok(Arc::new(dir))
}

/// How much is written in one go. A file's time is that of the beginning of the last one, and has to
/// be close to the end of all: a sync point in between would count the file as whole.
const WRITE: usize = 1024 * 1024;

/// Writes all pieces, in order, from `at` on.
pub(super) fn write_at(file: &fs::File, pieces: &[Bytes], mut at: u64) -> rustix::io::Result<()> {
    for piece in pieces {
        let mut rest: &[u8] = piece;
        while !rest.is_empty() {
            let some = rest.get(..WRITE).unwrap_or(rest);
            let written = match rustix::io::pwrite(file, some, at) {
                Ok(0) => return Err(Errno::IO),
                Ok(written) => written,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            at += written as u64;
            rest = rest.get(written..).unwrap_or_default();
        }
    }
    Ok(())
}

/// The size and times in a `stat` of a regular file.
pub(super) fn regular(stat: &rustix::fs::Stat) -> Option<Meta> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let ms = |seconds: i64, nanos: u64| {
        u64::try_from(seconds).unwrap_or(0).saturating_mul(1000) + nanos / 1_000_000
    };
    (kind == FileType::RegularFile).then(|| Meta {
        size: u64::try_from(stat.st_size).unwrap_or(0),
        atime_ms: ms(stat.st_atime, stat.st_atime_nsec),
        mtime_ms: ms(stat.st_mtime, stat.st_mtime_nsec),
    })
}

const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: rustix::fs::UTIME_NOW,
};
const UNCHANGED: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: rustix::fs::UTIME_OMIT,
};

fn timespec(ms: u64) -> Timespec {
    let nanos = (ms % 1000) * 1_000_000;
    Timespec {
        tv_sec: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(nanos).unwrap_or(0),
    }
}
