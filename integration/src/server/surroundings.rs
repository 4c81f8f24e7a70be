//! The environment of a server under test.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::geteuid;

use super::{User, configure};
use crate::{binary, process, root};

/// A file system of the server alone, removed when the server ends.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// The size in MiB.
    pub mib: u32,
    /// A shell command run in the file system before the server starts.
    pub prepare: &'static str,
}

/// Returns the command of a server with its own file system at `data`.
pub(super) fn command_on<S: AsRef<OsStr>>(disk: Disk, data: &Path, settings: &[S]) -> Command {
    let Disk { mib, prepare } = disk;
    let mount = format!("mount -t tmpfs -o size={mib}m none \"$0\" && (cd \"$0\" && {prepare})");
    configure(mounted(&mount, data), data, settings)
}

/// Returns the command of a server with mounts of its own. `mount` is a shell command, whose `$0` is `argument`.
fn mounted(mount: &str, argument: &Path) -> Command {
    let mut command = process::command("unshare");
    if !geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let script = format!("{mount} && exec \"$@\"");
    command.args(["--mount", "sh", "-c", &script]).arg(argument);
    command.arg(binary::gorego());
    command
}

/// The environment of a server: its disk, the root directory, the system's certificates, `RUST_LOG`, its limit of open
/// files, its user and its configuration file.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    pub(super) disk: Option<Disk>,
    pub(super) roots: Option<PathBuf>,
    pub(super) log: Option<&'static str>,
    pub(super) descriptors: Option<Descriptors>,
    /// Set if the server runs in the root directory of the build clients.
    pub(super) in_root: bool,
    /// A file that the server reads in place of one of the machine's.
    pub(super) mounted: Option<(PathBuf, &'static str)>,
    pub(super) user: User,
    pub(super) file: Option<PathBuf>,
}

impl Surroundings {
    /// Returns the command to which settings are added.
    pub(super) fn program(&self, dir: &Path, data: &Path) -> Command {
        if self.in_root {
            let program = binary::gorego().to_str().expect("the path is UTF-8");
            return root::command(Path::new("/"), program);
        }
        if let Some((file, over)) = &self.mounted {
            return mounted(&format!("mount --bind \"$0\" {over}"), file);
        }
        let Some(Descriptors { soft, hard }) = self.descriptors else {
            return self.user.program(dir, data);
        };
        let mut command = process::command("prlimit");
        command.arg(format!("--nofile={soft}:{hard}"));
        command.arg(binary::gorego());
        command
    }
}

/// The limits of file descriptors.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors {
    /// The limit at the start.
    pub soft: u32,
    /// The hard limit, to which the server may raise the soft one.
    pub hard: u32,
}
