//! The supervisor of one action.

mod command;
mod family;
mod init;
mod isolation;
mod monitor;
mod mounts;
mod namespace;
mod network;
mod program;
mod scratch;

use std::{
    fs::File,
    io::{self, PipeReader, Read as _, Write as _},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use nix::sys::{
    resource::{UsageWho, getrusage},
    signal::Signal,
    time::{TimeVal, TimeValLike as _},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{
        Pid, Signal as Sent, getpid, getppid, kill_process, set_parent_process_death_signal,
    },
};

pub(crate) use self::network::raise_loopback;
pub use self::scratch::disk_space;
use self::{
    command::{Command, Started},
    family::Family,
    init::Report,
    monitor::{Monitor, Scratch, out_of_memory},
};
use crate::{
    Ended, Excess, Means, NetworkAttempts, Usage,
    cgroup::{Consumption, Group, Groups},
    fork,
    process::{Signals, Wake, establish},
    snapshot::Snapshot,
    wire::{self, Answer, Order, Refusal, Turn},
};

/// The unit of disk blocks.
const BLOCK: u64 = 512;

/// The place of a command among those that run.
#[derive(Clone, Copy)]
pub(crate) struct Slot<'a> {
    /// The groups.
    pub(crate) groups: Option<&'a Groups>,
    /// The name of its group, which no other running command has.
    pub(crate) name: u32,
    /// Set if this process is already in the command's network namespace.
    pub(crate) has_network: bool,
    /// The processes of the system, where there are no groups.
    pub(crate) snapshot: Option<&'a Snapshot>,
}

/// Runs the command that arrives on `control`, in a slot, and reports its end. The caller is a new child of
/// `launcher`. An error has been reported, but may leave processes behind.
pub(crate) fn run(control: &File, launcher: Pid, slot: Slot<'_>) -> io::Result<()> {
    // It is removed or kept after the report, for which the server waits.
    let mut group = None;
    match serve(control, launcher, slot, &mut group) {
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
    let root = answer.as_ref().ok().and_then(|ended| ended.root.as_deref());
    let descriptors: Vec<_> = root.map(OwnedFd::as_fd).into_iter().collect();
    let _ = wire::encode(answer).and_then(|bytes| {
        let sent = wire::send(control, &bytes, &descriptors)?;
        control.write_all(bytes.get(sent..).unwrap_or_default())
    });
}

/// Returns the answer to the order that arrives on `control`, once no process of the command is left.
fn serve(
    control: &File,
    launcher: Pid,
    slot: Slot<'_>,
    group: &mut Option<Group>,
) -> io::Result<Option<Answer>> {
    let signals = detach(control, slot.snapshot)?;
    if getppid() != Some(launcher) {
        return Ok(None);
    }
    let (order, mut descriptors) = wire::read::<Order>(control)?;
    let started = SystemTime::now();
    let (timeout, kill_delay) = (order.timeout, order.kill_delay);
    let (limits, is_isolated) = (order.limits.clone(), order.isolation.is_some());
    let scratch = scratch(&order, &mut descriptors)?;
    let Started {
        pid,
        refusal,
        report,
    } = match start(order, descriptors, slot, group) {
        Ok(started) => started,
        Err(refusal) => return Ok(Some(Err(refusal))),
    };
    let group = group.as_ref();
    let mut supervisor = Supervisor {
        launcher,
        family: Family::new(pid, signals),
        is_isolated,
        monitor: Monitor::new(&limits, group, slot.snapshot, scratch, launcher),
    };
    let cause = supervisor.watch(control, timeout, kill_delay)?;
    let by_itself = !cause.timed_out && cause.excess.is_none();
    if supervisor.family.exit.is_none() {
        group.into_iter().for_each(Group::kill);
    }
    let leftovers = supervisor.family.kill_all(by_itself)?;
    if let Some(refusal) = refused(refusal)? {
        return Ok(Some(Err(refusal)));
    }
    let (Some((exit, ended)), false) = (supervisor.family.exit, cause.orphaned) else {
        return Ok(None);
    };
    let (root, inner) = report.map_or(Ok((None, None)), init::receive)?;
    let report = inner.unwrap_or(Report {
        exit,
        ended,
        leftovers,
        attempts: NetworkAttempts::default(),
    });
    let used = group.map(Group::end).unwrap_or_default();
    let killed = || out_of_memory(&used, limits.memory.unwrap_or_default());
    Ok(Some(Ok(Ended {
        exit: report.exit,
        timed_out: cause.timed_out,
        stopped: cause.stopped,
        excess: cause.excess.or_else(killed),
        refused_processes: used.refused_processes,
        usage: usage(&used, supervisor.monitor.peak)?,
        leftovers: report.leftovers,
        attempts: report.attempts,
        started,
        ended: report.ended,
        root: root.map(Arc::new),
    })))
}

/// Returns the reason why the command was not executed, if any. The writer of the pipe was closed by a successful
/// start, and by the end of the process.
fn refused(mut pipe: PipeReader) -> io::Result<Option<Refusal>> {
    let mut refused = Vec::new();
    pipe.read_to_end(&mut refused)?;
    let refused = (!refused.is_empty()).then(|| serde_json::from_slice(&refused));
    Ok(refused.transpose()?)
}

/// Starts a command, in a control group of its own if there are `groups`.
fn start(
    mut order: Order,
    descriptors: Vec<OwnedFd>,
    slot: Slot<'_>,
    group: &mut Option<Group>,
) -> Result<Started, Refusal> {
    let mut entry = None;
    if let Some(groups) = slot.groups {
        let failed = Refusal::at("control group");
        let limits = &order.limits;
        let isolation = order.isolation.as_ref();
        let has_root = isolation.is_some_and(|isolation| isolation.by == Means::Root);
        let is_bound = has_root || order.user.is_some_and(|user| user != 0);
        let created = groups.create(slot.name, limits, is_bound);
        let created = group.insert(created.map_err(&failed)?);
        entry = Some(created.entry().map_err(failed)?);
        // The group counts the processes that it refuses, which a limit of the user would do before it.
        order.limits.processes = None;
    }
    let isolation = order.isolation.clone();
    let mut command = Command::new(order, descriptors, entry)?;
    if let Some(isolation) = &isolation {
        let Means::Program(program) = &isolation.by else {
            return isolation::start(command, isolation, slot.has_network);
        };
        command.program = program::arguments(&command, isolation, program)?;
    }
    command.start()
}

/// Takes the directory that the command writes into from the descriptors of an order, if that is limited.
fn scratch(order: &Order, descriptors: &mut Vec<OwnedFd>) -> io::Result<Option<Scratch>> {
    let Some(limit) = order.scratch else {
        return Ok(None);
    };
    let lost = || io::Error::from(io::ErrorKind::NotFound);
    let directory = descriptors.pop().ok_or_else(lost)?;
    let isolation = order.isolation.as_ref();
    let has_overlay = isolation.is_some_and(|isolation| isolation.overlay.is_some());
    let root = descriptors.first().filter(|_| has_overlay);
    Ok(Some(Scratch {
        directory,
        skipped: root.map(OwnedFd::try_clone).transpose()?,
        limit,
    }))
}

/// Detaches this process from what it inherited from the launcher, and names it to the server. Returns its signals.
fn detach(control: &File, snapshot: Option<&Snapshot>) -> io::Result<Signals> {
    let snapshot = snapshot.map(AsFd::as_fd);
    let kept: Vec<_> = snapshot.into_iter().chain([control.as_fd()]).collect();
    fork::close_descriptors(&kept)?;
    establish(c"gorego-action")?;
    // Killing stops processes first, which must not cause the next pass at once.
    fork::ignore_stopped_children()?;
    let signals = Signals::new(&[Signal::SIGCHLD, Signal::SIGCONT])?;
    // The parent is compared whenever a signal arrives. This one reaches a stopped supervisor, too.
    set_parent_process_death_signal(Some(Sent::CONT))?;
    // Fails if the server is gone, which is found when it is needed.
    let pid = wire::encode(&getpid().as_raw_pid())?;
    let _ = wire::send(control, &pid, &[]);
    Ok(signals)
}

/// The reasons why a command was ended from outside.
#[derive(Default)]
struct Cause {
    timed_out: bool,
    stopped: bool,
    excess: Option<Excess>,
    /// Set if the launcher died.
    orphaned: bool,
}

struct Supervisor<'a> {
    launcher: Pid,
    family: Family,
    /// Set if the child is the first process of the command's namespaces, or a program that starts the command.
    is_isolated: bool,
    monitor: Monitor<'a>,
}

