//! The launcher process: forks a supervisor for each control socket that it receives.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet},
    fs::File,
    io::{self, Write as _},
    os::{fd::AsFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rustix::{
    fs::{Mode, OFlags, open},
    process::{
        Pid, Signal as Sent, WaitOptions, chdir, getpid, kill_process,
        set_parent_process_death_signal, setsid, umask,
    },
    stdio::{dup2_stdin, dup2_stdout},
};

use super::networks::{Network, Networks};
use crate::{
    ControlGroups,
    cgroup::Groups,
    fork,
    process::{Children, Signals, Wake, establish, reap},
    snapshot::Snapshot,
    supervisor::{self, Slot},
    tree::{self, FIRST_PASS, next_pass},
    wire::{self, Ready, Wish},
};

/// The least time between two lists of processes.
const PERIOD: Duration = Duration::from_millis(100);
/// The least time between two lists of processes, as a multiple of the time that the last list took.
const PAUSE: u32 = 20;

/// Serves `socket` until the server is gone and no process of an action is left. Without `memory`, commands have no
/// control groups.
pub(super) fn run(mut socket: &UnixStream, memory: Option<u64>) -> io::Result<()> {
    let isolated = isolate(socket);
    let groups = memory.map_or_else(|| Err("they are switched off".to_owned()), Groups::find);
    let found = match &groups {
        Ok(groups) => ControlGroups::Version(groups.version().to_owned()),
        Err(why) => ControlGroups::None(why.clone()),
    };
    let ready: Ready = isolated
        .as_ref()
        .map(|_| found)
        .map_err(io::Error::to_string);
    socket.write_all(&wire::encode(&ready)?)?;
    let Ok(signals) = isolated else {
        return Ok(());
    };
    let groups = groups.ok();
    let mut launcher = Service {
        signals,
        measurer: groups.is_none().then(Measurer::create).transpose()?,
        groups,
        names: Names::default(),
        networks: Networks::open().ok(),
        supervisors: HashMap::new(),
        lost: Vec::new(),
        orphans: None,
    };
    let mut server = Some(socket);
    loop {
        launcher.reap()?;
        launcher.kill_orphans();
        if server.is_none() && launcher.supervisors.is_empty() && launcher.orphans.is_none() {
            return Ok(());
        }
        let peer = server.map(AsFd::as_fd);
        let left = launcher.orphans.into_iter().chain(launcher.measure()).min();
        let wake = launcher.signals.wait(peer, left)?;
        if let (Wake::Signal { requested, .. }, Some(measurer)) = (&wake, &mut launcher.measurer) {
            measurer.is_requested |= requested;
        }
        if let (Wake::Peer, Some(socket)) = (wake, server)
            && !launcher.accept(socket)?
        {
            server = None;
        }
    }
}

/// Detaches this process from what it inherited from the server. Returns its signals.
fn isolate(socket: &UnixStream) -> io::Result<Signals> {
    fork::reset_signals()?;
    fork::close_descriptors(&[socket.as_fd()])?;
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    chdir("/")?;
    umask(Mode::from_raw_mode(0o022));
    // Supervisors are in this session, too.
    setsid()?;
    establish(c"gorego-launcher")?;
    // The server continues a launcher that was stopped; its death has to do so, too.
    set_parent_process_death_signal(Some(Sent::CONT))?;
    Signals::new(&[Signal::SIGCHLD, Signal::SIGUSR1])
}

struct Service {
    signals: Signals,
    groups: Option<Groups>,
    /// The list of processes where commands have no groups.
    measurer: Option<Measurer>,
    /// The names of groups.
    names: Names,
    /// `None`: supervisors create network namespaces.
    networks: Option<Networks>,
    supervisors: HashMap<Pid, Supervisor>,
    /// The dead supervisors that may have left processes. The server sees their end when those are killed.
    lost: Vec<Supervisor>,
    /// The time until the next pass if processes of dead supervisors, now children of this process, may be left.
    orphans: Option<Duration>,
}

/// A list of processes, and the earliest time of the next one.
struct Measurer {
    snapshot: Snapshot,
    /// Set if a supervisor has requested one. Those of idle commands rarely do.
    is_requested: bool,
    due: Instant,
}

impl Measurer {
    fn create() -> io::Result<Self> {
        Ok(Self {
            snapshot: Snapshot::create()?,
            is_requested: false,
            due: Instant::now(),
        })
    }

    /// Lists the processes if that was requested and it is time. Returns the time that is left; `None` without a request.
    fn measure(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.is_requested && self.due <= now {
            // Without memory for the list, commands are measured later.
            let _ = self.snapshot.update();
            self.is_requested = false;
            self.due = now + PERIOD.max(now.elapsed().saturating_mul(PAUSE));
        }
        let left = self.due.saturating_duration_since(Instant::now());
        self.is_requested.then_some(left)
    }
}

/// A supervisor, and what is left to do when it has died.
struct Supervisor {
    /// A copy of its control socket.
    _control: File,
    /// The name of its command's group.
    group: u32,
    network: Option<Network>,
}

impl Supervisor {
    const fn new(control: File, group: u32, network: Option<Network>) -> Self {
        Self {
            _control: control,
            group,
            network,
        }
    }
}

/// The names of the groups of commands: numbers, the smallest first, so that groups that are kept are used again.
#[derive(Default)]
struct Names {
    free: BinaryHeap<Reverse<u32>>,
    next: u32,
}

impl Names {
    fn take(&mut self) -> u32 {
        self.free.pop().map_or_else(
            || {
                self.next += 1;
                self.next
            },
            |Reverse(free)| free,
        )
    }

    fn give_back(&mut self, name: u32) {
        self.free.push(Reverse(name));
    }
}

impl Service {
    /// Waits for children that have ended, and kills those that have stopped: an action of this user can stop its
    /// supervisor, which then ends neither the action nor itself.
    fn reap(&mut self) -> io::Result<()> {
        while let Children::Changed(pid, status) = reap(WaitOptions::UNTRACED) {
            if status.stopped() {
                // The pid of a child is not reused before this process has waited for its end.
                let _ = kill_process(pid, Sent::KILL);
                continue;
            }
            let Some(supervisor) = self.supervisors.remove(&pid) else {
                continue;
            };
            if status.exit_status() == Some(0) {
                // It has left no process.
                let Supervisor { group, network, .. } = supervisor;
                self.names.give_back(group);
                if let Some((networks, network)) = self.networks.as_mut().zip(network) {
                    networks.give_back(group, network)?;
                }
            } else {
                self.lost.push(supervisor);
                self.orphans = Some(FIRST_PASS);
            }
        }
        Ok(())
    }

    /// Measures the commands if it is time. Returns the time that is left; `None` if nothing waits for it.
    fn measure(&mut self) -> Option<Duration> {
        self.measurer.as_mut().and_then(Measurer::measure)
    }

    fn kill_orphans(&mut self) {
        if let Some(pass) = self.orphans {
            let spared: HashSet<Pid> = self.supervisors.keys().copied().collect();
            let killed = tree::kill_descendants(&spared);
            self.orphans = (!killed.is_empty()).then(|| next_pass(pass));
            if self.orphans.is_none() {
                for Supervisor { group, .. } in self.lost.drain(..) {
                    let groups = self.groups.iter();
                    groups.for_each(|groups| groups.discard(group));
                    self.names.give_back(group);
                }
            }
        }
    }

    /// Starts a supervisor, or returns false when the server is gone.
    fn accept(&mut self, socket: &UnixStream) -> io::Result<bool> {
        let mut wish = [Wish::Nothing as u8];
        let (received, mut descriptors) = wire::receive(socket, &mut wish)?;
        if received == 0 {
            return Ok(false);
        }
        // None if this process is at its limit: the server then sees the end of its socket.
        if let Some(control) = descriptors.pop() {
            self.supervise(control.into(), wish == [Wish::Network as u8]);
        }
        Ok(true)
    }

    /// Starts a supervisor, in a network namespace for its command if it `has_network`.
    fn supervise(&mut self, control: File, has_network: bool) {
        let (launcher, name) = (getpid(), self.names.take());
        let networks = self.networks.as_mut().filter(|_| has_network);
        // The supervisor reports why it cannot create one.
        let network = networks.and_then(|networks| networks.take(name).ok());
        let slot = Slot {
            groups: self.groups.as_ref(),
            name,
            has_network: network.is_some(),
            snapshot: self.measurer.as_ref().map(|measurer| &measurer.snapshot),
        };
        let run = || {
            network.iter().try_for_each(Network::enter)?;
            supervisor::run(&control, launcher, slot)
        };
        match fork::fork_into(0, run) {
            Ok(pid) => {
                let supervisor = Supervisor::new(control, name, network);
                self.supervisors.insert(pid, supervisor);
            }
            Err(error) => {
                self.names.give_back(name);
                supervisor::refuse(&control, error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_listed_only_if_a_supervisor_has_requested_that() {
        let mut measurer = Measurer::create().expect("a file");
        let first = measurer.due;
        assert_eq!(measurer.measure(), None);
        assert_eq!(measurer.due, first);
        measurer.is_requested = true;
        assert_eq!(measurer.measure(), None);
        assert!(measurer.due > first);
        // The next one has to wait.
        measurer.is_requested = true;
        assert!(measurer.measure().is_some());
    }
}
