//! The processes of a pid namespace, for its first process where `/proc` is that of another namespace.

use std::fs;

use nix::{
    sys::signal::{Signal, kill as send},
    unistd::Pid as Target,
};
use rustix::process::Pid;

use crate::tree::{self, Process};

/// All processes of the namespace but the first, as the target of a signal.
const ALL: Target = Target::from_raw(-1);

/// Sends a signal to all other processes of the namespace.
pub(super) fn signal(signal: Signal) {
    // Fails if there is none.
    let _ = send(ALL, signal);
}

/// Kills all other processes of the namespace. Returns those of them that `/proc` shows as descendants of this one, with
/// the pids of that `/proc`.
pub(super) fn kill() -> Vec<Process> {
    // They are stopped first, so that none is reaped by another before it is listed.
    signal(Signal::SIGSTOP);
    let killed = shown_pid().map(tree::descendants_of).unwrap_or_default();
    signal(Signal::SIGKILL);
    killed
}

/// Returns the pid of this process in the namespace of `/proc`.
fn shown_pid() -> Option<Pid> {
    let link = fs::read_link("/proc/self").ok()?;
    Pid::from_raw(link.to_str()?.parse().ok()?)
}