impl Supervisor<'_> {
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
        while self.family.reap() && self.family.exit.is_none() {
            let excess = self.monitor.compare();
            // What is there since the last turn counts as written until the message about it is read.
            if excess.is_some() && !is_readable(control) {
                cause.excess = excess;
                break;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let is_due = left.is_some_and(|left| left.is_zero());
            let left = left.into_iter().chain(self.monitor.left()).min();
            match self.family.signals.wait(Some(control.as_fd()), left)? {
                Wake::Peer => {
                    let Ok((Turn { given }, _)) = wire::read(control) else {
                        cause.stopped = true;
                        break;
                    };
                    self.monitor.start_turn(given);
                }
                Wake::Signal { .. } if getppid() != Some(self.launcher) => {
                    cause.orphaned = true;
                    break;
                }
                // Signals may arrive faster than they are handled, which must not delay the timeout.
                Wake::Signal { .. } | Wake::Timeout if !is_due => {}
                _ if cause.timed_out => break,
                _ => {
                    cause.timed_out = true;
                    self.terminate();
                    deadline = Instant::now().checked_add(kill_delay);
                }
            }
        }
        Ok(cause)
    }

    /// Asks the command to end.
    fn terminate(&self) {
        if self.is_isolated {
            // Fails if the process has ended. It is a child, so that its pid is not reused.
            let _ = kill_process(self.family.command, Sent::TERM);
        } else {
            self.family.terminate();
        }
    }
}

/// Returns whether a message, or the end of messages, can be read.
fn is_readable(control: &File) -> bool {
    let mut polled = [PollFd::new(control, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Returns the resources that all descendants used, which have ended: those of their control group where they are
/// known, and the `peak` of their resident memory.
fn usage(used: &Consumption, peak: u64) -> io::Result<Usage> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let count = |value| u64::try_from(value).unwrap_or_default();
    let time = |value: TimeVal| Duration::from_micros(count(value.num_microseconds()));
    let (user, system) = used
        .processor
        .unwrap_or_else(|| (time(usage.user_time()), time(usage.system_time())));
    let (blocks_read, blocks_written) = match used.transferred {
        Some((read, written)) => (read / BLOCK, written / BLOCK),
        None => (count(usage.block_reads()), count(usage.block_writes())),
    };
    let largest = count(usage.max_rss()) * 1024;
    Ok(Usage {
        user,
        system,
        peak_bytes: used.peak.saturating_sub(used.left).max(peak).max(largest),
        minor_faults: count(usage.minor_page_faults()),
        major_faults: count(usage.major_page_faults()),
        blocks_read,
        blocks_written,
        voluntary_switches: count(usage.voluntary_context_switches()),
        involuntary_switches: count(usage.involuntary_context_switches()),
    })
}
