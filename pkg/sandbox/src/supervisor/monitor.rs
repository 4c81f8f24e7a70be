//! The limits that a supervisor compares while a command runs: its memory where no control group limits it, and what it
//! wrote to disk.

use std::{
    fs,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    fs::fstat,
    process::{Pid, Signal, kill_process},
};

use super::scratch;
use crate::{
    Excess, Limits, ScratchLimit,
    cgroup::{Consumption, Group},
    snapshot::Snapshot,
    tree,
};

/// The time between two checks of the memory of a control group, and of the memory that the launcher measured.
const GROUP_PERIOD: Duration = Duration::from_millis(250);
const SNAPSHOT_PERIOD: Duration = Duration::from_millis(120);
/// The time between two measurements of the disk.
const SCRATCH_PERIOD: Duration = Duration::from_secs(1);
/// The time between two measurements of a command that has nothing to do.
const IDLE_PERIOD: Duration = Duration::from_secs(5);
/// The least time between two measurements, as a multiple of the time that the last one took.
const PAUSE: u32 = 20;

/// The limits of a running command, and the times of their next comparisons.
pub(super) struct Monitor<'a> {
    group: Option<&'a Group>,
    snapshot: Option<&'a Snapshot>,
    launcher: Pid,
    memory: Option<(u64, Instant)>,
    /// The time between two comparisons of memory.
    period: Duration,
    scratch: Option<(Scratch, Instant)>,
    is_idle: bool,
    /// The greatest resident memory of all processes that was measured.
    pub(super) peak: u64,
}

/// The directory that a command writes into.
pub(super) struct Scratch {
    pub(super) directory: OwnedFd,
    /// The input root, if the command cannot write into it.
    pub(super) skipped: Option<OwnedFd>,
    pub(super) limit: ScratchLimit,
}

impl<'a> Monitor<'a> {
    pub(super) fn new(
        limits: &Limits,
        group: Option<&'a Group>,
        snapshot: Option<&'a Snapshot>,
        scratch: Option<Scratch>,
        launcher: Pid,
    ) -> Self {
        let now = Instant::now();
        let period = group.map_or(SNAPSHOT_PERIOD, |_| GROUP_PERIOD);
        let monitor = Self {
            group,
            snapshot,
            launcher,
            period,
            // The kernel limits the memory of a group. Where it kills only one process of it, the others follow.
            memory: limits.memory.map(|limit| (limit, now + period)),
            scratch: scratch.map(|scratch| (scratch, now + SCRATCH_PERIOD)),
            is_idle: false,
            peak: 0,
        };
        monitor.request_snapshot();
        monitor
    }

    /// Compares the limits for the next action of a persistent worker, whose files in the worker's directory have `given`
    /// bytes; `None` while the worker is idle.
    pub(super) fn start_turn(&mut self, given: Option<u64>) {
        self.is_idle = given.is_none();
        let now = Instant::now();
        if let Some((_, due)) = &mut self.memory {
            *due = now + self.period;
        }
        if let Some((scratch, due)) = &mut self.scratch {
            scratch.limit.given = given.unwrap_or_default();
            *due = now + SCRATCH_PERIOD;
        }
        if !self.is_idle {
            self.request_snapshot();
        }
    }

    /// Makes the launcher list the processes, for the next comparison.
    fn request_snapshot(&self) {
        if self.snapshot.is_some() {
            // Fails if the launcher has ended: this process ends then, too.
            let _ = kill_process(self.launcher, Signal::USR1);
        }
    }

    /// Returns the time of the comparison after one that began at `begin`.
    fn next(&self, begin: Instant, period: Duration) -> Instant {
        let took = begin.elapsed();
        let period = if self.is_idle { IDLE_PERIOD } else { period };
        begin + period.max(took.saturating_mul(PAUSE))
    }

    /// Returns the time until the next comparison.
    pub(super) fn left(&self) -> Option<Duration> {
        let memory = self.memory.as_ref().map(|(_, due)| *due);
        let due = self.scratch.as_ref().map(|(_, due)| *due);
        let due = memory.into_iter().chain(due).min();
        due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    /// Compares the limits whose time has come. Returns the one for which the command has to be killed.
    pub(super) fn compare(&mut self) -> Option<Excess> {
        let now = Instant::now();
        if let Some((limit, _)) = self.memory.filter(|(_, due)| *due <= now) {
            let excess = self.compare_memory(limit);
            self.memory = Some((limit, self.next(now, self.period)));
            self.request_snapshot();
            if excess.is_some() {
                return excess;
            }
        }
        self.scratch.as_ref().filter(|(_, due)| *due <= now)?;
        let processes = self.group.and_then(Group::processes);
        let processes = processes.unwrap_or_else(|| {
            let all = self.processes().into_iter();
            all.map(|(pid, _)| pid).collect()
        });
        let (scratch, _) = self.scratch.as_ref()?;
        let excess = scratch.compare(&processes);
        let next = self.next(now, SCRATCH_PERIOD);
        self.scratch.iter_mut().for_each(|(_, due)| *due = next);
        self.request_snapshot();
        excess
    }

    fn compare_memory(&mut self, limit: u64) -> Option<Excess> {
        if let Some(group) = self.group {
            return out_of_memory(&group.consumption(), limit);
        }
        let processes = self.processes();
        let mut used = processes.iter().map(|(_, resident)| resident).sum();
        if used > limit {
            // Pages that processes share count for each of them, so that a large sum is not proof.
            let processes = processes.iter();
            used = processes
                .map(|(pid, resident)| proportional(*pid).unwrap_or(*resident))
                .sum();
        }
        self.peak = self.peak.max(used);
        (used > limit).then_some(Excess::Memory { used, limit })
    }
}

impl Monitor<'_> {
    /// Returns the descendants, with their resident memory in bytes.
    fn processes(&self) -> Vec<(Pid, u64)> {
        let listed = self.snapshot.map(Snapshot::descendants);
        listed.and_then(Result::ok).unwrap_or_else(|| {
            let tree = tree::descendants().into_iter();
            tree.map(|process| (process.pid, resident(process.pid)))
                .collect()
        })
    }
}

/// Returns the excess of a group in which the kernel killed a process for lack of memory.
pub(super) fn out_of_memory(used: &Consumption, limit: u64) -> Option<Excess> {
    let is_killed = used.oom_kills > 0;
    let used = used.peak;
    is_killed.then_some(Excess::Memory { used, limit })
}

impl Scratch {
    fn compare(&self, processes: &[Pid]) -> Option<Excess> {
        let limit = self.limit.added;
        let skipped = self.skipped.as_ref().and_then(|root| fstat(root).ok());
        let skipped = skipped.map(|stat| (stat.st_dev, stat.st_ino));
        let Ok(size) = scratch::size(&self.directory, skipped, processes) else {
            return Some(Excess::Unmeasured);
        };
        let used = size.saturating_sub(self.limit.given);
        (used > limit).then_some(Excess::Scratch { used, limit })
    }
}

/// Returns the resident memory of a process in bytes.
fn resident(pid: Pid) -> u64 {
    kib(pid, "status", "VmRSS:").unwrap_or_default()
}

/// Returns the resident memory of a process with its share of the pages that it shares with others, in bytes; `None`
/// without permission to read that, or if the process has ended.
fn proportional(pid: Pid) -> Option<u64> {
    kib(pid, "smaps_rollup", "Pss:")
}

/// Returns a number of bytes from a file in `/proc` that has it in KiB.
fn kib(pid: Pid, file: &str, key: &str) -> Option<u64> {
    let path = format!("/proc/{}/{file}", pid.as_raw_pid());
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib.saturating_mul(1024))
}
