//! The directories in which a command creates its outputs.

use std::{
    collections::HashSet,
    fs,
    os::fd::{AsRawFd as _, OwnedFd},
};

use gorego_storage::shorten;
use reapi::v2::Command;
use rustix::{fs::AtFlags, io::Errno};

use super::DIRECTORY_MODE;
use crate::{
    abort::Abort,
    beneath::{give, io, join, open_beneath, open_child, split_last},
    command::outputs,
};

/// The places of an action's input tree.
#[derive(Clone, Copy)]
pub(crate) struct Places<'a> {
    /// The input tree.
    pub root: &'a OwnedFd,
    /// The upper directory of an overlay above it, which takes what is created, if the tree is not to change.
    pub upper: Option<&'a OwnedFd>,
    /// The owner of what is created; gorego's own user if `None`.
    pub user: Option<u32>,
}

/// Creates the parents of the command's outputs, but not the outputs, through symlinks of the input tree that stay in
/// it. The working directory must exist. Blocks.
pub(crate) fn create(places: Places<'_>, command: &Command) -> Result<(), Abort> {
    let root = places.root;
    let working = &command.working_directory;
    open_beneath(root, working).map_err(|errno| unusable(errno, "working_directory", working))?;
    let mut created = HashSet::new();
    for output in outputs(command) {
        let (parent, _) = split_last(output.path);
        if !parent.is_empty() && created.insert(parent) {
            create_all(places, &join(working, parent), output.field)?;
        }
    }
    Ok(())
}

fn create_all(places: Places<'_>, path: &str, field: &str) -> Result<(), Abort> {
    let Places { root, upper, user } = places;
    let mut missing = Vec::new();
    let mut existing = path;
    let mut at = loop {
        match open_beneath(root, existing) {
            Ok(found) => break found,
            Err(Errno::NOENT) if !existing.is_empty() => {
                let (parent, name) = split_last(existing);
                missing.push(name);
                existing = parent;
            }
            Err(errno) => return Err(unusable(errno, field, path)),
        }
    };
    let Some(first) = missing.last() else {
        return Ok(());
    };
    match rustix::fs::statat(&at, *first, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => {}
        // A symlink to nothing, since it could not be opened.
        Ok(_) => return Err(unusable(Errno::NOENT, field, path)),
        Err(errno) => return Err(unusable(errno, field, path)),
    }
    if let Some(upper) = upper {
        at = above(root, &at, upper, user)?;
    }
    for name in missing.into_iter().rev() {
        at = create_child(&at, name, user).map_err(|errno| unusable(errno, field, path))?;
    }
    Ok(())
}

/// Creates a directory, unless it exists, and opens it.
fn create_child(at: &OwnedFd, name: &str, user: Option<u32>) -> Result<OwnedFd, Errno> {
    let created = rustix::fs::mkdirat(at, name, DIRECTORY_MODE);
    if !matches!(created, Err(Errno::EXIST)) {
        created?;
    }
    let child = open_child(at, name)?;
    if created.is_ok() {
        // Whatever the umask.
        rustix::fs::fchmod(&child, DIRECTORY_MODE)?;
        give(&child, user)?;
    }
    Ok(child)
}

/// Returns the directory of `upper` that lies above the directory `at` of `root`.
fn above(
    root: &OwnedFd,
    at: &OwnedFd,
    upper: &OwnedFd,
    user: Option<u32>,
) -> Result<OwnedFd, Abort> {
    // Fails if it is longer than a path can be.
    let path = |dir: &OwnedFd| {
        let path = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        path.map_err(|error| Abort::NoTree(format!("its place has no path: {error}")))
    };
    let (root, at) = (path(root)?, path(at)?);
    let below = at.strip_prefix(&root);
    let below = below.map_err(|error| Abort::NoTree(error.to_string()))?;
    let mut above = open_child(upper, ".").map_err(io("opening", "."))?;
    for name in below {
        let name = name
            .to_str()
            .ok_or_else(|| Abort::NoTree("a name is not UTF-8".to_owned()))?;
        above = create_child(&above, name, user).map_err(io("creating", name))?;
    }
    Ok(above)
}

fn unusable(errno: Errno, field: &str, path: &str) -> Abort {
    let why = match errno {
        Errno::NOENT => "is not in the input tree, or is a symlink to nothing",
        Errno::NOTDIR => "is below a file of the input tree, or is one",
        Errno::XDEV | Errno::LOOP => "is below a symlink that leads out of the input tree",
        Errno::ACCESS => "is below a directory without the permissions of its owner",
        Errno::NAMETOOLONG => "has a name that is too long for the file system",
        errno => return io("opening", path)(errno).into(),
    };
    Abort::invalid(field, format!("directory {:?} {why}", shorten(path)))
}
