//! The directory in which actions run, and the directories of actions in it.

mod failed;
mod remove;
#[cfg(test)]
mod tests;
mod trash;

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use gorego_sandbox::Overlay;
use gorego_storage::Error;
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, Stat},
    io::Errno,
};
use tokio::sync::{Mutex, Notify};

use crate::{
    MemoryHistory,
    beneath::{DIRECTORY, io as io_error, make_child, open_child},
    worker::space::Space,
};
pub(crate) use failed::{Failed, space_of};
pub(crate) use remove::remove;
pub use remove::remove_directory;
pub(crate) use trash::Trash;

/// The file that marks a directory as gorego's, and is locked by the process that uses it.
const MARKER: &str = ".gorego-build-root";
/// The files of a [`MemoryHistory`](crate::MemoryHistory), and of a new one that is being written.
const HISTORY: [&str; 2] = [".gorego-memory", ".gorego-memory.new"];
/// The folder of directories that are being deleted.
const TRASH: &str = "trash";
/// The folder of the directories of failed actions.
const FAILED: &str = "failed";
/// The folder of a file system's own, in a directory that is a mount point.
const LOST_AND_FOUND: &str = "lost+found";

/// The mode of the directories of actions: other users have no access.
const PRIVATE: Mode = Mode::RWXU;
const PUBLIC: Mode = Mode::from_bits_retain(0o755);

/// The error of opening a build root.
#[derive(Debug, thiserror::Error)]
#[error("{} {why} (execution.build_root)", dir.display())]
pub struct BuildRootError {
    /// The directory.
    pub dir: PathBuf,
    /// The cause.
    pub why: BuildRootFailure,
}

/// The cause of an error of opening a build root.
#[derive(Debug, thiserror::Error)]
pub enum BuildRootFailure {
    /// The directory holds files, and was not made by gorego. They would be deleted.
    #[error(
        "is not gorego's, yet holds {0:?}, which gorego would delete; empty it or choose another"
    )]
    Foreign(String),
    /// Another process uses the directory.
    #[error("is in use by another gorego")]
    InUse,
    /// Another user owns the directory, and could replace the files of actions.
    #[error("belongs to user {0}; choose a directory of gorego's own user")]
    Untrusted(u32),
    /// The directory cannot be read or written.
    #[error("cannot be used: {0}")]
    Unusable(#[from] Box<Error>),
}

impl From<Error> for BuildRootFailure {
    fn from(error: Error) -> Self {
        Self::Unusable(Box::new(error))
    }
}

/// The directory in which actions run. Its content is deleted at the start.
#[derive(Debug)]
pub(crate) struct BuildRoot {
    path: PathBuf,
    dir: OwnedFd,
    trash: OwnedFd,
    /// Distinguishes the names of this process from those of earlier ones.
    generation: u128,
    next: AtomicU64,
    /// Wakes the deleter.
    dirty: Notify,
    /// Locked by whoever deletes, so that there is one at a time.
    deleting: Mutex<()>,
    /// Locked for as long as this lives.
    _marker: OwnedFd,
}

impl BuildRoot {
    /// Opens the directory, which is created if it is missing, and moves what an earlier process left to the trash.
    /// Refuses a directory with files that is not marked as gorego's. Blocks.
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>, BuildRootError> {
        Self::try_open(path).map(Arc::new).map_err(|why| {
            let dir = path.to_owned();
            BuildRootError { dir, why }
        })
    }

