//! The resources that running commands use.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::Read as _,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering::Relaxed},
    },
    time::Duration,
};

use rustix::param::{clock_ticks_per_second, page_size};
use tokio::net::unix::OwnedWriteHalf;

use crate::wire::{self, Turn};

/// The bytes that one read of `/proc/<pid>/stat` returns at most, enough for the fields that are used.
const LINE: usize = 512;

/// A command while it runs. Clones refer to the same one.
#[derive(Clone, Debug, Default)]
pub struct LiveCommand {
    running: Arc<Running>,
    /// The processor time that does not count, all of it and that in the kernel.
    before: (Duration, Duration),
}

#[derive(Debug, Default)]
struct Running {
    /// The pid of its supervisor; 0 before there is one and after the end.
    supervisor: AtomicI32,
    /// The way to its supervisor. Closing it stops the command.
    orders: Mutex<Option<OwnedWriteHalf>>,
}

/// The resources that a command has used, and uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveUsage {
    /// Processor time of all its processes, also of those that have ended.
    pub processor: Duration,
    /// The part of it that was spent in the kernel.
    pub system: Duration,
    /// The sum of the resident memory of its processes, in bytes. Shared memory counts for each of them.
    pub resident_bytes: u64,
}

impl LiveCommand {
    pub(crate) fn set_supervisor(&self, pid: i32) {
        self.running.supervisor.store(pid, Relaxed);
    }

    pub(crate) fn set_orders(&self, orders: OwnedWriteHalf) {
        *self.orders() = Some(orders);
    }

    /// Stops the command, if it runs.
    pub(crate) fn stop(&self) {
        drop(self.orders().take());
    }

    fn orders(&self) -> MutexGuard<'_, Option<OwnedWriteHalf>> {
        let locked = self.running.orders.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the same command, without the processor time that it had used `before`.
    #[must_use]
    pub fn since(&self, before: LiveUsage) -> Self {
        Self {
            running: Arc::clone(&self.running),
            before: (before.processor, before.system),
        }
    }

    /// Announces the next action of a persistent worker, whose files in the worker's directory have `given` bytes.
    /// `None`: the worker is idle, and its limits are compared rarely.
    pub fn start_turn(&self, given: Option<u64>) {
        if let (Some(orders), Ok(turn)) = (&*self.orders(), wire::encode(&Turn { given })) {
            // Fails if the command ends.
            let _ = wire::send(orders.as_ref(), &turn, &[]);
        }
    }

    /// Returns what each of `commands` uses, `None` for those that do not run. Reads `/proc` once, and blocks meanwhile.
    pub fn measure(commands: &[Self]) -> Vec<Option<LiveUsage>> {
        let supervisors: Vec<i32> = commands
            .iter()
            .map(|command| command.running.supervisor.load(Relaxed))
            .collect();
        if supervisors.iter().all(|pid| *pid == 0) {
            return vec![None; commands.len()];
        }
        let processes = Processes::read();
        let measured = commands.iter().zip(supervisors).map(|(command, pid)| {
            let (processor, system) = command.before;
            let all = processes.usage(pid)?;
            Some(LiveUsage {
                processor: all.processor.saturating_sub(processor),
                system: all.system.saturating_sub(system),
                ..all
            })
        });
        measured.collect()
    }
}

/// Processor time in ticks, outside the kernel and in it.
#[derive(Clone, Copy)]
struct Ticks(u64, u64);

impl Ticks {
    const fn plus(self, other: Self) -> Self {
        Self(
            self.0.saturating_add(other.0),
            self.1.saturating_add(other.1),
        )
    }
}

/// The fields of a process that are used.
struct Process {
    parent: i32,
    own: Ticks,
    /// The time of its children that have ended and were waited for.
    ended: Ticks,
    resident_pages: u64,
}

