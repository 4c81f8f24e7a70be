//! The first process of an isolated command's namespaces: it builds the root, if the command gets one, starts the command
//! and waits for its end.
//! The kernel kills every other process in them when it exits.

use std::{
    io::{self, PipeWriter, Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    time::SystemTime,
};

use nix::{
    sys::signal::Signal,
    unistd::{Gid, Uid, setgid, setuid},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags, open},
    io::Errno,
    process::{
        DumpableBehavior, Signal as Sent, set_dumpable_behavior, set_parent_process_death_signal,
    },
    system::sethostname,
    thread::{CapabilitySet, remove_capability_from_bounding_set, set_name, set_no_new_privs},
};
use serde::{Deserialize, Serialize};

use super::{
    command::Command,
    family::Family,
    mounts::{Plan, ROOT, Taken},
    network::{attempts, raise_loopback},
};
use crate::{
    Exit, Leftovers, NetworkAttempts,
    process::{Signals, Wake},
    wire::{self, Refusal},
};

/// The end of an isolated command.
#[derive(Deserialize, Serialize)]
pub(super) struct Report {
    pub(super) exit: Exit,
    pub(super) ended: SystemTime,
    pub(super) leftovers: Leftovers,
    pub(super) attempts: NetworkAttempts,
}

/// The first process of a command's namespaces.
pub(super) struct Init {
    /// The parent. This process has to die with it.
    pub(super) supervisor: OwnedFd,
    /// The socket that brings a byte when the user namespace is ready, and takes the root, if there is a new one, and a
    /// [`Report`].
    pub(super) socket: UnixStream,
    /// The user to become.
    pub(super) user: Option<u32>,
    /// Set if the network namespace is not the host's.
    pub(super) has_own_network: bool,
    /// Set if it was created with this process.
    pub(super) has_new_network: bool,
}

impl Init {
    /// Runs a command to its end.
    pub(super) fn run(
        mut self,
        mut command: Command,
        plan: Option<Plan>,
        refusal: &mut PipeWriter,
    ) -> Result<(), Refusal> {
        self.die_with_supervisor()?;
        let ready = self.socket.read_exact(&mut [0]);
        ready.map_err(Refusal::at("supervisor"))?;
        set_name(c"gorego-init").map_err(Refusal::at("name"))?;
        let signals = Signals::new(&[Signal::SIGCHLD, Signal::SIGTERM]);
        let signals = signals.map_err(Refusal::at("signals"))?;
        let has_root = plan.is_some();
        self.isolate(plan)?;
        self.send_root(&mut command, has_root)?;
        drop_privileges().map_err(Refusal::isolation("giving up privileges"))?;
        // The change of the user has undone it.
        self.die_with_supervisor()?;
        let pid = command.fork(refusal)?;
        // The end of a pipe is seen by its reader.
        drop(command);
        let family = if has_root {
            Family::new(pid, signals)
        } else {
            Family::of_namespace(pid, signals)
        };
        let mut report = watch(family).map_err(Refusal::at("watching the command"))?;
        if self.has_own_network && report.exit != Exit::Code(0) {
            report.attempts = attempts();
        }
        let sent = serde_json::to_vec(&report).map_err(io::Error::from);
        let sent = sent.and_then(|bytes| self.socket.write_all(&bytes));
        sent.map_err(Refusal::at("report"))
    }

    fn die_with_supervisor(&self) -> Result<(), Refusal> {
        let failed = Refusal::at::<Errno>("death signal");
        set_parent_process_death_signal(Some(Sent::KILL)).map_err(&failed)?;
        let mut polled = [PollFd::new(&self.supervisor, PollFlags::IN)];
        match poll(&mut polled, Some(&Timespec::default())) {
            Ok(0) => Ok(()),
            Ok(_) => Err(failed(Errno::SRCH)),
            Err(error) => Err(failed(error)),
        }
    }

    /// Gives the command and the supervisor the input root inside, if there is a new root.
    fn send_root(&self, command: &mut Command, has_root: bool) -> Result<(), Refusal> {
        let failed = Refusal::at::<io::Error>("input root");
        let mut sent = None;
        if has_root {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = open(ROOT, flags, Mode::empty());
            command.root = root.map_err(|error| failed(error.into()))?;
            sent = Some(command.root.as_fd());
        }
        let sent = wire::send(&self.socket, &[0], sent.as_slice());
        sent.map(drop).map_err(failed)
    }

    /// Makes the namespaces what the command sees.
    fn isolate(&self, plan: Option<Plan>) -> Result<(), Refusal> {
        let taken = plan.map(Plan::take).transpose()?;
        if let Some(user) = self.user {
            // Capabilities stay, since root is not in the namespace.
            let changed = setgid(Gid::from_raw(user)).and_then(|()| setuid(Uid::from_raw(user)));
            changed.map_err(Refusal::isolation("changing the user"))?;
        }
        taken.map_or(Ok(()), Taken::enter)?;
        sethostname(b"localhost").map_err(Refusal::isolation("setting the host name"))?;
        if self.has_new_network {
            raise_loopback().map_err(Refusal::isolation("starting the loopback interface"))?;
        }
        Ok(())
    }
}

/// Makes the rights that this process has in its namespaces unreachable for the command, which loses its own when it is
/// executed, as its user is not root.
fn drop_privileges() -> io::Result<()> {
    set_no_new_privs(true)?;
    for bit in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            Ok(()) => {}
            // The kernel has no more.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Waits for the end of the command. A `SIGTERM` of the supervisor is passed on to the command; one of the command itself
/// is ignored, as it is by a supervisor.
fn watch(mut family: Family) -> io::Result<Report> {
    let mut terminated = false;
    loop {
        family.reap();
        if let Some((exit, ended)) = family.exit {
            let leftovers = family.kill_all(!terminated)?;
            return Ok(Report {
                exit,
                ended,
                leftovers,
                attempts: NetworkAttempts::default(),
            });
        }
        if let Wake::Signal {
            terminate: true, ..
        } = family.signals.wait(None, None)?
        {
            terminated = true;
            family.terminate();
        }
    }
}

/// Receives the root and the report of a first process that has ended. Each is missing if it was killed before, and the
/// root if there is no new one.
pub(super) fn receive(mut socket: UnixStream) -> io::Result<(Option<OwnedFd>, Option<Report>)> {
    let (_, mut root) = wire::receive(&socket, &mut [0])?;
    let mut report = Vec::new();
    socket.read_to_end(&mut report)?;
    let report = (!report.is_empty()).then(|| serde_json::from_slice(&report));
    Ok((root.pop(), report.transpose()?))
}
