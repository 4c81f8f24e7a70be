//! The size of what a command wrote to disk.

use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    fs,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, RawDir, Stat, chmod, fchmod, fstat, openat, statat, statfs,
    },
    io::Errno,
    process::{Pid, geteuid},
};

/// The unit of `st_blocks`.
const BLOCK: u64 = 512;
/// The most levels of directories that are open at once, each with a descriptor.
const DEPTH: usize = 400;
/// The most levels in all.
const MAX_LEVELS: usize = 10_000;
/// The most names that are opened again on the way to directories further down than [`DEPTH`]. A long name counts as
/// several.
const MAX_NAMES: usize = 1_000_000;
/// The bytes of a name that counts as one.
const SHORT: usize = 32;
/// The most tries to open a directory.
const TRIES: u32 = 3;
/// The bytes of a buffer for names in a directory.
const BUFFER: usize = 4096;
/// The most descriptors of a process that are looked at.
const DESCRIPTORS: usize = 4096;
/// The file systems of files in memory.
const TMPFS: u64 = 0x0102_1994;
const HUGETLBFS: u64 = 0x9584_58f6;

/// A file: its device and its number there.
type File = (u64, u64);

/// The reason why a size is not known: a directory cannot be opened, or too many are too deep.
#[derive(Debug)]
pub(super) struct Unmeasured;

/// Returns the disk space that a directory takes, except for the directory `skipped`, and that of deleted files which
/// `processes` have open, in bytes. Each file counts once, whatever its names.
///
/// The owner of a directory without permissions gets them while it is read. One that another user closed is not counted:
/// without root, commands of other users cannot be limited.
pub(super) fn size(
    directory: &OwnedFd,
    skipped: Option<File>,
    processes: &[Pid],
) -> Result<u64, Unmeasured> {
    let mut walk = Walk {
        linked: HashSet::new(),
        skipped,
        bytes: 0,
        path: Vec::new(),
        deep: vec![Vec::new()],
        names: 0,
    };
    while let Some(path) = walk.deep.pop() {
        walk.start(directory, path)?;
    }
    Ok(walk.bytes.saturating_add(deleted(processes)))
}

/// Returns the disk space that a directory takes, in bytes. Each file counts once, whatever its names. Returns `None` if
/// it cannot be measured. Blocks.
pub fn disk_space(directory: &OwnedFd) -> Option<u64> {
    size(directory, None, &[]).ok()
}

struct Walk {
    /// The files with several names.
    linked: HashSet<File>,
    skipped: Option<File>,
    bytes: u64,
    /// The names on the way to the directory that is read.
    path: Vec<CString>,
    /// The directories that are read later, from the start: those below which too many would be open.
    deep: Vec<Vec<CString>>,
    /// The names on the way to all such directories so far, which bound the time and the memory that they take.
    names: usize,
}

impl Walk {
    /// Counts what is in the directory at `path`, if it is still there.
    fn start(&mut self, root: &OwnedFd, path: Vec<CString>) -> Result<(), Unmeasured> {
        // Opened anew, to be read from its start.
        let Some(directory) = open(root, c".", OFlags::empty()).map_err(|_| Unmeasured)? else {
            return Ok(());
        };
        let mut opened = Opened {
            directory,
            mode: None,
        };
        for name in &path {
            let Some(next) = Opened::open(&opened.directory, name)? else {
                return Ok(());
            };
            opened = next;
        }
        self.path = path;
        self.directory(&opened.directory, DEPTH)
    }

    /// Counts what is in a directory. The command may change it meanwhile.
    fn directory(&mut self, directory: &OwnedFd, depth: usize) -> Result<(), Unmeasured> {
        let mut buffer = Vec::with_capacity(BUFFER);
        let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
        while let Some(Ok(entry)) = entries.next() {
            let name = entry.file_name();
            if [c".", c".."].contains(&name) {
                continue;
            }
            let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if self.skipped == Some((stat.st_dev, stat.st_ino)) {
                continue;
            }
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            self.count(&stat, is_directory);
            if !is_directory {
                continue;
            }
            self.path.push(name.to_owned());
            if depth == 0 {
                self.defer()?;
            } else if let Some(opened) = Opened::open(directory, name)? {
                self.directory(&opened.directory, depth - 1)?;
            }
            self.path.pop();
        }
        Ok(())
    }

