//! Child processes that do not outlive the test that started them.

use std::{
    ffi::OsStr,
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, waitid},
};

/// Returns a command whose process ends with the thread that starts it, even if the test is killed.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A running child process. Dropping it kills and reaps the child.
#[derive(Debug)]
pub struct Process {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`.
    pub fn spawn(command: &mut Command) -> Self {
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("starting {command:?}: {e}"));
        Self { child, ended: None }
    }

    /// Returns the child, for its pipes.
    pub fn child_mut(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal`, unless the child was reaped, since its id may then be reused.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            kill_process(self.pid(), signal).expect("a child not yet reaped can be signalled");
        }
    }

    /// Stops the child (SIGSTOP) and waits until all its threads have stopped.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let stopped = waitid(WaitId::Pid(self.pid()), WaitIdOptions::STOPPED);
        stopped.expect("a child that was sent SIGSTOP stops");
    }

    /// Kills the child with SIGKILL and reaps it.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Waits until the child ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let status = self.ended.unwrap_or_else(|| {
            let waited = self.child.wait();
            waited.expect("a child not yet reaped can be waited for")
        });
        self.ended = Some(status);
        status
    }

    /// Waits until the child ends by itself. Panics if that takes longer than `limit`.
    pub fn wait_within(&mut self, limit: Duration) -> ExitStatus {
        let id = self.child.id();
        self.ended_within(limit)
            .unwrap_or_else(|| panic!("process {id} did not end in time"))
    }

    /// Waits up to `limit` for the child to end. Returns its status, or `None` if it still runs.
    pub fn ended_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        if self.ended.is_none() {
            let pidfd = pidfd_open(self.pid(), PidfdFlags::empty())
                .expect("a child not yet reaped has a pidfd");
            let limit = Timespec::try_from(limit).expect("a time limit in range");
            let ready = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit))
                .expect("polling a pidfd");
            if ready == 0 {
                return None;
            }
        }
        Some(self.wait())
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Describes the status of an ended process.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
