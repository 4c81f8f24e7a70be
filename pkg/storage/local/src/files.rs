//! File operations below the data directory, relative to its descriptor. All of them block.

mod folders;
mod links;
mod open;

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps},
    io::Errno,
};

pub(super) use self::links::{LinkedOut, copy, meta_of};
use super::{
    layout::{self, TMP, TWINS},
    room::{FreeSpace, Room},
};
use crate::index::{Form, Stamp};
use gorego_storage::{Error, Result};

/// Read-only and executable: a hard link to a blob can be an action's input.
const BLOB_MODE: Mode = Mode::from_bits_retain(0o555);
/// The mode of twins.
const TWIN_MODE: Mode = Mode::from_bits_retain(0o444);
const UPLOAD_MODE: Mode = Mode::from_bits_retain(0o755);

/// Durability of acknowledged uploads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncMode {
    /// A loss of power may lose them; after an unclean stop recent blobs are hashed before their first
    /// use.
    #[default]
    None,
    /// The bytes are on the disk before the upload is acknowledged.
    Data,
    /// The bytes and the name are on the disk before the upload is acknowledged.
    Full,
}

/// The type, size and times of a file; milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meta {
    pub(super) size: u64,
    pub(super) atime_ms: u64,
    pub(super) mtime_ms: u64,
    kind: FileType,
    mode: Mode,
    uid: u32,
    has_one_name: bool,
    device: u64,
    pub(super) stamp: Stamp,
}

pub(super) struct Files {
    root: PathBuf,
    dir: RwLock<Arc<OwnedFd>>,
    sync: SyncMode,
    room: Arc<Room>,
    /// The number of folders made and removed so far. Locked while one is, and counted, so that no other is
    /// removed in between.
    pub(super) folder_changes: Mutex<u64>,
    /// Set if the umask clears bits of [`BLOB_MODE`], so that each file's mode is set explicitly.
    chmod: bool,
    /// The user that the process runs as, which owns the files.
    uid: u32,
    /// Cleared when the system refuses `O_NOATIME`.
    noatime: AtomicBool,
    next_tmp: AtomicU64,
    /// Set when other programs removed folders, so that files may be missing.
    pub(super) cleared: AtomicBool,
}

impl Files {
    /// Opens the data directory, which must exist and be writable.
    pub(super) fn open(root: &Path, sync: SyncMode, room: Arc<Room>) -> Result<Self> {
        let dir = RwLock::new(open_root(root)?);
        let mut files = Self {
            root: root.to_owned(),
            dir,
            sync,
            room,
            folder_changes: Mutex::default(),
            chmod: false,
            uid: rustix::process::geteuid().as_raw(),
            noatime: AtomicBool::new(true),
            next_tmp: AtomicU64::new(0),
            cleared: AtomicBool::new(false),
        };
        for folder in layout::ROOTS {
            match files.make_dir(folder, &mut Vec::new()) {
                // Created on demand, after an eviction.
                Err(error) if error.is_no_space() => {}
                made => made?,
            }
        }
        for folder in [TMP, TWINS] {
            for name in files.list(folder)? {
                let path = format!("{folder}/{name}");
                if let Err(error) = files.unlink(&path) {
                    tracing::warn!(%error, "not a file of gorego; remove it by hand");
                }
            }
        }
        files.chmod = match files.create_tmp() {
            Ok((probe, file)) => {
                let stat =
                    rustix::fs::fstat(&file).map_err(|e| files.error("probing", &probe, e))?;
                files.unlink(&probe)?;
                Mode::from_raw_mode(stat.st_mode) & BLOB_MODE != BLOB_MODE
            }
            // The server starts nevertheless, so that it can evict.
            Err(error) if error.is_no_space() => true,
            Err(error) => return Err(error),
        };
        Ok(files)
    }

