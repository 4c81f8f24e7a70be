//! The overlay that takes what a command writes into its input root.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
};

use nix::{
    libc::CLONE_NEWUSER,
    unistd::{Gid, Uid},
};
use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid},
};

use super::{
    calls::{ACTION, FLAG, attach, clone, new},
    refuse,
};
use crate::{Overlay, fork, wire::Refusal};

/// The directories of an overlay.
pub(super) struct Layers {
    lower: OwnedFd,
    upper: OwnedFd,
    work: OwnedFd,
}

impl Layers {
    pub(super) fn open(lower: &Path, overlay: &Overlay) -> Result<Self, Refusal> {
        let open = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::open(path, flags, Mode::empty());
            opened.map_err(|error| refuse("opening", path, error.into()))
        };
        Ok(Self {
            lower: open(lower)?,
            upper: open(&overlay.upper)?,
            work: open(&overlay.work)?,
        })
    }

    /// Returns the mount of an overlay, which acts with the rights of the process that mounts it.
    pub(super) fn mount(self) -> Result<OwnedFd, Refusal> {
        // Paths would have to be quoted. `userxattr` excludes redirects and copies of metadata alone, which need trust
        // in the files of the upper directory.
        let [lower, upper, work] = [&self.lower, &self.upper, &self.work]
            .map(|directory| format!("/proc/self/fd/{}", directory.as_raw_fd()));
        let options = [
            ("lowerdir", lower.as_str()),
            ("upperdir", &upper),
            ("workdir", &work),
            ("userxattr", FLAG),
            ("volatile", FLAG),
            ("index", "off"),
        ];
        new("overlay", &options, ACTION).map_err(Refusal::isolation(
            "mounting an overlay (execution.build_root may have to be on another file system)",
        ))
    }
}

/// Mounts an overlay in which everything belongs to `user`, although the files below it are the server's. The caller is
/// root, in a mount namespace of its own.
pub(super) fn mount_for(user: u32, lower: &Path, overlay: &Overlay) -> Result<OwnedFd, Refusal> {
    let given = give(lower, user);
    given.map_err(|error| refuse("changing the owner of files in", lower, error))?;
    Layers::open(lower, overlay)?.mount()
}

/// Shows the files of the server below a path as those of `user`, in this mount namespace.
fn give(path: &Path, user: u32) -> io::Result<()> {
    let tree = clone(path, ACTION)?;
    fork::map_owners(&tree, mapping_to(user)?)?;
    // Before Linux 6.15, an overlay takes only what is part of the file system.
    attach(&tree, path)
}

/// Returns a user namespace that maps the user of this process to `user`.
fn mapping_to(user: u32) -> io::Result<OwnedFd> {
    let (mut reader, _writer) = io::pipe()?;
    // A namespace begins with a process.
    let holder = fork::fork_into(CLONE_NEWUSER, || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        reader.read(&mut [0]).map(drop)
    })?;
    let namespace = write_mapping(holder, user);
    kill_process(holder, Signal::KILL)?;
    waitpid(Some(holder), WaitOptions::empty())?;
    namespace
}

fn write_mapping(holder: Pid, user: u32) -> io::Result<OwnedFd> {
    let path = |name: &str| format!("/proc/{}/{name}", holder.as_raw_pid());
    fs::write(path("uid_map"), format!("{} {user} 1", Uid::effective()))?;
    fs::write(path("gid_map"), format!("{} {user} 1", Gid::effective()))?;
    Ok(File::open(path("ns/user"))?.into())
}
