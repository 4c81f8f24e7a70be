//! The launcher process: forks a supervisor for each control socket that it receives.

use std::{
    collections::HashSet,
    fs::File,
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    time::Duration,
};

use nix::sys::signal::Signal;
use rustix::{
    fs::{Mode, OFlags, open},
    process::{Pid, chdir, getpid, umask},
    stdio::{dup2_stdin, dup2_stdout},
};

use crate::{
    fork,
    process::{Children, Signals, Wake, establish, reap},
    supervisor, tree, wire,
};

/// The time between two passes that kill the orphans of dead supervisors.
const PASS: Duration = Duration::from_millis(10);

/// Serves `socket` until the server is gone and no process of an action is left.
pub(super) fn run(socket: &UnixStream) -> io::Result<()> {
    isolate(socket)?;
    let mut launcher = Service {
        signals: Signals::new(&[Signal::SIGCHLD])?,
        supervisors: HashSet::new(),
        orphans: false,
    };
    let mut server = Some(socket);
    loop {
        launcher.reap();
        if launcher.orphans {
            launcher.orphans = !tree::kill_descendants(&launcher.supervisors).is_empty();
        }
        if server.is_none() && launcher.supervisors.is_empty() && !launcher.orphans {
            return Ok(());
        }
        let limit = launcher.orphans.then_some(PASS);
        if let (Wake::Peer, Some(socket)) = (
            launcher.signals.wait(server.map(AsFd::as_fd), limit)?,
            server,
        ) && !launcher.accept(socket)?
        {
            server = None;
        }
    }
}

/// Detaches this process from what it inherited from the server.
fn isolate(socket: &UnixStream) -> io::Result<()> {
    fork::reset_signals()?;
    fork::close_descriptors(socket)?;
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    chdir("/")?;
    umask(Mode::from_raw_mode(0o022));
    establish(c"gorego-launcher")
}

struct Service {
    signals: Signals,
    supervisors: HashSet<Pid>,
    /// Whether processes of a dead supervisor may be left, which are now children of this process.
    orphans: bool,
}

impl Service {
    fn reap(&mut self) {
        while let Children::Ended(pid, status) = reap() {
            // A supervisor that exits with 0 has left no process.
            self.orphans |= self.supervisors.remove(&pid) && status.exit_status() != Some(0);
        }
    }

    /// Starts a supervisor, or returns false when the server is gone.
    fn accept(&mut self, socket: &UnixStream) -> io::Result<bool> {
        let (received, mut descriptors) = wire::receive(socket, &mut [0])?;
        if received == 0 {
            return Ok(false);
        }
        // None if this process is at its limit: the server then sees the end of its socket.
        if let Some(control) = descriptors.pop() {
            let control = File::from(control);
            let launcher = getpid();
            match fork::fork(|| supervisor::run(&control, launcher)) {
                Ok(pid) => _ = self.supervisors.insert(pid),
                Err(error) => supervisor::refuse(&control, error),
            }
        }
        Ok(true)
    }
}
