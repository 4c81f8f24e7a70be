//! The parts of launchers and supervisors: signals as events, and children to wait for.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd, siginfo},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, WaitOptions, WaitStatus, getpid, set_child_subreaper, wait},
    thread::set_name,
};

/// `SIGTERM` as signalfd returns it.
const SIGTERM: u32 = Signal::SIGTERM as u32;
const SIGUSR1: u32 = Signal::SIGUSR1 as u32;

/// Gives a forked process a name, and makes it the parent of its descendants' orphans.
pub(crate) fn establish(name: &CStr) -> io::Result<()> {
    set_name(name)?;
    // Any pid turns the attribute on.
    set_child_subreaper(Some(getpid()))?;
    Ok(())
}

/// The signals of a process that blocks all.
pub(crate) struct Signals(SignalFd);

/// The reason for the end of a wait.
pub(crate) enum Wake {
    /// A signal arrived.
    Signal {
        /// Set if it is `SIGTERM` from outside the pid namespace of this process.
        terminate: bool,
        /// Set if it is `SIGUSR1`.
        requested: bool,
    },
    /// The peer's descriptor is readable, or its other end is closed.
    Peer,
    /// The time has passed.
    Timeout,
}

impl Signals {
    pub(crate) fn new(signals: &[Signal]) -> io::Result<Self> {
        let set: SigSet = signals.iter().copied().collect();
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&set, flags)?))
    }

    /// Waits for a signal, for the peer, or until the time has passed. The peer comes first, since an action can cause
    /// any number of signals.
    pub(crate) fn wait(
        &self,
        peer: Option<BorrowedFd<'_>>,
        limit: Option<Duration>,
    ) -> io::Result<Wake> {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut polled = vec![PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)];
        polled.extend(peer.map(|peer| PollFd::from_borrowed_fd(peer, PollFlags::IN)));
        match poll(&mut polled, limit.as_ref()) {
            Ok(0) => return Ok(Wake::Timeout),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if polled.get(1).is_some_and(|peer| !peer.revents().is_empty()) {
            // A signal stays for the next wait.
            return Ok(Wake::Peer);
        }
        let signal = self.0.read_signal()?;
        // The kernel shows no pid of a sender outside.
        let is_order = |signal: siginfo| signal.ssi_signo == SIGTERM && signal.ssi_pid == 0;
        Ok(Wake::Signal {
            terminate: signal.is_some_and(is_order),
            requested: signal.is_some_and(|signal| signal.ssi_signo == SIGUSR1),
        })
    }
}

/// The state of the children of this process.
pub(crate) enum Children {
    /// This one has ended, and its pid is free again; or it has stopped.
    Changed(Pid, WaitStatus),
    /// Nothing has happened to any of them.
    Running,
    /// It has none.
    None,
}

/// Returns a child that has ended, or stopped if `options` say so, or whether there are others.
pub(crate) fn reap(options: WaitOptions) -> Children {
    match wait(WaitOptions::NOHANG | options) {
        Ok(Some((pid, status))) => Children::Changed(pid, status),
        // No error but `ECHILD` is possible without a signal handler.
        Err(_) => Children::None,
        Ok(None) => Children::Running,
    }
}
