//! The directories in which a command creates its outputs.

use std::{collections::HashSet, os::fd::OwnedFd};

use gorego_storage::shorten;
use reapi::v2::Command;
use rustix::io::Errno;

use super::DIRECTORY_MODE;
use crate::{
    abort::Abort,
    beneath::{give, io, join, open_beneath, open_child, split_last},
    command::outputs,
};

/// Creates the parents of the command's outputs below `root`, through symlinks of the input tree that stay in it. The
/// working directory must exist. The created ones belong to `user` if there is one.
pub(super) fn create(root: &OwnedFd, command: &Command, user: Option<u32>) -> Result<(), Abort> {
    let working = &command.working_directory;
    open_beneath(root, working).map_err(|errno| unusable(errno, "working_directory", working))?;
    let mut created = HashSet::new();
    for output in outputs(command) {
        let (parent, _) = split_last(output.path);
        if !parent.is_empty() && created.insert(parent) {
            create_all(root, &join(working, parent), output.field, user)?;
        }
    }
    Ok(())
}

fn create_all(root: &OwnedFd, path: &str, field: &str, user: Option<u32>) -> Result<(), Abort> {
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
    while let Some(name) = missing.pop() {
        match rustix::fs::mkdirat(&at, name, DIRECTORY_MODE) {
            Ok(()) => {}
            // A symlink to nothing, since it could not be opened.
            Err(Errno::EXIST) => return Err(unusable(Errno::NOENT, field, path)),
            Err(errno) => return Err(unusable(errno, field, path)),
        }
        at = open_child(&at, name).map_err(io("opening", path))?;
        // Whatever the umask.
        rustix::fs::fchmod(&at, DIRECTORY_MODE).map_err(io("creating", path))?;
        give(&at, user).map_err(io("changing the owner of", path))?;
    }
    Ok(())
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
