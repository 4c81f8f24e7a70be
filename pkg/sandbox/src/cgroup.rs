//! Control groups: one for each command, below the group that this process is in.
//!
//! ```text
//! own group ── gorego-<pid>-<time> ──┬─ <number>: the processes of a command
//!                                    └─ ...
//! ```
//!
//! A group that a command left as good as new is used again ([`Group::end`]): to create and remove one takes longer
//! than a small command. The launcher locks the middle group for as long as it lives. The next launcher removes the
//! groups that no launcher locks.

mod place;
mod remove;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

use std::{
    cell::Cell,
    fmt::Debug,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process,
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, WaitOptions, waitpid},
};

use self::{
    place::Places,
    remove::{remove, remove_leftovers, retire},
};
use crate::{Limits, fork};

/// The beginning of the names of the groups that hold those of commands.
const PREFIX: &str = "gorego-";

/// The end of the name of a group for gorego itself. Its processes are never killed.
const SERVER: &str = ".server";

/// The most memory that may be left in a group that is kept, in bytes.
const MAX_LEFT: u64 = 16 << 20;

/// The most bytes of a file of a group that is read for numbers.
const LARGEST: usize = 4096;

/// The most tries to create and lock a group, which another launcher may take for a leftover in between.
const TRIES: u32 = 3;

/// One version of the kernel's interface. `dirs` are the directories of a group, one for each hierarchy.
trait Version: Debug {
    /// Returns the name for users.
    fn name(&self) -> &'static str;

    /// Limits the memory in bytes and the number of processes, where given.
    fn limit(
        &self,
        dirs: &[PathBuf],
        memory: Option<u64>,
        processes: Option<u64>,
    ) -> io::Result<()>;

    /// Makes a lack of memory kill all processes of a group, if the kernel can do that.
    fn kill_together(&self, dirs: &[PathBuf]);

    /// Returns the name of the file to which a process writes `0` to enter.
    fn entry(&self) -> &'static str;

    /// Kills the processes of a group, if the kernel can do that at once.
    fn kill(&self, dirs: &[PathBuf]);

    /// Returns what the processes of a group used. Files that cannot be read are ignored.
    fn consumption(&self, dirs: &[PathBuf]) -> Consumption;

    /// Returns whether a group can measure one command after another.
    fn is_reusable(&self) -> bool;

    /// Prepares a group for another command. Returns whether it can be: it exists, has no process, and of what it
    /// measured ([`Consumption`]) nothing is left but what [`Consumption::is_ordinary`] permits.
    fn reset(&self, dirs: &[PathBuf]) -> bool;
}

/// The resources that the processes of a group used.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Consumption {
    /// The greatest memory at one time, with cached files, in bytes.
    pub(crate) peak: u64,
    /// The memory that is left, in bytes: cached files, once the processes are dead.
    pub(crate) left: u64,
    /// The number of processes that the kernel killed for lack of memory.
    pub(crate) oom_kills: u64,
    /// The number of processes that could not be created because of the limit.
    pub(crate) refused_processes: u64,
    /// The processor time outside and in the kernel.
    pub(crate) processor: Option<(Duration, Duration)>,
    /// The bytes read from disks and written to them.
    pub(crate) transferred: Option<(u64, u64)>,
}

impl Consumption {
    /// Returns whether a group with this consumption, once prepared, measures another command as a new group would.
    fn is_ordinary(&self) -> bool {
        self.left <= MAX_LEFT && self.oom_kills == 0 && self.refused_processes == 0
    }
}

/// The groups of the commands of one launcher. They are removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Groups {
    version: &'static dyn Version,
    /// The group that holds them, in each hierarchy.
    dirs: Vec<PathBuf>,
    /// The memory of all of them together, in bytes.
    memory: u64,
    /// The locks of that group, and of others that the launcher created.
    locks: Vec<Locked>,
}

