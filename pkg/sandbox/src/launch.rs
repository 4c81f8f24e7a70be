//! The launch of a command, and the report of its end.

use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::LiveCommand;

/// A command to run.
#[derive(Debug)]
pub struct Launch {
    /// The program and its arguments. A program with a slash is relative to the working directory; one without is
    /// looked up in the `PATH` of `environment`.
    pub argv: Vec<String>,
    /// The whole environment.
    pub environment: Vec<(String, String)>,
    /// The directory that holds the working directory.
    pub root: OwnedFd,
    /// The working directory, relative to `root`; empty for `root` itself. No symlink may lead it out of `root`.
    pub working_directory: String,
    /// The file for standard input. `None`: `/dev/null`.
    pub stdin: Option<OwnedFd>,
    /// The file for standard output.
    pub stdout: OwnedFd,
    /// The file for standard error.
    pub stderr: OwnedFd,
    /// Set if `stdout` is a terminal that becomes the command's own, and its standard input. There is no `stdin` then.
    pub has_terminal: bool,
    /// The time after which the processes in the command's session get `SIGTERM`.
    pub timeout: Duration,
    /// The time from `SIGTERM` until everything is killed.
    pub kill_delay: Duration,
    /// The limits of its processes.
    pub limits: Limits,
    /// The directory that it may write into, with the limit of that. `None`: no limit.
    pub scratch: Option<Scratch>,
    /// The user and the group of the command, which then has no other group. `None`: those of the server, which must be
    /// root otherwise.
    pub user: Option<u32>,
    /// The isolation from the host. `None`: the command sees what the server sees. Needs `user` if the server is root.
    pub isolation: Option<Isolation>,
    /// The only paths at and below which the command may change files, as far as its user can; `root` is not among them
    /// unless it is listed. Needs Landlock ([`crate::has_landlock`]), and no other root. `None`: all paths.
    pub confined_to: Option<Vec<PathBuf>>,
    /// The command while it runs, to be measured.
    pub live: LiveCommand,
}

/// The means by which a command is isolated from the host.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Means {
    /// Namespaces of its own with a root of its own. The input root is `/gorego/root`. The files of the host are
    /// read-only and devices are the few that programs expect. Processes, `/proc`, `/tmp`, `/dev/shm` and `SysV` IPC
    /// are the action's own.
    Root,
    /// Namespaces for processes, `SysV` IPC, the host name and the network. The command sees the files of the server,
    /// among them its `/proc`. Of the other settings, only `network` counts.
    Processes,
    /// A program with the interface of Bazel's `linux-sandbox`, at an absolute path. The command sees the files of the
    /// server, read-only. Of the other settings, `tmp`, `writable` and `network` count. If a signal kills the command,
    /// its exit code is that of a shell.
    Program(PathBuf),
}

/// The isolation of a command from the host.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Isolation {
    /// The means.
    pub by: Means,
    /// The directory that becomes `/tmp`. The command's user has to own it.
    pub tmp: PathBuf,
    /// The paths that are empty and read-only inside. Those that do not exist are ignored.
    pub hide: Vec<PathBuf>,
    /// The paths that stay writable, as far as the command's user may write there.
    pub writable: Vec<PathBuf>,
    /// The size of `/dev/shm` in bytes.
    pub shm_bytes: u64,
    /// The layer that takes what the command writes below the input root, which itself stays as it is, so that several
    /// commands can share it. All files in it have to belong to the server; the command's user owns them inside. `None`:
    /// the command writes into the input root.
    pub overlay: Option<Overlay>,
    /// Set if the command has the network of the host; otherwise it has only a loopback interface of its own.
    pub network: bool,
}

/// The directories of an overlay. They are empty, belong to the command's user, and are on one file system other than
/// an overlay.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Overlay {
    /// The directory for files that are written.
    pub upper: PathBuf,
    /// The directory that the kernel needs beside it.
    pub work: PathBuf,
}

/// The limits of a command's processes.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Limits {
    /// The number of processes and threads. Without control groups, that of the command's user (`RLIMIT_NPROC`), if it
    /// has a user or a user namespace of its own; this does not bind root. `None`: that of the server.
    pub processes: Option<u64>,
    /// The memory of all of them, in bytes. Without control groups, a command that has more resident memory is killed
    /// after up to 250 ms. `None`: no limit.
    pub memory: Option<u64>,
    /// The size of a core dump in bytes.
    pub core: u64,
    /// The number that is added to the nice value of the server. A process with a higher value gets less of busy
    /// processors.
    pub nice: i32,
}

