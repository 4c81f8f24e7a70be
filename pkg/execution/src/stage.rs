//! The input tree of an action on disk.

pub(crate) mod parents;

use std::{
    collections::HashSet,
    ffi::OsStr,
    os::fd::{AsFd as _, OwnedFd},
};

use gorego_storage::{Digest, Error, LinkedAs, Links};
use prost_types::Timestamp;
use reapi::v2::{Directory, FileNode, NodeProperties, SymlinkNode};
use rustix::fs::{AtFlags, Mode, Timespec, Timestamps, UTIME_OMIT};
use tokio_util::sync::CancellationToken;

use crate::{
    Inputs, Job,
    abort::Abort,
    beneath::{give, give_child, id_of, io, open_child, open_parent},
};

/// The mode of directories.
const DIRECTORY_MODE: Mode = Mode::from_bits_retain(0o755);
/// The bits of `unix_mode` that are applied: the permissions, without those that change users.
const PERMISSIONS: u32 = 0o777;

/// The source of an action's files.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// The store. The inputs are pinned.
    pub links: &'a dyn Links,
    /// Set if every file is a copy.
    pub copies: bool,
    /// The user who may change the directories and private files; gorego's own if `None`.
    pub user: Option<u32>,
    /// Cancelled when the attempt has to stop.
    pub stop: &'a CancellationToken,
}

/// Builds the input tree in the empty directory `root`. Within the tree, only the first name of a blob is a link, since
/// programs take several names of an inode for one file. Returns the blobs that were linked. Blocks.
pub(crate) fn stage(
    job: &Job,
    root: &OwnedFd,
    source: Source<'_>,
) -> Result<HashSet<Digest>, Abort> {
    let mut stage = Stage {
        inputs: &job.inputs,
        source,
        linked: HashSet::new(),
    };
    stage.tree(root)?;
    Ok(stage.linked)
}

struct Stage<'a> {
    inputs: &'a Inputs,
    source: Source<'a>,
    linked: HashSet<Digest>,
}

/// A directory whose children are being created.
struct Frame<'a> {
    directory: &'a Directory,
    next: usize,
    id: (u64, u64),
}

impl<'a> Stage<'a> {
    /// Builds the tree with one open directory, however deep it is.
    fn tree(&mut self, root: &OwnedFd) -> Result<(), Abort> {
        let mut at = open_child(root, ".").map_err(io("opening", "."))?;
        let mut frames = vec![self.fill(&at, &self.inputs.root)?];
        while let Some(frame) = frames.last_mut() {
            if let Some(child) = frame.directory.directories.get(frame.next) {
                frame.next += 1;
                let digest = self.digest(child.digest.as_ref(), &child.name)?;
                at = create(&at, &child.name, self.source.user)?;
                frames.push(self.fill(&at, &digest)?);
                continue;
            }
            let done = frames.pop();
            let parent = match frames.last() {
                Some(parent) => Some(open_parent(&at, parent.id).map_err(io("leaving", ".."))?),
                None => None,
            };
            if let Some(properties) = done.and_then(|done| done.directory.node_properties.as_ref())
            {
                // The children are there, so that the time stays and the mode cannot forbid them.
                apply(&at, ".", properties)?;
            }
            at = match parent {
                Some(parent) => parent,
                None => break,
            };
        }
        Ok(())
    }

    fn digest(&self, digest: Option<&reapi::v2::Digest>, name: &str) -> Result<Digest, Abort> {
        let function = self.inputs.root.function();
        Digest::from_field(Some(function), digest)
            .map_err(|error| Abort::invalid(name, error.to_string()))
    }

    /// Creates the files and symlinks of a directory.
    fn fill(&mut self, at: &OwnedFd, digest: &Digest) -> Result<Frame<'a>, Abort> {
        let directory = self.inputs.directories.get(digest);
        let directory =
            directory.ok_or_else(|| Abort::Own(format!("directory {digest} was not read")))?;
        for file in &directory.files {
            if self.source.stop.is_cancelled() {
                return Err(Abort::Stopped);
            }
            self.file(at, file)?;
        }
        for symlink in &directory.symlinks {
            create_symlink(at, symlink)?;
        }
        let stat = rustix::fs::fstat(at).map_err(io("looking up", "."))?;
        if !Mode::from_raw_mode(stat.st_mode).contains(DIRECTORY_MODE) {
            // The umask of the server does not concern the action.
            rustix::fs::fchmod(at, DIRECTORY_MODE).map_err(io("setting the mode of", "."))?;
        }
        Ok(Frame {
            directory,
            next: 0,
            id: id_of(&stat),
        })
    }

    fn file(&mut self, at: &OwnedFd, file: &FileNode) -> Result<(), Abort> {
        let digest = self.digest(file.digest.as_ref(), &file.name)?;
        let properties = file
            .node_properties
            .as_ref()
            .filter(|properties| properties.mtime.is_some() || properties.unix_mode.is_some());
        let name = OsStr::new(&file.name);
        let Source { links, copies, .. } = self.source;
        let is_private = copies || properties.is_some() || self.linked.contains(&digest);
        let placed = if is_private {
            let copied = links.copy(&digest, at.as_fd(), name, file.is_executable);
            copied.map(|()| LinkedAs::Copy)
        } else {
            links.link(&digest, at.as_fd(), name, file.is_executable)
        };
        match placed {
            Ok(LinkedAs::Link) => drop(self.linked.insert(digest)),
            Ok(LinkedAs::Copy) => {}
            // It was pinned, so that the next attempt fetches it again or reports it.
            Err(error @ Error::NotFound(_)) => return Err(Abort::Own(error.to_string())),
            Err(error) => return Err(error.into()),
        }
        if let Some(properties) = properties {
            give_child(at, &file.name, self.source.user)
                .map_err(io("changing the owner of", &file.name))?;
            apply(at, &file.name, properties)?;
        }
        Ok(())
    }
}

fn create(at: &OwnedFd, name: &str, user: Option<u32>) -> Result<OwnedFd, Error> {
    rustix::fs::mkdirat(at, name, DIRECTORY_MODE).map_err(io("creating", name))?;
    let created = open_child(at, name).map_err(io("opening", name))?;
    give(&created, user).map_err(io("changing the owner of", name))?;
    Ok(created)
}

fn create_symlink(at: &OwnedFd, symlink: &SymlinkNode) -> Result<(), Error> {
    let SymlinkNode { name, target, .. } = symlink;
    rustix::fs::symlinkat(target.as_str(), at, name.as_str()).map_err(io("creating", name))?;
    let properties = symlink.node_properties.as_ref();
    match properties.and_then(|properties| properties.mtime.as_ref()) {
        Some(mtime) => set_mtime(at, name, mtime),
        None => Ok(()),
    }
}

/// Sets the mode and the time of a file or directory.
fn apply(at: &OwnedFd, name: &str, properties: &NodeProperties) -> Result<(), Error> {
    if let Some(mtime) = &properties.mtime {
        set_mtime(at, name, mtime)?;
    }
    if let Some(mode) = properties.unix_mode {
        let mode = Mode::from_raw_mode(mode & PERMISSIONS);
        rustix::fs::chmodat(at, name, mode, AtFlags::empty())
            .map_err(io("setting the mode of", name))?;
    }
    Ok(())
}

fn set_mtime(at: &OwnedFd, name: &str, mtime: &Timestamp) -> Result<(), Error> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanos.clamp(0, 999_999_999).into(),
        },
    };
    rustix::fs::utimensat(at, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(io("setting the time of", name))
}