impl Groups {
    /// Finds the control groups that this process can use, by trying. All commands together may use `memory` bytes.
    /// Returns the cause, a clause, if there are none.
    pub(crate) fn find(memory: u64) -> Result<Self, String> {
        let places = Places::read().map_err(|error| format!("/proc cannot be read: {error}"))?;
        let mut groups = match v2::open(&places) {
            Ok(groups) => groups,
            Err(why) => v1::open(&places).map_err(|first| first.unwrap_or(why))?,
        };
        groups.memory = memory;
        let limited = groups.version.limit(&groups.dirs, Some(memory), None);
        limited.map_err(|error| format!("memory cannot be limited: {error}"))?;
        groups
            .try_out()
            .map_err(|error| format!("no process can be moved: {error}"))?;
        Ok(groups)
    }

    /// Creates the groups that hold those of commands, below `dirs`, in which leftovers are removed.
    fn create_below(version: &'static dyn Version, dirs: &[PathBuf]) -> io::Result<Self> {
        for dir in dirs {
            remove_leftovers(dir);
        }
        let mut groups = Self {
            version,
            dirs: Vec::new(),
            memory: u64::MAX,
            locks: Vec::new(),
        };
        for dir in dirs {
            let locked = Locked::create(dir, "")?;
            groups.dirs.push(locked.path.clone());
            groups.locks.push(locked);
        }
        Ok(groups)
    }

    /// Moves a process into a group and ends it.
    fn try_out(&self) -> io::Result<()> {
        let limits = Limits {
            processes: Some(1),
            ..Limits::default()
        };
        let group = self.create(0, &limits, false)?;
        let entry = group.entry()?;
        let child = fork::fork(|| entry.enter())?;
        let ended = waitpid(Some(child), WaitOptions::empty())?;
        match ended.and_then(|(_, status)| status.exit_status()) {
            Some(0) => Ok(()),
            _ => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
        }
    }

    /// Returns the name of the version.
    pub(crate) fn version(&self) -> &'static str {
        self.version.name()
    }

    /// Creates a group for a command, with limits as given, or takes the one that was kept under this name. No living
    /// supervisor has one of the same name. It is kept again only if the command `is_bound`: it cannot write to the
    /// files of the group.
    pub(crate) fn create(&self, name: u32, limits: &Limits, is_bound: bool) -> io::Result<Group> {
        // The limit of all holds anyway.
        let memory = limits.memory.filter(|memory| *memory < self.memory);
        let name = name.to_string();
        let group = Group {
            version: self.version,
            dirs: self.dirs.iter().map(|dir| dir.join(&name)).collect(),
            is_bound,
            // The next command would inherit limits, or lack them.
            may_keep: is_bound
                && self.version.is_reusable()
                && memory.is_none()
                && limits.processes.is_some(),
            is_kept: Cell::new(false),
        };
        // Fails if there is none.
        if !self.version.reset(&group.dirs) {
            for dir in &group.dirs {
                remove(dir)?;
                fs::create_dir(dir)?;
            }
            self.version.kill_together(&group.dirs);
        }
        self.version.limit(&group.dirs, memory, limits.processes)?;
        Ok(group)
    }

    /// Kills the processes of a command's group that its supervisor did not remove, and removes it.
    pub(crate) fn discard(&self, name: u32) {
        for dir in self.dirs.iter().map(|dir| dir.join(name.to_string())) {
            if dir.exists() {
                // What cannot be removed now is removed by the next launcher.
                let _ = remove(&dir);
            }
        }
    }
}

/// The group of a command. It is removed when this is dropped, unless it is kept.
#[derive(Debug)]
pub(crate) struct Group {
    version: &'static dyn Version,
    dirs: Vec<PathBuf>,
    is_bound: bool,
    may_keep: bool,
    is_kept: Cell<bool>,
}

