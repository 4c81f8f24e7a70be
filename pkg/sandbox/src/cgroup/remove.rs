//! The removal of groups, and of those that dead launchers left.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{PREFIX, SERVER, lock, write};

/// The most tries to remove a group. Processes that were killed leave it after a moment.
const TRIES: u32 = 8;
/// The time after the first try, which doubles.
const PAUSE: Duration = Duration::from_millis(1);
/// The most levels of groups below one that is removed; an action of root can create groups.
const DEPTH: u32 = 8;

/// Removes a group and those below it, after their processes were killed.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    remove_within(dir, DEPTH)
}

fn remove_within(dir: &Path, depth: u32) -> io::Result<()> {
    let mut pause = PAUSE;
    for _ in 1..TRIES {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => return removed,
        }
        if depth > 0 {
            children(dir)
                .iter()
                .try_for_each(|child| remove_within(child, depth - 1))?;
        }
        kill(dir);
        thread::sleep(pause);
        pause *= 2;
    }
    fs::remove_dir(dir)
}

/// Removes the groups below `dir` whose launchers have died.
pub(super) fn remove_leftovers(dir: &Path) {
    let is_ours = |dir: &&PathBuf| {
        let name = dir.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with(PREFIX)
    };
    for leftover in children(dir).iter().filter(is_ours) {
        // A living launcher holds the lock.
        if let Ok(_lock) = lock(leftover) {
            retire(leftover);
        }
    }
}

/// Removes a group of a launcher that ends, as far as possible. The server may outlive its launcher.
pub(super) fn retire(dir: &Path) {
    let _ = if dir.to_string_lossy().ends_with(SERVER) {
        fs::remove_dir(dir)
    } else {
        remove(dir)
    };
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path()).collect()
}

fn kill(dir: &Path) {
    if write(dir, "cgroup.kill", &1).is_ok() {
        return;
    }
    let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in pids
        .lines()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
    {
        let _ = kill_process(pid, Signal::KILL);
    }
}
