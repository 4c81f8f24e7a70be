//! The processes of the system, which the launcher reads for all supervisors where no control group lists those of a
//! command: each read of `/proc` takes milliseconds.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt as _,
    },
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::{Pid, getpid},
};

use crate::live::Processes;

/// A list of processes in memory that the launcher shares with supervisors. A line is a pid, that of the parent, and
/// the resident memory in bytes, in columns of a fixed width: a reader may see a mixture of two lists, whose lines are
/// lines of one of them then, or nearly.
#[derive(Debug)]
pub(crate) struct Snapshot(File);

impl Snapshot {
    /// Creates an empty list.
    pub(crate) fn create() -> io::Result<Self> {
        Ok(Self(
            memfd_create(c"gorego-processes", MemfdFlags::CLOEXEC)?.into(),
        ))
    }

    /// Replaces the list by that of all processes now.
    pub(crate) fn update(&self) -> io::Result<()> {
        let processes = Processes::read();
        let lines = processes
            .resident()
            .map(|(pid, parent, resident)| format!("{pid:>10} {parent:>10} {resident:>20}\n"));
        let list: String = lines.collect();
        self.0.write_all_at(list.as_bytes(), 0)?;
        self.0.set_len(list.len() as u64)
    }

    /// Returns the descendants of this process, with their resident memory in bytes.
    pub(crate) fn descendants(&self) -> io::Result<Vec<(Pid, u64)>> {
        let length = self.0.metadata()?.len();
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        let read = self.0.read_at(&mut bytes, 0)?;
        let list = String::from_utf8_lossy(bytes.get(..read).unwrap_or_default());
        Ok(select(&list, getpid()))
    }
}

impl AsFd for Snapshot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns the descendants of a process in a list.
fn select(list: &str, root: Pid) -> Vec<(Pid, u64)> {
    let mut children: HashMap<i32, Vec<(i32, u64)>> = HashMap::new();
    let parse = |line: &str| {
        let mut columns = line.split_ascii_whitespace();
        let (pid, parent) = (columns.next()?, columns.next()?);
        let process = (pid.parse().ok()?, columns.next()?.parse().ok()?);
        Some((parent.parse().ok()?, process))
    };
    for (parent, process) in list.lines().filter_map(parse) {
        children.entry(parent).or_default().push(process);
    }
    let mut seen = HashSet::new();
    let mut selected = Vec::new();
    let mut parents = vec![root.as_raw_pid()];
    while let Some(parent) = parents.pop() {
        for (pid, resident) in children.remove(&parent).unwrap_or_default() {
            if let Some(known) = Pid::from_raw(pid).filter(|_| seen.insert(pid)) {
                parents.push(pid);
                selected.push((known, resident));
            }
        }
    }
    selected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_listed_once() {
        let root = Pid::from_raw(2).expect("positive");
        let found = select("2 1 10\n3 2 20\n4 3 30\n3 2 20\n5 1 40\n6 2\n7", root);
        let found: Vec<_> = found
            .into_iter()
            .map(|(pid, resident)| (pid.as_raw_pid(), resident))
            .collect();
        assert_eq!(found, [(3, 20), (4, 30)]);
    }

    #[test]
    fn processes_of_this_one_are_in_the_list() {
        let snapshot = Snapshot::create().expect("a file");
        assert_eq!(snapshot.descendants().expect("read"), []);
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .expect("started");
        snapshot.update().expect("written");
        let found = snapshot.descendants().expect("read");
        child.kill().expect("killed");
        child.wait().expect("ended");
        let id = i32::try_from(child.id()).expect("a pid");
        assert!(found.iter().any(|(pid, _)| pid.as_raw_pid() == id));
        snapshot.update().expect("written");
        let found = snapshot.descendants().expect("read");
        assert!(!found.iter().any(|(pid, _)| pid.as_raw_pid() == id));
    }
}