impl Group {
    /// Opens the way into the group.
    pub(crate) fn entry(&self) -> io::Result<Entry> {
        let name = self.version.entry();
        let files = self.dirs.iter().map(|dir| open_to_write(dir, name));
        Ok(Entry(files.collect::<Result<_, _>>()?))
    }

    /// Kills the processes, if the kernel can do that at once.
    pub(crate) fn kill(&self) {
        self.version.kill(&self.dirs);
    }

    /// Returns what the processes used.
    pub(crate) fn consumption(&self) -> Consumption {
        self.version.consumption(&self.dirs)
    }

    /// Returns the processes, as far as none can have left the group.
    pub(crate) fn processes(&self) -> Option<Vec<Pid>> {
        let file = self.dirs.last().filter(|_| self.is_bound)?;
        let processes = fs::read_to_string(file.join("cgroup.procs")).ok()?;
        let pids = processes.lines().filter_map(|pid| pid.parse().ok());
        Some(pids.filter_map(Pid::from_raw).collect())
    }

    /// Returns what the processes used, after their end. From now on the group is kept if it may be, and if what is left
    /// does not matter to another command.
    pub(crate) fn end(&self) -> Consumption {
        let used = self.consumption();
        self.is_kept.set(self.may_keep && used.is_ordinary());
        used
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.is_kept.get() {
            return;
        }
        for dir in &self.dirs {
            // What cannot be removed now is removed by the launcher, or by the next one.
            let _ = remove(dir);
        }
    }
}

/// The way into a group, for the process that inherits it.
#[derive(Debug)]
pub(crate) struct Entry(Vec<File>);

impl Entry {
    /// Moves this process into the group. It has one thread.
    pub(crate) fn enter(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|mut file| file.write_all(b"0"))
    }
}

/// A group that belongs to this launcher, in one hierarchy. It is removed when this is dropped.
#[derive(Debug)]
struct Locked {
    path: PathBuf,
    _lock: File,
}

impl Locked {
    /// Creates a group below `dir`.
    fn create(dir: &Path, suffix: &str) -> io::Result<Self> {
        let mut tries = 0;
        loop {
            tries += 1;
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            let (pid, time) = (process::id(), since.unwrap_or_default().as_nanos());
            let path = dir.join(format!("{PREFIX}{pid}-{time:x}{suffix}"));
            fs::create_dir(&path)?;
            match lock(&path) {
                Ok(lock) => return Ok(Self { path, _lock: lock }),
                Err(_) if tries < TRIES => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        retire(&self.path);
    }
}

/// Locks a directory, unless it is locked or was removed.
fn lock(path: &Path) -> io::Result<File> {
    let dir = File::open(path)?;
    flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
    if fs::metadata(path)?.ino() == dir.metadata()?.ino() {
        Ok(dir)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

fn open_to_write(dir: &Path, name: &str) -> io::Result<File> {
    File::options().write(true).open(dir.join(name))
}

fn write(dir: &Path, name: &str, value: &impl ToString) -> io::Result<()> {
    open_to_write(dir, name)?.write_all(value.to_string().as_bytes())
}

/// Returns the content of a small file of a group, which one call reads.
fn read(dir: &Path, name: &str) -> io::Result<String> {
    let mut content = [0; LARGEST];
    let length = File::open(dir.join(name))?.read(&mut content)?;
    let content = content.get(..length).unwrap_or_default();
    Ok(String::from_utf8_lossy(content).into_owned())
}

/// Returns the number in a file, or in the lines `key number` of it, 0 if there is none.
fn number(dir: &Path, name: &str, key: Option<&str>) -> u64 {
    let text = read(dir, name).unwrap_or_default();
    find(&text, key).unwrap_or_default()
}

fn find(text: &str, key: Option<&str>) -> Option<u64> {
    let Some(key) = key else {
        return text.trim().parse().ok();
    };
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    let (_, value) = lines.find(|(name, _)| *name == key)?;
    value.trim().parse().ok()
}
