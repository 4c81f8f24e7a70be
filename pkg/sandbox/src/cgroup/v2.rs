//! Version 2: one hierarchy. Its groups hold either processes or other groups, so that gorego moves into a group of its
//! own first.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use rustix::process::getppid;

use super::{Consumption, Groups, Locked, SERVER, Version, find, number, place::Places, write};

/// The controllers that are needed, and those that are used where they exist.
const NEEDED: [&str; 2] = ["memory", "pids"];
const WELCOME: [&str; 2] = ["cpu", "io"];

#[derive(Debug)]
pub(super) struct V2;

/// Creates groups. Returns the cause, a clause, if that fails.
pub(super) fn open(places: &Places) -> Result<Groups, String> {
    let own = places.dir(None).ok_or("none are mounted")?;
    open_below(&own)
}

/// Creates groups below `own`, the group that this process and its parent are in.
pub(super) fn open_below(own: &Path) -> Result<Groups, String> {
    let name = own.display();
    let controllers = fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
    let has = |needed: &&str| controllers.split_whitespace().any(|one| one == *needed);
    if let Some(missing) = NEEDED.iter().find(|needed| !has(needed)) {
        return Err(format!("{name} has no controller {missing}"));
    }
    let dirs = [own.to_owned()];
    let groups = Groups::create_below(&V2, &dirs)
        .map_err(|error| format!("no group can be created in {name}: {error}"));
    let mut groups = groups?;
    if enable(own).is_err() {
        let server = make_way(own).map_err(|error| {
            format!(
                "{name} cannot be divided: {error}; start gorego in a group of its own that is delegated to it \
                 (systemd-run --scope -p Delegate=yes)"
            )
        });
        groups.locks.push(server?);
    }
    let enabled = groups.dirs.iter().try_for_each(|dir| enable(dir));
    enabled.map_err(|error| format!("{name} cannot be divided further: {error}"))?;
    Ok(groups)
}

/// Gives the groups below `dir` the controllers.
fn enable(dir: &Path) -> io::Result<()> {
    let add = |controller| write(dir, "cgroup.subtree_control", &format!("+{controller}"));
    NEEDED.into_iter().try_for_each(add)?;
    for controller in WELCOME {
        // Without it, some numbers are not known.
        let _ = add(controller);
    }
    Ok(())
}

/// Moves this process and its parent, the server, from `own` into a group below it. If others are left there, moves
/// back and fails.
fn make_way(own: &Path) -> io::Result<Locked> {
    let server = Locked::create(own, SERVER)?;
    let parent = getppid().map(|pid| pid.as_raw_pid().unsigned_abs());
    let pids = [Some(process::id()), parent].into_iter().flatten();
    let move_to = |dir: &Path| {
        let mut pids = pids.clone();
        pids.try_for_each(|pid| write(dir, "cgroup.procs", &pid))
    };
    let moved = move_to(&server.path).and_then(|()| enable(own));
    if let Err(error) = moved {
        let _ = move_to(own);
        return Err(error);
    }
    Ok(server)
}

impl Version for V2 {
    fn name(&self) -> &'static str {
        "v2"
    }

    fn limit(
        &self,
        dirs: &[PathBuf],
        memory: Option<u64>,
        processes: Option<u64>,
    ) -> io::Result<()> {
        for dir in dirs {
            if let Some(memory) = memory {
                write(dir, "memory.max", &memory)?;
                // Missing where the kernel has no swap.
                let _ = write(dir, "memory.swap.max", &0);
            }
            if let Some(processes) = processes {
                write(dir, "pids.max", &processes)?;
            }
        }
        Ok(())
    }

    fn kill_together(&self, dirs: &[PathBuf]) {
        for dir in dirs {
            // Missing before Linux 4.19.
            let _ = write(dir, "memory.oom.group", &1);
        }
    }

    fn entry(&self) -> &'static str {
        "cgroup.procs"
    }

    fn kill(&self, dirs: &[PathBuf]) {
        for dir in dirs {
            // Missing before Linux 5.14; the processes are killed one by one then.
            let _ = write(dir, "cgroup.kill", &1);
        }
    }

    fn consumption(&self, dirs: &[PathBuf]) -> Consumption {
        let [dir] = dirs else {
            return Consumption::default();
        };
        let times = fs::read_to_string(dir.join("cpu.stat")).unwrap_or_default();
        let time = |key| Some(Duration::from_micros(find(&times, Some(key))?));
        let left = number(dir, "memory.current", None);
        Consumption {
            // Missing before Linux 5.19.
            peak: number(dir, "memory.peak", None).max(left),
            left,
            oom_kills: number(dir, "memory.events", Some("oom_kill")),
            refused_processes: number(dir, "pids.events", Some("max")),
            processor: time("user_usec").zip(time("system_usec")),
            transferred: fs::read_to_string(dir.join("io.stat"))
                .ok()
                .map(|text| (sum(&text, "rbytes="), sum(&text, "wbytes="))),
        }
    }

    /// Processor time and transfers are those of all processes that were ever in a group.
    fn is_reusable(&self) -> bool {
        false
    }

    fn reset(&self, _dirs: &[PathBuf]) -> bool {
        false
    }
}

/// Returns the sum of the values with this key, of all devices.
fn sum(text: &str, key: &str) -> u64 {
    let values = text
        .split_whitespace()
        .filter_map(|word| word.strip_prefix(key));
    values.filter_map(|value| value.parse::<u64>().ok()).sum()
}
