//! Files below a directory, by calls relative to its descriptor. No path leads out of the directory.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
};

use gorego_storage::{Error, Result};
use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Stat, Uid},
    io::Errno,
};

/// The longest path of one call, in bytes; longer ones are opened in parts.
const MAX_PART: usize = 4000;
/// The most times that a lookup is repeated, after renames of other directories during it.
const MAX_RETRIES: u32 = 16;

/// The flags of a directory that is read.
pub(crate) const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// Opens the directory at `path` below `root`, which may lead through symlinks but not out of `root`. The empty path is
/// `root`. Fails with `EXDEV` for a path that leads out.
pub(crate) fn open_beneath(root: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    let mut rest = path;
    let mut at = None;
    loop {
        let (part, next) = split_part(rest);
        let part = if part.is_empty() { "." } else { part };
        let base = at.as_ref().map_or(root.as_fd(), OwnedFd::as_fd);
        let opened = open_part(base, part)?;
        if next.is_empty() {
            return Ok(opened);
        }
        at = Some(opened);
        rest = next;
    }
}

/// Splits a path before the component that would make the first part too long.
fn split_part(path: &str) -> (&str, &str) {
    if path.len() <= MAX_PART {
        return (path, "");
    }
    let end = path.floor_char_boundary(MAX_PART);
    let start = path.get(..end).unwrap_or_default();
    start
        .rfind('/')
        .and_then(|slash| Some((path.get(..slash)?, path.get(slash + 1..)?)))
        .unwrap_or((path, ""))
}

fn open_part(base: BorrowedFd<'_>, part: &str) -> Result<OwnedFd, Errno> {
    let mut tries = 0;
    loop {
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(base, part, DIRECTORY, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) if tries < MAX_RETRIES => tries += 1,
            opened => return opened,
        }
    }
}

/// Opens the directory `name` in `at`, unless it is a symlink.
pub(crate) fn open_child(at: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(at, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

/// Creates the directory `name` in `at` with this mode, whatever the umask. It belongs to `user` if there is one.
pub(crate) fn make_child(
    at: impl AsFd,
    name: &str,
    mode: Mode,
    user: Option<u32>,
) -> Result<OwnedFd, Errno> {
    rustix::fs::mkdirat(&at, name, mode)?;
    let made = open_child(at, name)?;
    rustix::fs::fchmod(&made, mode)?;
    give(&made, user)?;
    Ok(made)
}

/// Makes `user`, if there is one, the owner of a file, with the group of the same number.
pub(crate) fn give(file: impl AsFd, user: Option<u32>) -> Result<(), Errno> {
    let Some(id) = user else { return Ok(()) };
    rustix::fs::fchown(file, Some(Uid::from_raw(id)), Some(Gid::from_raw(id)))
}

/// Makes `user`, if there is one, the owner of the file `name` in `at`.
pub(crate) fn give_child(at: impl AsFd, name: &str, user: Option<u32>) -> Result<(), Errno> {
    let Some(id) = user else { return Ok(()) };
    let (owner, group) = (Some(Uid::from_raw(id)), Some(Gid::from_raw(id)));
    rustix::fs::chownat(at, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)
}

/// Opens the parent of a directory. `id` is what [`id_of`] returned for the parent: the tree must not have changed.
pub(crate) fn open_parent(at: impl AsFd, id: (u64, u64)) -> Result<OwnedFd, Errno> {
    let parent = rustix::fs::openat(at, "..", DIRECTORY, Mode::empty())?;
    if id_of(&rustix::fs::fstat(&parent)?) == id {
        return Ok(parent);
    }
    Err(Errno::STALE)
}

/// Returns the numbers of a file's device and inode.
pub(crate) fn id_of(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Sets the mode of a file or directory that may have no permissions at all, unless it is a symlink.
pub(crate) fn change_mode(at: impl AsFd, name: &str, mode: Mode) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(at, name, flags, Mode::empty())?;
    // A descriptor without access has no mode calls of its own.
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::chmod(link, mode)
}

/// Creates the file `name` in `at`, which must not exist.
pub(crate) fn create_file(at: impl AsFd, name: &str) -> Result<fs::File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let created = rustix::fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR);
    created.map(fs::File::from).map_err(io("creating", name))
}

/// Returns the conversion of a system call's error on the file at `path`.
pub(crate) fn io(action: &'static str, path: &str) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::io(action, path, errno.into())
}

/// Splits a path into its parent, which is empty at the top, and its last component.
pub(crate) fn split_last(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Joins two paths, each of which may be empty.
pub(crate) fn join(parent: &str, path: &str) -> String {
    match (parent.is_empty(), path.is_empty()) {
        (true, _) => path.to_owned(),
        (_, true) => parent.to_owned(),
        _ => format!("{parent}/{path}"),
    }
}
