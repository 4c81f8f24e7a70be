//! Large outputs, which are moved into the store instead of copied where no process can have them open.

use std::{fs, os::fd::OwnedFd, sync::Arc};

use gorego_storage::Adopt;
use rustix::{
    fs::{AtFlags, Stat, fchown, flistxattr, fstat, statat},
    io::Errno,
    process::geteuid,
};

use super::files::size_of;
use crate::beneath::{id_of, open_beneath};

/// The least size of a file that is moved, in bytes. Smaller ones are copied about as fast.
const LARGE: u64 = 256 << 10;
/// The most files that are moved. They stay open, with their directories, until all outputs are read.
const MAX_MOVED: usize = 32;

/// The disk space that a file may have beyond its size, in bytes. More was reserved, and would not be accounted for.
const RESERVED: u64 = 64 << 10;

/// The place that outputs may be moved out of, after the end of all processes that could write to them.
#[derive(Clone, Copy)]
pub(crate) enum Moves<'a> {
    /// There is none.
    No,
    /// The directory that outputs are read from.
    Root,
    /// The upper directory of the overlay that outputs are read from.
    Upper(&'a OwnedFd),
}

/// A large file.
pub(super) struct Large {
    /// Its number among the outputs.
    pub(super) id: usize,
    pub(super) file: fs::File,
    dir: OwnedFd,
    name: String,
}

impl Moves<'_> {
    /// Returns the directory to move the file `name` out of; `None` if it must not be moved. The file is in `parent`,
    /// whose path is `path` if that is known. `count` files are moved already.
    pub(super) fn dir(
        self,
        parent: &OwnedFd,
        path: Option<&str>,
        name: &str,
        stat: &Stat,
        count: usize,
    ) -> Option<OwnedFd> {
        if stat.st_nlink != 1 || size_of(stat) < LARGE || count >= MAX_MOVED {
            return None;
        }
        match self {
            Self::No => None,
            Self::Root => parent.try_clone().ok(),
            Self::Upper(upper) => {
                let dir = open_beneath(upper, path?).ok()?;
                let found = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
                is_same(&found, stat).then_some(dir)
            }
        }
    }
}

/// Returns whether a file of an upper directory is the one that the overlay shows, which has its own device number.
fn is_same(upper: &Stat, shown: &Stat) -> bool {
    let of = |stat: &Stat| {
        let (_, inode) = id_of(stat);
        let time = (stat.st_mtime, stat.st_mtime_nsec);
        (inode, stat.st_mode, stat.st_nlink, stat.st_size, time)
    };
    of(upper) == of(shown)
}

impl Large {
    pub(super) fn new(id: usize, file: fs::File, dir: OwnedFd, name: &str) -> Self {
        Self {
            id,
            file,
            dir,
            name: name.to_owned(),
        }
    }

    /// Returns the move of the file into the store, after making gorego its owner, and a copy in case it fails. Only the
    /// copy where the file is not one of `user`, the command's.
    pub(super) fn adopt(self, user: Option<u32>) -> (Option<Adopt>, Adopt) {
        let moved = own(&self.file, user).then(|| Adopt::Move {
            dir: Arc::new(self.dir),
            name: self.name.into(),
        });
        (moved, Adopt::Copy(self.file))
    }
}

/// Makes gorego the owner of a file of `user` with a single name and nothing but its content. Returns whether it is.
fn own(file: &fs::File, user: Option<u32>) -> bool {
    let Ok(stat) = fstat(file) else {
        return false;
    };
    let on_disk = u64::try_from(stat.st_blocks)
        .unwrap_or(u64::MAX)
        .saturating_mul(512);
    if on_disk > size_of(&stat).saturating_add(RESERVED) || has_attributes(file) {
        return false;
    }
    let is_users = user == Some(stat.st_uid) && stat.st_nlink == 1;
    stat.st_uid == geteuid().as_raw() || (is_users && fchown(file, Some(geteuid()), None).is_ok())
}

/// Returns whether a file has extended attributes. The store would keep them, and some change how an overlay shows it.
fn has_attributes(file: &fs::File) -> bool {
    let mut names = [0_u8; 64];
    match flistxattr(file, &mut names) {
        // SELinux gives each file a label.
        Ok(length) => !matches!(names.get(..length), Some(b"" | b"security.selinux\0")),
        Err(errno) => errno != Errno::OPNOTSUPP,
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FallocateFlags, XattrFlags, fallocate, fsetxattr};

    use super::*;

    #[test]
    fn a_file_with_more_than_its_content_is_not_moved() {
        let plain = tempfile::tempfile().unwrap();
        assert!(own(&plain, None));
        let reserved = tempfile::tempfile().unwrap();
        if fallocate(&reserved, FallocateFlags::KEEP_SIZE, 0, 1 << 20).is_ok() {
            assert!(!own(&reserved, None));
        }
        let labelled = tempfile::tempfile().unwrap();
        if fsetxattr(&labelled, "user.note", b"", XattrFlags::empty()).is_ok() {
            assert!(!own(&labelled, None));
        }
    }
}
