//! Version 1: a hierarchy for each controller.

use std::{io, path::PathBuf};

use super::{Consumption, Groups, Version, number, place::Places, read, write};

/// The controllers. The hierarchy of `cpuacct` is not used: the times of processes are known when they have ended, and
/// each hierarchy costs an action 0.1 ms.
const CONTROLLERS: [&str; 2] = ["memory", "pids"];

#[derive(Debug)]
struct V1;

/// Creates groups. Returns the cause, a clause, if that fails; none where the controllers are not of this version.
pub(super) fn open(places: &Places) -> Result<Groups, Option<String>> {
    let dirs = CONTROLLERS.map(|controller| places.dir(Some(controller)));
    let dirs: Option<Vec<_>> = dirs.into_iter().collect();
    let dirs = dirs.ok_or(None)?;
    let groups = Groups::create_below(&V1, &dirs).inspect(|groups| {
        if let Some(of_memory) = groups.dirs.first() {
            // Before Linux 5.11, groups below one do not count for it otherwise.
            let _ = write(of_memory, "memory.use_hierarchy", &1);
        }
    });
    groups.map_err(|error| {
        let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        Some(format!(
            "no group can be created in {}: {error}",
            dirs.join(" and ")
        ))
    })
}

impl Version for V1 {
    fn name(&self) -> &'static str {
        "v1"
    }

    fn limit(
        &self,
        dirs: &[PathBuf],
        memory: Option<u64>,
        processes: Option<u64>,
    ) -> io::Result<()> {
        let [of_memory, of_processes] = dirs else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if let Some(memory) = memory {
            write(of_memory, "memory.limit_in_bytes", &memory)?;
            // Missing where the kernel does not account for swap.
            let _ = write(of_memory, "memory.memsw.limit_in_bytes", &memory);
        }
        processes.map_or(Ok(()), |most| write(of_processes, "pids.max", &most))
    }

    fn kill_together(&self, _dirs: &[PathBuf]) {}

    /// A write of `0` to `tasks` moves the thread itself, without the lock of all forks that `cgroup.procs` takes.
    fn entry(&self) -> &'static str {
        "tasks"
    }

    fn kill(&self, _dirs: &[PathBuf]) {}

    fn consumption(&self, dirs: &[PathBuf]) -> Consumption {
        let [of_memory, of_processes] = dirs else {
            return Consumption::default();
        };
        Consumption {
            peak: number(of_memory, "memory.max_usage_in_bytes", None),
            left: number(of_memory, "memory.usage_in_bytes", None),
            oom_kills: number(of_memory, "memory.oom_control", Some("oom_kill")),
            refused_processes: number(of_processes, "pids.events", Some("max")),
            processor: None,
            transferred: None,
        }
    }

    fn is_reusable(&self) -> bool {
        true
    }

    fn reset(&self, dirs: &[PathBuf]) -> bool {
        let [of_memory, of_processes] = dirs else {
            return false;
        };
        let processes = read(of_processes, "pids.current");
        let is_empty = processes.is_ok_and(|processes| processes.trim() == "0");
        is_empty && write(of_memory, "memory.max_usage_in_bytes", &0).is_ok()
    }
}