impl Process {
    /// Parses the content of `/proc/<pid>/stat`. The name may contain any characters, so it ends at the last `)`.
    fn parse(stat: &str) -> Option<(i32, Self)> {
        let (pid, rest) = stat.split_once(" (")?;
        let (_, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let field = |at: usize| fields.get(at)?.parse::<u64>().ok();
        let process = Self {
            parent: fields.get(1)?.parse().ok()?,
            own: Ticks(field(11)?, field(12)?),
            ended: Ticks(field(13)?, field(14)?),
            resident_pages: field(21)?,
        };
        Some((pid.parse().ok()?, process))
    }

    fn read(directory: &Path) -> Option<(i32, Self)> {
        let mut stat = [0; LINE];
        let mut file = File::open(directory.join("stat")).ok()?;
        let read = file.read(&mut stat).ok()?;
        Self::parse(&String::from_utf8_lossy(stat.get(..read)?))
    }
}

/// All processes of the system.
pub(crate) struct Processes {
    all: HashMap<i32, Process>,
    children: HashMap<i32, Vec<i32>>,
}

impl Processes {
    /// Reads `/proc`.
    pub(crate) fn read() -> Self {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
        let processes = entries
            .filter(|entry| entry.file_name().to_str().is_some_and(is_process))
            .filter_map(|entry| Process::read(&entry.path()));
        Self::of(processes)
    }

    fn of(processes: impl Iterator<Item = (i32, Process)>) -> Self {
        let all: HashMap<i32, Process> = processes.collect();
        let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
        for (pid, process) in &all {
            children.entry(process.parent).or_default().push(*pid);
        }
        Self { all, children }
    }

    /// Returns the pid of each process, that of its parent, and its resident memory in bytes.
    pub(crate) fn resident(&self) -> impl Iterator<Item = (i32, i32, u64)> {
        self.all.iter().map(|(pid, process)| {
            let resident = process.resident_pages.saturating_mul(page_size() as u64);
            (*pid, process.parent, resident)
        })
    }

    /// Returns what the descendants of a supervisor use.
    fn usage(&self, supervisor: i32) -> Option<LiveUsage> {
        let mut ticks = self.all.get(&supervisor).filter(|_| supervisor != 0)?.ended;
        let mut pages: u64 = 0;
        let mut seen = HashSet::new();
        let mut parents = vec![supervisor];
        while let Some(parent) = parents.pop() {
            // Processes that were created during the pass could form a circle.
            for pid in self.children.get(&parent).into_iter().flatten() {
                if let Some(process) = self.all.get(pid).filter(|_| seen.insert(*pid)) {
                    ticks = ticks.plus(process.own).plus(process.ended);
                    pages = pages.saturating_add(process.resident_pages);
                    parents.push(*pid);
                }
            }
        }
        let second = clock_ticks_per_second().max(1);
        let time = |ticks: u64| Duration::from_millis(ticks.saturating_mul(1000) / second);
        let Ticks(user, system) = ticks;
        Some(LiveUsage {
            processor: time(user.saturating_add(system)),
            system: time(system),
            resident_bytes: pages.saturating_mul(page_size() as u64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seven ticks in the kernel.
    fn process(pid: i32, parent: i32, own: u64, ended: u64, pages: u64) -> (i32, Process) {
        let line = format!(
            "{pid} (a) b (c) S {parent} 1 1 0 -1 4194560 9 9 9 9 {own} 3 {ended} 4 20 0 1 0 77 1000 {pages} 18446744073709551615"
        );
        Process::parse(&line).expect("valid")
    }

    #[test]
    fn a_command_uses_what_all_its_descendants_use_and_used() {
        let second = clock_ticks_per_second();
        let processes = Processes::of(
            [
                process(10, 1, 1000 * second, 2 * second, 5000),
                process(11, 10, second, 0, 1),
                process(12, 11, 0, 3 * second, 2),
                process(20, 1, 9 * second, 0, 9),
            ]
            .into_iter(),
        );
        let usage = processes.usage(10).expect("it runs");
        // Those that the supervisor has waited for, and two processes.
        let system = Duration::from_millis((4 + 2 * 7) * 1000 / second);
        assert_eq!(usage.system, system);
        assert_eq!(usage.processor, Duration::from_secs(6) + system);
        assert_eq!(usage.resident_bytes, 3 * page_size() as u64);
        assert_eq!(
            processes.usage(20).map(|usage| usage.resident_bytes),
            Some(0)
        );
        assert_eq!(processes.usage(30), None);
        assert_eq!(processes.usage(0), None);
    }

    #[test]
    fn a_truncated_line_is_no_process() {
        for line in ["", "42", "42 (a", "42 (a) S 1 2", "x (a) S 7 8 9"] {
            assert!(Process::parse(line).is_none(), "{line}");
        }
    }
}
