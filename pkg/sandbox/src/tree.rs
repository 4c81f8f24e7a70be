//! The tree of processes, from `/proc`. Many kernels have no list of a process's children, so all are read.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::Read as _,
    path::Path,
    time::Duration,
};

use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open, pidfd_send_signal,
};

/// More than the bytes of a `/proc/<pid>/stat` up to the fields that are used. One read returns them.
const LINE: usize = 512;

/// The most passes that stop processes before the stopped ones are killed.
const STOP_PASSES: u32 = 32;

/// The time between the first two passes that kill processes.
pub(crate) const FIRST_PASS: Duration = Duration::from_millis(1);

/// The longest time between two passes. Processes that wait for a device outlast many.
const LONGEST_PASS: Duration = Duration::from_millis(100);

/// Returns the time until the pass after the next.
pub(crate) fn next_pass(pass: Duration) -> Duration {
    LONGEST_PASS.min(pass * 2)
}

/// A process.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    parent: i32,
    pub(crate) session: i32,
    /// Set if its first thread has ended. Others may still run.
    pub(crate) zombie: bool,
    pub(crate) name: String,
}

impl Process {
    /// Parses the content of `/proc/<pid>/stat`. The name may contain any characters, so it ends at the last `)`.
    fn parse(stat: &str) -> Option<Self> {
        let (pid, rest) = stat.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let zombie = fields.next()? == "Z";
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        let pid = Pid::from_raw(pid.parse().ok()?)?;
        Some(Self {
            pid,
            parent,
            session,
            zombie,
            name: name.to_owned(),
        })
    }

    fn read(directory: &Path) -> Option<Self> {
        let mut stat = [0; LINE];
        let read = File::open(directory.join("stat"))
            .ok()?
            .read(&mut stat)
            .ok()?;
        Self::parse(&String::from_utf8_lossy(stat.get(..read)?))
    }

    /// Sends a signal, if this is still a process in a tree with these `members`.
    fn signal(&self, signal: Signal, members: &HashSet<i32>) {
        if self.parent == getpid().as_raw_pid() {
            // The pid of a child is not reused before its parent has waited for it.
            let _ = kill_process(self.pid, signal);
        } else if let Ok(pidfd) = pidfd_open(self.pid, PidfdFlags::empty())
            // The pidfd refers to this process, or to one that has ended since. Without pidfds (before Linux 5.3) it
            // becomes a child first, when its parents are dead.
            && Self::read(Path::new(&format!("/proc/{}", self.pid.as_raw_pid())))
                .is_some_and(|now| members.contains(&now.parent))
        {
            let _ = pidfd_send_signal(pidfd, signal);
        }
    }
}

/// Returns the descendants of `root` among `processes`, except for `spared` and their descendants.
fn select(processes: Vec<Process>, root: Pid, spared: &HashSet<Pid>) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for process in processes {
        children.entry(process.parent).or_default().push(process);
    }
    let mut selected = Vec::new();
    let mut parents = vec![root.as_raw_pid()];
    while let Some(parent) = parents.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            if !spared.contains(&child.pid) {
                parents.push(child.pid.as_raw_pid());
                selected.push(child);
            }
        }
    }
    selected
}

/// Returns the descendants of this process. Without `/proc`, none.
pub(crate) fn descendants() -> Vec<Process> {
    descendants_except(&HashSet::new())
}

/// Returns the descendants of this process, except for `spared` and their descendants. Without `/proc`, none.
fn descendants_except(spared: &HashSet<Pid>) -> Vec<Process> {
    select(all(), getpid(), spared)
}

/// Returns all processes that `/proc` shows.
fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let processes = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        entry.file_name().to_str()?.parse::<u32>().ok()?;
        Process::read(&entry.path())
    });
    processes.collect()
}

/// Returns the descendants of a process. Without `/proc`, none.
pub(crate) fn descendants_of(root: Pid) -> Vec<Process> {
    select(all(), root, &HashSet::new())
}

/// Returns the pids of `processes` and of this process.
fn members<'a>(processes: impl IntoIterator<Item = &'a Process>) -> HashSet<i32> {
    let pids = processes
        .into_iter()
        .map(|process| process.pid.as_raw_pid());
    pids.chain([getpid().as_raw_pid()]).collect()
}

/// Sends a signal to the descendants of this process that belong to `session`.
pub(crate) fn signal_session(session: Pid, signal: Signal) {
    let tree = descendants();
    let members = members(&tree);
    for process in tree
        .iter()
        .filter(|process| process.session == session.as_raw_pid())
    {
        process.signal(signal, &members);
    }
}

/// Kills the descendants of this process, except for `spared` and their descendants, and returns them. A process that
/// was created meanwhile may have escaped, so callers repeat it until they have no child.
///
/// They are stopped first, so that they neither fork nor notice the deaths of others.
pub(crate) fn kill_descendants(spared: &HashSet<Pid>) -> Vec<Process> {
    let mut stopped: HashMap<Pid, Process> = HashMap::new();
    for _ in 0..STOP_PASSES {
        let mut tree = descendants_except(spared);
        let members = members(&tree);
        tree.retain(|process| !stopped.contains_key(&process.pid));
        if tree.is_empty() {
            break;
        }
        for process in tree {
            process.signal(Signal::STOP, &members);
            stopped.insert(process.pid, process);
        }
    }
    let members = members(stopped.values());
    let killed: Vec<_> = stopped.into_values().collect();
    for process in &killed {
        process.signal(Signal::KILL, &members);
    }
    killed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        let pid = Pid::from_raw(pid).expect("positive");
        Process {
            pid,
            parent,
            session: 1,
            zombie: false,
            name: format!("p{}", pid.as_raw_pid()),
        }
    }

    fn pids(of: &[i32]) -> HashSet<Pid> {
        of.iter().filter_map(|pid| Pid::from_raw(*pid)).collect()
    }

    #[test]
    fn the_name_of_a_process_may_look_like_other_fields() {
        let parsed = Process::parse("42 (a) S 1 (b) Z 7 8 9 0 -1 4194560").expect("valid");
        assert_eq!(parsed.name, "a) S 1 (b");
        assert_eq!(parsed.pid.as_raw_pid(), 42);
        assert_eq!((parsed.parent, parsed.session, parsed.zombie), (7, 9, true));
    }

    #[test]
    fn a_truncated_line_is_no_process() {
        for line in [
            "",
            "42",
            "42 (a",
            "42 (a) S",
            "42 (a) S 7 8",
            "0 (a) S 7 8 9",
            "x (a) S 7 8 9",
        ] {
            assert_eq!(Process::parse(line), None, "{line}");
        }
    }

    #[test]
    fn descendants_exclude_spared_processes_and_theirs() {
        let all = [
            (9, 4),
            (2, 1),
            (3, 2),
            (4, 3),
            (5, 2),
            (6, 5),
            (7, 1),
            (8, 7),
        ];
        let all = all.map(|(pid, parent)| process(pid, parent)).to_vec();
        let root = Pid::from_raw(2).expect("positive");
        let found: HashSet<_> = select(all, root, &pids(&[5]))
            .into_iter()
            .map(|process| process.pid)
            .collect();
        assert_eq!(found, pids(&[3, 4, 9]));
    }
}
