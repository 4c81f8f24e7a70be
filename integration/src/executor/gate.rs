//! Control over running scripts from outside, and a view of their processes.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions, Permissions},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::OFlags,
    io::Errno,
    process::{Pid, Signal, kill_process},
};
use tempfile::TempDir;

/// The longest wait for a condition; far more than it needs, so that only one that never comes true fails.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);
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

/// Returns the ids of the descendants of a process with this name.
pub fn descendants(of: u32, name: &str) -> Vec<u32> {
    let mut children = HashMap::<u32, Vec<(u32, String)>>::new();
    for id in processes_with("") {
        // The process may have ended meanwhile.
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let value = |field: &str| status.lines().find_map(|line| line.strip_prefix(field));
        let parent = value("PPid:").and_then(|parent| parent.trim().parse().ok());
        if let (Some(parent), Some(name)) = (parent, value("Name:")) {
            let child = (id, name.trim().to_owned());
            children.entry(parent).or_default().push(child);
        }
    }
    let mut found = Vec::new();
    let mut parents = vec![of];
    while let Some(parent) = parents.pop() {
        for (id, its_name) in children.remove(&parent).unwrap_or_default() {
            parents.push(id);
            found.extend((its_name == name).then_some(id));
        }
    }
    found
}

/// Kills the only descendant of a process with this name.
pub fn kill_descendant(of: u32, name: &str) {
    // A process that was just forked has the name of its parent, and one that was killed has its own until it is reaped.
    wait_until(&format!("one {name}"), || {
        let [found] = descendants(of, name)[..] else {
            return false;
        };
        let helper = Pid::from_raw(found.cast_signed()).expect("no process has the id 0");
        match kill_process(helper, Signal::KILL) {
            // It has ended meanwhile.
            Err(Errno::SRCH) => false,
            killed => killed.map(|()| true).expect("an own process"),
        }
    });
}

/// A directory outside of actions, through which scripts report their starts and wait to continue.
///
/// Isolated scripts see it, too. They cannot write files there, but into its pipes.
#[derive(Debug)]
pub struct Gate {
    dir: TempDir,
    tokens: File,
    started: File,
    /// The number of reports that were read.
    starts: AtomicUsize,
}

impl Gate {
    /// Creates a closed gate.
    pub fn new() -> Self {
        // Isolated actions have a `/tmp` of their own.
        let dir = TempDir::new_in("/var/tmp").expect("a temporary directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("an own directory");
        for name in ["tokens", "never", "started"] {
            let mut command = Command::new("mkfifo");
            let made = command.arg("--mode=666").arg(dir.path().join(name));
            assert!(made.status().expect("mkfifo starts").success());
        }
        let open = |name| {
            // To read and to write, so that the pipe exists without its other end.
            let mut options = OpenOptions::new();
            options.read(true).write(true);
            options.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
            options
                .open(dir.path().join(name))
                .expect("a pipe that was just created")
        };
        Self {
            tokens: open("tokens"),
            started: open("started"),
            dir,
            starts: AtomicUsize::new(0),
        }
    }

    /// Returns a path in the directory, for scripts.
    pub fn path(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        path.to_str().expect("the path is UTF-8").to_owned()
    }

    /// Returns a script that reports its start.
    pub fn report(&self) -> String {
        format!("echo started >{}", self.path("started"))
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
        self.open_with("");
    }

    /// Lets this many scripts continue.
    pub fn open_for(&mut self, count: usize) {
        for _ in 0..count {
            self.open();
        }
    }

    /// Lets one script continue, with a word that the script has in its variable `line`.
    pub fn open_with(&mut self, word: &str) {
        let token = format!("{word}\n");
        let written = self.tokens.write_all(token.as_bytes());
        written.expect("a pipe with room");
    }

    /// Returns the number of reported starts.
    pub fn starts(&self) -> usize {
        let mut reports = [0; 4096];
        loop {
            match (&self.started).read(&mut reports) {
                Ok(size) => {
                    let more = reports[..size].iter().filter(|byte| **byte == b'\n');
                    self.starts.fetch_add(more.count(), Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("reading reports: {error}"),
            }
        }
        self.starts.load(Relaxed)
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
