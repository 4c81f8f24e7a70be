//! The size of what a command wrote to disk.

use std::{collections::HashSet, fs, os::fd::OwnedFd, os::unix::fs::MetadataExt as _};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat, statfs},
    io::Errno,
};

use crate::tree;

/// The unit of `st_blocks`.
const BLOCK: u64 = 512;
/// The most levels of directories, each of which takes a descriptor. Files further down are not counted.
const DEPTH: usize = 400;
/// The most descriptors of a process that are looked at.
const DESCRIPTORS: usize = 4096;
/// The file systems of files in memory.
const TMPFS: u64 = 0x0102_1994;
const HUGETLBFS: u64 = 0x9584_58f6;

/// A file: its device and its number there.
type File = (u64, u64);

/// Returns the disk space that a directory takes, except for the directory `skipped`, and that of deleted files which
/// processes below this one have open, in bytes. Each file counts once, whatever its names.
pub(super) fn size(directory: &OwnedFd, skipped: Option<File>) -> u64 {
    let mut walk = Walk {
        linked: HashSet::new(),
        skipped,
        bytes: 0,
    };
    // The command may change what is read. What cannot be read is not counted.
    let _ = walk.directory(directory, DEPTH);
    walk.bytes.saturating_add(deleted())
}

struct Walk {
    /// The files with several names.
    linked: HashSet<File>,
    skipped: Option<File>,
    bytes: u64,
}

impl Walk {
    fn directory(&mut self, directory: &OwnedFd, depth: usize) -> Result<(), Errno> {
        let entries: Vec<_> = Dir::read_from(directory)?.collect::<Result<_, _>>()?;
        for entry in entries {
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
            if is_directory && depth > 0 {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = openat(directory, name, flags, Mode::empty());
                let _ = opened.and_then(|opened| self.directory(&opened, depth - 1));
            }
        }
        Ok(())
    }

    fn count(&mut self, stat: &Stat, is_directory: bool) {
        if is_directory || stat.st_nlink == 1 || self.linked.insert((stat.st_dev, stat.st_ino)) {
            let blocks = u64::try_from(stat.st_blocks).unwrap_or_default();
            self.bytes = self.bytes.saturating_add(blocks.saturating_mul(BLOCK));
        }
    }
}

/// Returns the disk space of deleted files that are open in processes below this one.
fn deleted() -> u64 {
    let mut files = HashSet::new();
    let mut bytes = 0_u64;
    for process in tree::descendants() {
        let descriptors = format!("/proc/{}/fd", process.pid.as_raw_pid());
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