/// The limit of what a command writes to disk. It is compared every second, or less often in a large directory.
#[derive(Debug)]
pub struct Scratch {
    /// The directory that holds all that it writes.
    pub directory: OwnedFd,
    /// The limit, and what is there before.
    pub limit: ScratchLimit,
}

/// The size of a directory that a command writes into, in bytes.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct ScratchLimit {
    /// The most bytes that the command may add.
    pub added: u64,
    /// The bytes that are there at the start.
    pub given: u64,
}

/// The limit for which a command was killed, in bytes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Excess {
    /// The kernel, or the supervisor, killed it for lack of memory.
    Memory {
        /// The greatest memory at one time.
        used: u64,
        /// The limit.
        limit: u64,
    },
    /// It wrote too much to disk.
    Scratch {
        /// The size of what it wrote.
        used: u64,
        /// The limit.
        limit: u64,
    },
    /// Its directories could not be measured, as it closed them again and again, or as too many are too deep.
    Unmeasured,
}

/// The control groups that launched commands have.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ControlGroups {
    /// One for each command, of this version: `v1` or `v2`.
    Version(String),
    /// None, for this reason, a clause.
    None(String),
}

/// The report of a command that was started and has ended. None of its processes is left.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Ended {
    /// The exit of the command itself.
    pub exit: Exit,
    /// Set if the timeout passed first.
    pub timed_out: bool,
    /// Set if the command was killed because it was to stop.
    pub stopped: bool,
    /// The limit for which it was killed.
    pub excess: Option<Excess>,
    /// The number of processes that it could not create because of their limit, if known.
    pub refused_processes: u64,
    /// The resources that all of its processes used.
    pub usage: Usage,
    /// The processes that still ran when the command itself had ended.
    pub leftovers: Leftovers,
    /// The attempts to leave a network of its own, if it failed by itself.
    pub attempts: NetworkAttempts,
    /// The start of the command.
    pub started: SystemTime,
    /// The end of the command itself.
    pub ended: SystemTime,
    /// The input root as a command with a root of its own left it: with an overlay, what was written is seen only here.
    #[serde(skip)]
    pub root: Option<Arc<OwnedFd>>,
}

/// The exit of a command.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl Exit {
    /// Returns the exit code as shells report it: 128 and the number of the signal.
    pub const fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128_i32.saturating_add(signal),
        }
    }
}

/// The resources used by a command and its descendants, except for processes whose parent ignored `SIGCHLD`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Usage {
    /// Processor time outside the kernel.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
    /// The greatest memory of all processes together, without files that stay cached after their end. Without control
    /// groups, the resident memory of the largest process; at least that of a supervisor, some megabytes.
    pub peak_bytes: u64,
    /// Page faults without I/O.
    pub minor_faults: u64,
    /// Page faults with I/O.
    pub major_faults: u64,
    /// Blocks of 512 bytes read from disks.
    pub blocks_read: u64,
    /// Blocks of 512 bytes written to disks.
    pub blocks_written: u64,
    /// Context switches because a process waited.
    pub voluntary_switches: u64,
    /// Context switches because a processor was needed elsewhere.
    pub involuntary_switches: u64,
}

/// The processes that still ran when a command had ended by itself.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Leftovers {
    /// The number of processes.
    pub count: u64,
    /// The names of the first few, cut to 15 bytes by the kernel.
    pub names: Vec<String>,
}

/// The attempts of a command to reach the network from one that has only a loopback interface.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct NetworkAttempts {
    /// The number of connections and datagrams to addresses without a route.
    pub unroutable: u64,
    /// The number of datagrams to ports of the loopback interface that nothing listened at, as of lookups of names.
    pub unanswered: u64,
}

/// A failure to run a command to its end.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program does not exist or cannot be executed.
    #[error("cannot execute `{program}`: {why}")]
    NotExecutable {
        /// The first argument.
        program: String,
        /// The reason.
        why: String,
    },
    /// The working directory does not exist, or lies outside the root.
    #[error("no working directory `{0}`")]
    NoWorkingDirectory(String),
    /// The system does not allow the isolation; the cause in one sentence.
    #[error("{0}")]
    Isolation(String),
    /// The supervisor or the launcher died. The action's processes are dead, unless both died at the same moment.
    #[error("{0}")]
    Lost(String),
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}
