//! A command and its descendants, as seen by their parent and reaper.

use std::{collections::HashSet, io, time::SystemTime};

use nix::sys::signal::Signal;
use rustix::process::{Pid, Signal as Sent, WaitOptions, WaitStatus};

use super::namespace;
use crate::{
    Exit, Leftovers,
    process::{Children, Signals, reap},
    tree::{self, FIRST_PASS, Process, next_pass},
};

/// The number of leftovers that are reported by name.
const NAMES: usize = 8;

/// The descendants of this process: a command and those that it started.
pub(super) struct Family {
    pub(super) signals: Signals,
    pub(super) command: Pid,
    /// The exit of the command and its time, once it has ended.
    pub(super) exit: Option<(Exit, SystemTime)>,
    /// Set if they are all other processes of the pid namespace, of which this process is the first.
    is_namespace: bool,
}

impl Family {
    pub(super) fn new(command: Pid, signals: Signals) -> Self {
        Self {
            signals,
            command,
            exit: None,
            is_namespace: false,
        }
    }

    /// Creates the family of the first process of a pid namespace that has no `/proc` of its own.
    pub(super) fn of_namespace(command: Pid, signals: Signals) -> Self {
        Self {
            is_namespace: true,
            ..Self::new(command, signals)
        }
    }

    /// Asks the command to end: the processes of its session, or all of a namespace.
    pub(super) fn terminate(&self) {
        if self.is_namespace {
            namespace::signal(Signal::SIGTERM);
        } else {
            tree::signal_session(self.command, Sent::TERM);
        }
    }

    /// Kills all descendants once, and returns them.
    fn kill(&self) -> Vec<Process> {
        if self.is_namespace {
            namespace::kill()
        } else {
            tree::kill_descendants(&HashSet::new())
        }
    }

    /// Waits for children that have ended, and returns whether others are left.
    pub(super) fn reap(&mut self) -> bool {
        loop {
            match reap(WaitOptions::empty()) {
                Children::Changed(pid, status) if pid == self.command => {
                    self.exit = Some((exit(status), SystemTime::now()));
                }
                Children::Changed(..) => {}
                Children::Running => return true,
                Children::None => return false,
            }
        }
    }

    /// Kills all descendants until none is left. Returns those that outlived a command that ended `by_itself`.
    pub(super) fn kill_all(&mut self, by_itself: bool) -> io::Result<Leftovers> {
        let outlived = by_itself && self.exit.is_some();
        let mut counted = HashSet::new();
        let mut leftovers = Leftovers::default();
        let mut pass = FIRST_PASS;
        while self.reap() {
            for process in self.kill() {
                if outlived && !process.zombie && counted.insert(process.pid) {
                    leftovers.count += 1;
                    if leftovers.names.len() < NAMES {
                        leftovers.names.push(process.name);
                    }
                }
            }
            self.signals.wait(None, Some(pass))?;
            pass = next_pass(pass);
        }
        Ok(leftovers)
    }
}

fn exit(status: WaitStatus) -> Exit {
    match status.terminating_signal() {
        Some(signal) => Exit::Signal(signal),
        None => Exit::Code(status.exit_status().unwrap_or_default()),
    }
}
