//! Processes of actions: starts a command, supervises it, and leaves none of its processes behind.
//!
//! [`Launcher::start`] forks the launcher, a small process, before the server has threads. For each action the launcher
//! forks a supervisor, which starts the command and reports its end. The server itself never forks: that would copy
//! its page tables, and a child would inherit descriptors of files being written, which then cannot be executed
//! (`ETXTBSY`).
//!
//! ```text
//! server ── launcher ──┬─ supervisor ── command ── its children
//!                      └─ supervisor ── ...
//! ```
//!
//! A command may be isolated from the host ([`Isolation`]). The supervisor then starts it through another process, the
//! first of the command's namespaces, which builds the root that the command sees. Where the system allows it is found
//! by trying ([`Launcher::probe`]).
//!
//! ```text
//! server ── launcher ── supervisor ── init ── command ── its children
//!                                     └ namespaces: user, mount, pid, ipc, uts, net
//! ```
//!
//! Each command has a control group of its own, where the system allows it, which limits its memory and its processes
//! ([`Launcher::control_groups`]). Elsewhere the launcher measures the memory, and the supervisor kills the
//! command.
//!
//! Every process of an action is killed when the command ends, when the action is stopped, and when the server, the
//! launcher or the supervisor dies. An action of their user can send them `SIGSTOP`, unless it is isolated: the launcher
//! kills a supervisor that stopped, and the server continues the launcher. If the launcher and a supervisor are killed
//! at the same moment, only the command itself dies with them, unless it is isolated.

mod cgroup;
mod confine;
mod fork;
mod launch;
mod launcher;
mod live;
mod process;
mod snapshot;
mod supervisor;
mod tree;
mod users;
mod wire;

pub use confine::{common_paths, has_landlock};
pub use launch::{
    ControlGroups, Ended, Excess, Exit, Isolation, Launch, LaunchError, Leftovers, Limits, Means,
    NetworkAttempts, Overlay, Scratch, ScratchLimit, Usage,
};
pub use launcher::{Launcher, Level};
pub use live::{LiveCommand, LiveUsage};
pub use supervisor::disk_space;
pub use users::has_users;