    /// Remembers a directory to be read later.
    fn defer(&mut self) -> Result<(), Unmeasured> {
        let names = self.path.iter().map(|name| 1 + name.count_bytes() / SHORT);
        self.names += names.sum::<usize>();
        if self.path.len() > MAX_LEVELS || self.names > MAX_NAMES {
            return Err(Unmeasured);
        }
        self.deep.push(self.path.clone());
        Ok(())
    }

    fn count(&mut self, stat: &Stat, is_directory: bool) {
        if is_directory || stat.st_nlink == 1 || self.linked.insert((stat.st_dev, stat.st_ino)) {
            let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
            self.bytes = self.bytes.saturating_add(blocks.saturating_mul(BLOCK));
        }
    }
}

/// The permissions that are needed.
const SEARCHED: Mode = Mode::RUSR.union(Mode::XUSR);

/// A directory that can be read and searched. It gets its permissions back when this is dropped.
struct Opened {
    directory: OwnedFd,
    /// The permissions that it had, if they were too few.
    mode: Option<Mode>,
}

impl Opened {
    /// Opens a directory; `None` if there is none any more, or if it is closed by another user.
    fn open(at: &OwnedFd, name: &CStr) -> Result<Option<Self>, Unmeasured> {
        let Some(link) = open(at, name, OFlags::PATH).map_err(|_| Unmeasured)? else {
            return Ok(None);
        };
        for _ in 0..TRIES {
            match Self::try_open(&link) {
                Err(Errno::ACCESS) => {}
                opened => return opened.map_err(|_| Unmeasured),
            }
        }
        // The command closes it again and again.
        Err(Unmeasured)
    }

    fn try_open(link: &OwnedFd) -> Result<Option<Self>, Errno> {
        let stat = fstat(link)?;
        let (mode, user) = (Mode::from_raw_mode(stat.st_mode), geteuid());
        // Root may read and search any.
        let is_closed = !mode.contains(SEARCHED) && !user.is_root();
        if is_closed && stat.st_uid == user.as_raw() {
            chmod(path_of(link), mode | SEARCHED)?;
        }
        match open(link, c".", OFlags::empty()) {
            Err(Errno::ACCESS) if stat.st_uid != user.as_raw() => Ok(None),
            opened => Ok(opened?.map(|directory| Self {
                directory,
                mode: is_closed.then_some(mode),
            })),
        }
    }
}

/// Opens a directory; `None` if there is none any more.
fn open(at: &OwnedFd, name: &CStr, flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
    let flags = flags | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(at, name, flags, Mode::empty()) {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(mode) = self.mode {
            // Fails if it was removed meanwhile.
            let _ = fchmod(&self.directory, mode);
        }
    }
}

/// Returns a path of a descriptor, for calls that need one.
fn path_of(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// Returns the disk space of deleted files that processes have open.
fn deleted(processes: &[Pid]) -> u64 {
    let mut files = HashSet::new();
    let mut bytes = 0_u64;
    for process in processes {
        let descriptors = format!("/proc/{}/fd", process.as_raw_pid());
        let descriptors = fs::read_dir(descriptors).into_iter().flatten().flatten();
        for path in descriptors.take(DESCRIPTORS).map(|entry| entry.path()) {
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            let is_deleted = metadata.is_file() && metadata.nlink() == 0;
            if is_deleted
                && files.insert((metadata.dev(), metadata.ino()))
                && !statfs(&path).is_ok_and(|system| is_memory(system.f_type))
            {
                bytes = bytes.saturating_add(metadata.blocks().saturating_mul(BLOCK));
            }
        }
    }
    bytes
}

fn is_memory(kind: impl TryInto<u64>) -> bool {
    kind.try_into()
        .is_ok_and(|kind| [TMPFS, HUGETLBFS].contains(&kind))
}
