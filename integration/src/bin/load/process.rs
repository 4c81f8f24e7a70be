//! CPU time and memory of a server's process.

use std::{collections::HashMap, fs, time::Duration};

use crate::error::Error;

/// A process of the same user.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    ticks_per_second: u64,
}

impl Process {
    /// Opens the running process `pid`.
    pub(crate) fn open(pid: u32) -> Result<Self, Error> {
        let process = Self {
            pid,
            ticks_per_second: rustix::param::clock_ticks_per_second(),
        };
        process.cpu()?;
        process.reset_peak_memory()?;
        Ok(process)
    }

    /// Returns the user and system CPU time of all threads and of the processes that it started, including ended ones.
    ///
    /// Times are multiples of a tick, usually 10 ms, and rounded down.
    pub(crate) fn cpu(&self) -> Result<Duration, Error> {
        let own = self.field("stat", "CPU times", Times::parse)?;
        let mut parents = HashMap::<_, Vec<_>>::new();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = process
                .file_name()
                .to_str()
                .and_then(|pid| pid.parse::<u32>().ok());
            // Others may end meanwhile.
            let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            if let Some((pid, times)) = pid.zip(Times::parse(&stat)) {
                parents.entry(times.parent).or_default().push((pid, times));
            }
        }
        let mut ticks = own.own + own.children;
        let mut family = vec![self.pid];
        while let Some(parent) = family.pop() {
            for (pid, times) in parents.remove(&parent).unwrap_or_default() {
                family.push(pid);
                ticks += times.own + times.children;
            }
        }
        Ok(self.duration(ticks))
    }

    /// Returns the CPU time of the processes that it started and that ended.
    pub(crate) fn children_cpu(&self) -> Result<Duration, Error> {
        let times = self.field("stat", "CPU times", Times::parse)?;
        Ok(self.duration(times.children))
    }

    fn duration(&self, ticks: u64) -> Duration {
        Duration::from_secs(ticks) / u32::try_from(self.ticks_per_second).unwrap_or(u32::MAX)
    }

    /// Returns the peak resident memory since the last reset, in bytes.
    pub(crate) fn peak_memory(&self) -> Result<u64, Error> {
        self.field("status", "VmHWM", |status| bytes(status, "VmHWM:"))
    }

    /// Returns the current resident memory, in bytes.
    pub(crate) fn memory(&self) -> Result<u64, Error> {
        self.field("status", "VmRSS", |status| bytes(status, "VmRSS:"))
    }

    /// Resets [`Self::peak_memory`] to the current resident memory.
    pub(crate) fn reset_peak_memory(&self) -> Result<(), Error> {
        let path = self.path("clear_refs");
        fs::write(&path, "5").map_err(|source| Error::Process { path, source })
    }

    /// Returns the CPU time since `before`, or an error if the process used none.
    pub(crate) fn cpu_since(&self, before: Duration) -> Result<Duration, Error> {
        let spent = self.cpu()?.saturating_sub(before);
        if spent.is_zero() {
            return Err(Error::Idle(self.pid));
        }
        Ok(spent)
    }

    fn path(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.pid)
    }

    fn field<T>(
        &self,
        file: &str,
        field: &'static str,
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<T, Error> {
        let path = self.path(file);
        match fs::read_to_string(&path) {
            Ok(text) => find(&text).ok_or(Error::Accounting { path, field }),
            Err(source) => Err(Error::Process { path, source }),
        }
    }
}

/// The parent and the CPU times of a process, in ticks.
#[derive(Debug, Eq, PartialEq)]
struct Times {
    parent: u32,
    own: u64,
    /// The time of the children that ended and were waited for.
    children: u64,
}

impl Times {
    /// Parses `/proc/PID/stat`. The command may contain spaces and brackets; the last bracket ends it.
    fn parse(stat: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace().skip(1);
        let parent = fields.next()?.parse().ok()?;
        let mut times = fields.skip(9).map(str::parse::<u64>);
        let mut sum = || Some(times.next()?.ok()? + times.next()?.ok()?);
        Some(Self {
            parent,
            own: sum()?,
            children: sum()?,
        })
    }
}

/// Parses a field of `/proc/PID/status`, given in KiB, to bytes.
fn bytes(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::{hint, process, thread, time::Instant};

    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    #[test]
    fn cpu_times_are_found_after_any_command() {
        let fields = "S 1556 1540 1540 0 -1 4194560 1505 0 35 0 4 6 2 5 20 0 19 0 413071";
        for command in ["server", "a b", "a) S 1 2", ") 1 (2"] {
            let stat = format!("1574 ({command}) {fields}\n");
            let found = Times::parse(&stat).unwrap();
            let expected = Times {
                parent: 1556,
                own: 10,
                children: 7,
            };
            assert_eq!(found, expected, "{command}");
        }
        assert_eq!(Times::parse("1574 (server) S 1 2 3"), None);
        assert_eq!(Times::parse(""), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\ta\nVmPeak:\t    9 kB\nVmHWM:\t   24292 kB\nVmRSS:\t   1 kB\n";
        assert_eq!(bytes(status, "VmHWM:"), Some(24292 * 1024));
        assert_eq!(bytes(status, "VmRSS:"), Some(1024));
        assert_eq!(bytes("Name:\tkthreadd\n", "VmHWM:"), None);
    }

    #[test]
    fn cpu_time_includes_ended_threads() {
        let process = Process::open(process::id()).unwrap();
        let before = process.cpu().unwrap();
        let started = Instant::now();
        let busy = thread::spawn(|| {
            while clock_gettime(ClockId::ThreadCPUTime).tv_nsec < 100_000_000 {
                hint::spin_loop();
            }
        });
        busy.join().unwrap();
        let spent = process.cpu_since(before).unwrap();
        let two_ticks = Duration::from_millis(20);
        let cores = u32::try_from(thread::available_parallelism().unwrap().get()).unwrap();
        assert!(spent + two_ticks >= Duration::from_millis(100), "{spent:?}");
        assert!(spent <= started.elapsed() * cores + two_ticks, "{spent:?}");
    }

    #[test]
    fn a_process_without_cpu_time_is_refused() {
        let process = Process::open(process::id()).unwrap();
        let later = process.cpu().unwrap() + Duration::from_hours(1);
        assert!(matches!(process.cpu_since(later), Err(Error::Idle(_))));
    }

    #[test]
    fn a_reset_lowers_the_peak_memory() {
        let process = Process::open(process::id()).unwrap();
        let (size, margin) = (64 << 20, 32 << 20);
        let held = hint::black_box(vec![1_u8; size]);
        let with = process.peak_memory().unwrap();
        drop(held);
        process.reset_peak_memory().unwrap();
        let without = process.peak_memory().unwrap();
        assert!(with > without + margin, "{with} then {without}");
    }

    #[test]
    fn the_error_of_a_missing_process_names_its_file() {
        let error = Process::open(u32::MAX).unwrap_err().to_string();
        assert!(error.contains("/proc/4294967295/stat"), "{error}");
    }
}
