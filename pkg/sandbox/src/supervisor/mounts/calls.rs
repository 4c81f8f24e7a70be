//! Calls of the kernel's interface to mounts.

use std::{
    fs::{DirBuilder, File},
    io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::Path,
};

use nix::libc::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};
use rustix::{
    fs::CWD,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};

use crate::fork;

/// The attributes of mounts that the command may write to.
pub(super) const ACTION: u64 = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;

/// The value of an option that has none.
pub(super) const FLAG: &str = "";

/// Creates a directory and those above it, or a file. Those that exist stay.
pub(super) fn create(path: &Path, is_dir: bool) -> io::Result<()> {
    if is_dir {
        DirBuilder::new().recursive(true).mode(0o755).create(path)
    } else {
        File::create(path).map(drop)
    }
}

/// Returns a copy of the mounts at and below a path, with these attributes too.
pub(super) fn clone(path: &Path, attributes: u64) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_NO_AUTOMOUNT;
    let tree = open_tree(CWD, path, flags)?;
    fork::set_mount_attributes(&tree, attributes, true)?;
    Ok(tree)
}

/// Returns a mount of an empty `tmpfs`.
pub(super) fn tmpfs(size: &str, mode: &str) -> io::Result<OwnedFd> {
    new("tmpfs", &[("size", size), ("mode", mode)], ACTION)
}

/// Returns a mount of a new file system.
pub(super) fn new(kind: &str, options: &[(&str, &str)], attributes: u64) -> io::Result<OwnedFd> {
    let system = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        match *value {
            FLAG => fsconfig_set_flag(&system, *name)?,
            value => fsconfig_set_string(&system, *name, value)?,
        }
    }
    fsconfig_create(&system)?;
    let attributes = u32::try_from(attributes).unwrap_or_default();
    let attributes = MountAttrFlags::from_bits_retain(attributes);
    Ok(fsmount(&system, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Makes a mount visible at a path.
pub(super) fn attach(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(mount, "", CWD, target, flags)?)
}

/// Makes the mount at a path read-only, but not those below it.
pub(super) fn lock(path: &Path) -> io::Result<()> {
    let mount = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    fork::set_mount_attributes(mount, MOUNT_ATTR_RDONLY, false)
}
