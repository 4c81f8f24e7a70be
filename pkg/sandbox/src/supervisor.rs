//! The supervisor of one action.

mod command;

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::AsFd as _,
    time::{Duration, Instant, SystemTime},
};

use nix::sys::{
    resource::{UsageWho, getrusage},
    signal::Signal,
    time::{TimeVal, TimeValLike as _},
};
use rustix::process::{
    Pid, Signal as Sent, WaitOptions, WaitStatus, getppid, set_parent_process_death_signal,
};

use crate::{
    Ended, Exit, Leftovers, Usage, fork,
    process::{Children, Signals, Wake, establish, reap},
    tree::{self, FIRST_PASS, next_pass},
    wire::{self, Answer, Order, Refusal},
};

/// The number of leftovers that are reported by name.
const NAMES: usize = 8;

/// Runs the command that arrives on `control`, and reports its end. The caller is a new child of `launcher`. An error
/// has been reported, but may leave processes behind.
pub(crate) fn run(control: &File, launcher: Pid) -> io::Result<()> {
    match serve(control, launcher) {
        Ok(Some(answer)) => send(control, &answer),
        // The launcher is gone.
        Ok(None) => {}
        Err(error) => {
            let copy = io::Error::new(error.kind(), error.to_string());
            send(control, &Err(Refusal::at("supervisor")(error)));
            return Err(copy);
        }
    }
    Ok(())
}

/// Reports that there is no supervisor.
pub(crate) fn refuse(control: &File, error: io::Error) {
    send(control, &Err(Refusal::at("fork")(error)));
}

/// Sends an answer, unless the server is gone.
fn send(mut control: &File, answer: &Answer) {
    if let Ok(bytes) = wire::encode(answer) {
        let _ = control.write_all(&bytes);
    }
}

/// Returns the answer to the order that arrives on `control`, once no process of the command is left.
fn serve(control: &File, launcher: Pid) -> io::Result<Option<Answer>> {
    fork::close_descriptors(control)?;
    establish(c"gorego-action")?;
    // Killing stops processes first, which must not cause the next pass at once.
    fork::ignore_stopped_children()?;
    let signals = Signals::new(&[Signal::SIGCHLD, Signal::SIGCONT])?;
    // The parent is compared whenever a signal arrives. This one reaches a stopped supervisor, too.
    set_parent_process_death_signal(Some(Sent::CONT))?;
    if getppid() != Some(launcher) {
        return Ok(None);
    }
    let (order, descriptors) = wire::read::<Order>(control)?;
    let started = SystemTime::now();
    let timeout = order.timeout;
    let kill_delay = order.kill_delay;
    let (command, mut refusal) = match command::start(order, descriptors) {
        Ok(started) => started,
        Err(refusal) => return Ok(Some(Err(refusal))),
    };
    let mut supervisor = Supervisor {
        signals,
        launcher,
        command,
        exit: None,
    };
    let cause = supervisor.watch(control, timeout, kill_delay)?;
    let leftovers = supervisor.kill_all(!cause.timed_out)?;
    // The writer of the pipe was closed by a successful start, and by the end of the process.
    let mut report = Vec::new();
    refusal.read_to_end(&mut report)?;
    if !report.is_empty() {
        return Ok(Some(Err(serde_json::from_slice(&report)?)));
    }
    let (Some((exit, ended)), false) = (supervisor.exit, cause.orphaned) else {
        return Ok(None);
    };
    Ok(Some(Ok(Ended {
        exit,
        timed_out: cause.timed_out,
        stopped: cause.stopped,
        usage: usage()?,
        leftovers,
        started,
        ended,
    })))
}

/// The reasons why a command was ended from outside.
#[derive(Default)]
struct Cause {
    timed_out: bool,
    stopped: bool,
    /// Whether the launcher died.
    orphaned: bool,
}

struct Supervisor {
    signals: Signals,
    launcher: Pid,
    command: Pid,
    /// The exit of the command and its time, once it has ended.
    exit: Option<(Exit, SystemTime)>,
}

impl Supervisor {
    /// Waits until the command has ended or has to be killed.
    fn watch(
        &mut self,
        control: &File,
        timeout: Duration,
        kill_delay: Duration,
    ) -> io::Result<Cause> {
        let mut cause = Cause::default();
        // A time too far to be represented does not come.
        let mut deadline = Instant::now().checked_add(timeout);
        while self.reap() && self.exit.is_none() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let is_due = left.is_some_and(|left| left.is_zero());
            match self.signals.wait(Some(control.as_fd()), left)? {
                Wake::Peer => {
                    cause.stopped = true;
                    break;
                }
                Wake::Signal if getppid() != Some(self.launcher) => {
                    cause.orphaned = true;
                    break;
                }
                // Signals may arrive faster than they are handled, which must not delay the timeout.
                Wake::Signal if !is_due => {}
                _ if cause.timed_out => break,
                _ => {
                    cause.timed_out = true;
                    tree::signal_session(self.command, Sent::TERM);
                    deadline = Instant::now().checked_add(kill_delay);
                }
            }
        }
        Ok(cause)
    }

    /// Waits for children that have ended, and returns whether others are left.
    fn reap(&mut self) -> bool {
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
    fn kill_all(&mut self, by_itself: bool) -> io::Result<Leftovers> {
        let outlived = by_itself && self.exit.is_some();
        let mut counted = HashSet::new();
        let mut leftovers = Leftovers::default();
        let mut pass = FIRST_PASS;
        while self.reap() {
            for process in tree::kill_descendants(&HashSet::new()) {
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

/// Returns the resources that all descendants used, which have ended.
fn usage() -> io::Result<Usage> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let count = |value| u64::try_from(value).unwrap_or_default();
    let time = |value: TimeVal| Duration::from_micros(count(value.num_microseconds()));
    Ok(Usage {
        user: time(usage.user_time()),
        system: time(usage.system_time()),
        max_resident_bytes: count(usage.max_rss()) * 1024,
        minor_faults: count(usage.minor_page_faults()),
        major_faults: count(usage.major_page_faults()),
        blocks_read: count(usage.block_reads()),
        blocks_written: count(usage.block_writes()),
        voluntary_switches: count(usage.voluntary_context_switches()),
        involuntary_switches: count(usage.involuntary_context_switches()),
    })
}
