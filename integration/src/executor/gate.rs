//! Control over running scripts from outside, and a view of their processes.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// The longest wait for a condition; far more than it needs, so that only one that never comes true fails.
const PATIENCE: Duration = Duration::from_mins(1);
/// The interval between two checks of a condition.
const POLL: Duration = Duration::from_millis(5);

/// Waits until `is_met`. Panics after a minute. Blocks the thread.
pub fn wait_until(what: &str, mut is_met: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_met() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        thread::sleep(POLL);
    }
}

/// Returns the ids of the processes with `part` in an argument.
pub fn processes_with(part: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        // A process may have ended meanwhile.
        let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(part)
    })
    .collect()
}

/// A directory outside of actions, through which scripts report their starts and wait to continue.
#[derive(Debug)]
pub struct Gate {
    dir: TempDir,
    tokens: File,
}

impl Gate {
    /// Creates a closed gate.
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        for name in ["tokens", "never"] {
            let made = Command::new("mkfifo").arg(dir.path().join(name)).status();
            assert!(made.expect("mkfifo starts").success());
        }
        // Opened to read too, so that the pipe exists without readers.
        let path = dir.path().join("tokens");
        let tokens = OpenOptions::new().read(true).write(true).open(path);
        Self {
            dir,
            tokens: tokens.expect("a pipe that was just created"),
        }
    }

    /// Returns a path in the directory, for scripts.
    pub fn path(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        path.to_str().expect("the path is UTF-8").to_owned()
    }

    /// Returns a script that reports its start.
    pub fn report(&self) -> String {
        format!("echo started >>{}", self.path("started"))
    }

    /// Returns a script that reports its start and waits for `open`.
    pub fn pass(&self) -> String {
        format!("{}; read line <{}", self.report(), self.path("tokens"))
    }

    /// Returns a script that starts a process in another session, which never ends by itself.
    pub fn background(&self) -> String {
        // Opening a pipe without a writer blocks.
        format!("setsid cat {} &", self.path("never"))
    }

    /// Lets one script continue.
    pub fn open(&mut self) {
        self.tokens.write_all(b"\n").expect("a pipe with room");
    }

    /// Returns the number of reported starts.
    pub fn starts(&self) -> usize {
        let started = fs::read_to_string(self.path("started"));
        started.unwrap_or_default().lines().count()
    }

    /// Waits until this many scripts have started.
    pub fn wait_for_starts(&self, count: usize) {
        let what = format!("{count} starts");
        wait_until(&what, || self.starts() >= count);
    }

    /// Waits until the process of `background` runs.
    pub fn wait_for_background(&self) {
        let never = self.path("never");
        wait_until("the process in the background", || {
            let is_cat = |id: &u32| {
                let name = fs::read_to_string(format!("/proc/{id}/comm"));
                name.unwrap_or_default().trim() == "cat"
            };
            processes_with(&never).iter().any(is_cat)
        });
    }

    /// Waits until no process of the scripts is left.
    pub fn wait_for_end_of_processes(&self) {
        let dir = self.dir.path().to_str().expect("the path is UTF-8");
        wait_until("the end of all processes", || {
            processes_with(dir).is_empty()
        });
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns the names in a directory, sorted; none if it does not exist.
pub fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