    fn try_open(path: &Path) -> Result<Self, BuildRootFailure> {
        let error = |action| move |error: io::Error| Error::io(action, path, error);
        let mut builder = fs::DirBuilder::new();
        let created = builder.recursive(true).mode(0o711).create(path);
        created.map_err(error("creating"))?;
        // Paths of actions must not depend on the directory in which gorego was started.
        let path = fs::canonicalize(path).map_err(error("resolving"))?;
        let dir = rustix::fs::openat(CWD, &path, DIRECTORY, Mode::empty())
            .map_err(|errno| error("opening")(errno.into()))?;
        check_owner(&rustix::fs::fstat(&dir).map_err(|errno| error("opening")(errno.into()))?)?;
        let names = list(&dir)?;
        let marker = mark(&dir, &names)?;
        match rustix::fs::mkdirat(&dir, TRASH, PRIVATE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(io_error("creating", TRASH)(errno).into()),
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let root = Self {
            trash: open_child(&dir, TRASH).map_err(io_error("opening", TRASH))?,
            path,
            dir,
            generation: since.unwrap_or_default().as_nanos(),
            next: AtomicU64::new(0),
            dirty: Notify::new(),
            deleting: Mutex::default(),
            _marker: marker,
        };
        for name in names {
            if ![MARKER, TRASH, LOST_AND_FOUND, HISTORY[0], FAILED].contains(&&*name) {
                root.discard(&name).map_err(io_error("removing", &name))?;
            }
        }
        root.dirty.notify_one();
        Ok(root)
    }

    /// Returns the free space on the file system and the space of all files on it, in bytes.
    pub(crate) fn space(&self) -> Result<Space, Errno> {
        let system = rustix::fs::fstatvfs(&self.dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(system.f_frsize);
        Ok(Space {
            free: bytes(system.f_bavail),
            total: bytes(system.f_blocks),
        })
    }

    /// Opens the memory that actions used before. Blocks.
    pub(crate) fn history(&self) -> MemoryHistory {
        let [file, new] = HISTORY.map(|name| self.path.join(name));
        MemoryHistory::open(file, new)
    }

    /// Creates the directory of an action, which belongs to `user` if there is one, with those of an overlay if it
    /// `has_overlay`. Blocks.
    pub(crate) fn create(
        self: &Arc<Self>,
        user: Option<u32>,
        has_overlay: bool,
    ) -> Result<ActionDir, Error> {
        let name = self.new_name();
        let make = |at: &OwnedFd, name: &str, mode| make_child(at, name, mode, user);
        let dir = make(&self.dir, &name, PRIVATE).map_err(io_error("creating", &name))?;
        let mut action = ActionDir {
            root: dir
                .try_clone()
                .map_err(|error| Error::io("creating", &name, error))?,
            build_root: Arc::clone(self),
            name,
            dir,
            kept: OnceLock::new(),
        };
        action.root = make(&action.dir, ROOT, PUBLIC).map_err(io_error("creating", ROOT))?;
        make(&action.dir, TMP, PUBLIC).map_err(io_error("creating", TMP))?;
        for name in [UPPER, WORK].into_iter().filter(|_| has_overlay) {
            make(&action.dir, name, PUBLIC).map_err(io_error("creating", name))?;
        }
        Ok(action)
    }

    /// Returns a name that no other file here or in the trash has.
    fn new_name(&self) -> String {
        let number = self.next.fetch_add(1, Relaxed);
        format!("{:x}-{number}", self.generation)
    }

    /// Moves a file or directory to the trash.
    fn discard(&self, name: &str) -> Result<(), Errno> {
        let moved = rustix::fs::renameat(&self.dir, name, &self.trash, self.new_name());
        self.dirty.notify_one();
        moved
    }
}

/// The folder of the input root in an action's directory.
const ROOT: &str = "root";
/// The folder for temporary files in an action's directory.
const TMP: &str = "tmp";
/// The folders of the overlay in an action's directory.
const UPPER: &str = "upper";
const WORK: &str = "work";

/// The directory of an action: its input root, temporary files and logs. Moved to the trash when this is dropped, unless
/// it is kept.
#[derive(Debug)]
pub(crate) struct ActionDir {
    build_root: Arc<BuildRoot>,
    name: String,
    /// The directory itself.
    pub dir: OwnedFd,
    /// The input root.
    pub root: OwnedFd,
    /// The folder that it is moved to instead of the trash, and its bytes.
    kept: OnceLock<(Arc<Failed>, u64)>,
}

impl ActionDir {
    /// Returns the path of the folder for temporary files.
    pub(crate) fn tmp(&self) -> PathBuf {
        self.path(TMP)
    }

    /// Returns the paths of an overlay that the directory was created with.
    pub(crate) fn overlay(&self) -> Overlay {
        Overlay {
            upper: self.path(UPPER),
            work: self.path(WORK),
        }
    }

    /// Opens the upper directory of an overlay that the directory was created with.
    pub(crate) fn upper(&self) -> Result<OwnedFd, Error> {
        open_child(&self.dir, UPPER).map_err(io_error("opening", UPPER))
    }

    /// Returns the path of the directory.
    pub(crate) fn place(&self) -> PathBuf {
        self.build_root.path.join(&self.name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place().join(name)
    }
}

impl Drop for ActionDir {
    fn drop(&mut self) {
        let moved = match self.kept.get() {
            Some((failed, bytes)) => failed.add(&self.build_root, &self.name, *bytes),
            None => self.build_root.discard(&self.name),
        };
        if let Err(error) = moved {
            let (name, root) = (&self.name, self.build_root.path.display());
            tracing::warn!(%error, "failed to remove the directory {name} of an action in {root}");
        }
    }
}

fn check_owner(stat: &Stat) -> Result<(), BuildRootFailure> {
    let own = rustix::process::geteuid().as_raw();
    if [own, 0].contains(&stat.st_uid) {
        return Ok(());
    }
    Err(BuildRootFailure::Untrusted(stat.st_uid))
}

/// Marks a new directory, and locks the mark.
fn mark(dir: &OwnedFd, names: &[String]) -> Result<OwnedFd, BuildRootFailure> {
    let is_marked = names.iter().any(|name| name == MARKER);
    let foreign = names.iter().find(|name| *name != LOST_AND_FOUND);
    if let Some(foreign) = foreign.filter(|_| !is_marked) {
        return Err(BuildRootFailure::Foreign(foreign.clone()));
    }
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let marker = rustix::fs::openat(dir, MARKER, flags, Mode::RUSR | Mode::WUSR)
        .map_err(io_error("creating", MARKER))?;
    match rustix::fs::flock(&marker, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(marker),
        Err(Errno::WOULDBLOCK) => Err(BuildRootFailure::InUse),
        Err(errno) => Err(io_error("locking", MARKER)(errno).into()),
    }
}

/// Returns the names in a directory. Names that are not UTF-8 are changed, so that they are found by no call.
fn list(dir: &OwnedFd) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir).map_err(io_error("listing", "."))? {
        let entry = entry.map_err(io_error("listing", "."))?;
        let name = entry.file_name().to_string_lossy();
        if name != "." && name != ".." {
            names.push(name.into_owned());
        }
    }
    Ok(names)
}