    fn dir(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.dir.read())
    }

    /// Recreates the data directory itself after it was removed.
    pub(super) fn reopen(&self) -> Result<()> {
        fs::create_dir_all(&self.root).map_err(|e| Error::io("creating", &self.root, e))?;
        let dir = open_root(&self.root)?;
        *self.dir.write() = dir;
        Ok(())
    }

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

    /// Writes a file in [`TMP`] and lets `place` move it to its place. After an error it is removed.
    pub(super) fn write_new<T>(
        &self,
        pieces: &[Bytes],
        place: impl FnOnce(&str) -> Result<T>,
    ) -> Result<T> {
        let write = |tmp: &str, file: &fs::File| {
            let written = write_at(file, pieces, 0);
            written.map_err(|errno| self.error("writing", tmp, errno))
        };
        self.create_new(write, |tmp, ()| place(tmp))
    }

    /// Lets `write` fill a file in [`TMP`], and `place` move it to its place. After an error it is removed.
    pub(super) fn create_new<C, T>(
        &self,
        write: impl FnOnce(&str, &fs::File) -> Result<C>,
        place: impl FnOnce(&str, C) -> Result<T>,
    ) -> Result<T> {
        let (tmp, file) = self.create_tmp()?;
        let written = write(&tmp, &file);
        let sealed = written.and_then(|done| self.seal(&tmp, &file, false).map(|()| done));
        // Closed first: the system refuses to execute a file that is open for writing.
        drop(file);
        let placed = sealed.and_then(|done| place(&tmp, done));
        if placed.is_err() {
            self.unlink(&tmp)?;
        }
        placed
    }

    /// Gives a finished file its mode, and syncs its bytes if the configuration asks for it.
    pub(super) fn seal(&self, relative: &str, file: &fs::File, writable: bool) -> Result<()> {
        if self.chmod || writable {
            rustix::fs::fchmod(file, BLOB_MODE).map_err(|e| self.error("sealing", relative, e))?;
        }
        if self.sync != SyncMode::None {
            rustix::fs::fdatasync(file).map_err(|e| self.error("syncing", relative, e))?;
        }
        Ok(())
    }

    /// Removes a file; a missing one is fine.
    pub(super) fn unlink(&self, relative: &str) -> Result<()> {
        match rustix::fs::unlinkat(self.dir(), relative, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.error("removing", relative, errno)),
        }
    }

    /// Returns the type, size and times of the file or folder at a path, if there is one.
    pub(super) fn stat(&self, relative: &str) -> Result<Option<Meta>> {
        self.stat_with(relative, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn stat_with(&self, relative: &str, flags: AtFlags) -> Result<Option<Meta>> {
        match rustix::fs::statat(self.dir(), relative, flags) {
            Ok(stat) => Ok(Some(Meta::of(&stat))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(self.error("looking up", relative, errno)),
        }
    }

    /// Returns the size and times of a regular file; `None` if there is none at this path.
    pub(super) fn stat_file(&self, relative: &str) -> Result<Option<Meta>> {
        Ok(self.stat(relative)?.filter(Meta::is_file))
    }

    /// Returns the size of a regular file; `None` if there is none at this path.
    pub(super) fn size(&self, relative: &str) -> Result<Option<u64>> {
        Ok(self.stat_file(relative)?.map(|meta| meta.size))
    }

    /// Whether a path leads to a folder; `None` if nothing exists there.
    pub(super) fn is_folder(&self, relative: &str) -> Option<bool> {
        let meta = self.stat_with(relative, AtFlags::empty()).ok()??;
        Some(meta.kind == FileType::Directory)
    }

    /// Whether a path still leads to this open file.
    pub(super) fn is_same(&self, file: &fs::File, relative: &str) -> Result<bool> {
        let opened = rustix::fs::fstat(file).map_err(|e| self.error("looking up", relative, e))?;
        let there = self.stat_with(relative, AtFlags::empty())?;
        Ok(there.is_some_and(|there| there.is_same(&Meta::of(&opened))))
    }

    pub(super) fn set_atime(&self, relative: &str, ms: u64) -> Result<()> {
        self.set_times(relative, timespec(ms), UNCHANGED)
    }

    /// Sets the time of a file's last change to now; a missing file is fine.
    pub(super) fn set_mtime_now(&self, relative: &str) -> Result<()> {
        self.set_times(relative, UNCHANGED, NOW)
    }

    fn set_times(&self, relative: &str, atime: Timespec, mtime: Timespec) -> Result<()> {
        let times = Timestamps {
            last_access: atime,
            last_modification: mtime,
        };
        match rustix::fs::utimensat(self.dir(), relative, &times, AtFlags::SYMLINK_NOFOLLOW) {
            // Eviction is less exact then, which is no reason to fail.
            Ok(()) | Err(Errno::NOENT | Errno::PERM | Errno::ACCESS | Errno::ROFS) => Ok(()),
            Err(errno) => Err(self.error("setting the time of", relative, errno)),
        }
    }

    pub(super) fn sync_all(&self) -> Result<()> {
        rustix::fs::syncfs(self.dir()).map_err(|errno| self.error("syncing", "", errno))
    }

    pub(super) fn free(&self) -> Option<FreeSpace> {
        let stat = rustix::fs::fstatvfs(self.dir()).ok()?;
        Some(FreeSpace {
            bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            files: (stat.f_files > 0).then_some(stat.f_favail),
        })
    }

    /// Replaces a small file atomically, and syncs its content.
    pub(super) fn replace(&self, relative: &str, content: String) -> Result<()> {
        let write = |_: &str, file: &fs::File| {
            write_at(file, &[content.into()], 0)
                .and_then(|()| rustix::fs::fdatasync(file))
                .map_err(|errno| self.error("writing", relative, errno))
        };
        self.create_new(write, |tmp, ()| {
            rustix::fs::renameat(self.dir(), tmp, self.dir(), relative)
                .map_err(|errno| self.error("replacing", relative, errno))
        })
    }
}

fn open_root(root: &Path) -> Result<Arc<OwnedFd>> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, root, flags, Mode::empty())
        .map_err(|errno| Error::io("opening", root, errno.into()))?;
    Ok(Arc::new(dir))
}

/// The size of one write. A file's time is the beginning of its last write, which has to be close to the
/// end: a sync point in between would count the file as synced.
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

impl Meta {
    pub(super) fn of(stat: &rustix::fs::Stat) -> Self {
        let ms = |seconds: i64, nanos: u64| {
            u64::try_from(seconds).unwrap_or(0).saturating_mul(1000) + nanos / 1_000_000
        };
        let nanos = stat.st_mtime.saturating_mul(1_000_000_000);
        Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            atime_ms: ms(stat.st_atime, stat.st_atime_nsec),
            mtime_ms: ms(stat.st_mtime, stat.st_mtime_nsec),
            kind: FileType::from_raw_mode(stat.st_mode),
            mode: Mode::from_raw_mode(stat.st_mode),
            uid: stat.st_uid,
            has_one_name: stat.st_nlink == 1,
            device: stat.st_dev,
            stamp: Stamp {
                inode: stat.st_ino,
                mtime_ns: nanos.saturating_add_unsigned(stat.st_mtime_nsec),
            },
        }
    }

    /// Whether it is the status of the same file.
    fn is_same(&self, other: &Self) -> bool {
        (self.device, self.stamp.inode) == (other.device, other.stamp.inode)
    }

    pub(super) fn is_file(&self) -> bool {
        self.kind == FileType::RegularFile
    }
}

/// Returns the mode of a file of which links are inputs.
const fn mode_of(form: Form) -> Mode {
    match form {
        Form::Blob => BLOB_MODE,
        Form::Twin => TWIN_MODE,
    }
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
