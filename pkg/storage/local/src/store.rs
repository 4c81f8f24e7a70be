//! The local store: opening and closing a data directory.

use std::{
    fmt, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use gorego_limits::Budget;
use rustix::fs::FlockOperation;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Counters, SyncMode,
    claims::Claims,
    core,
    core::Core,
    files::Files,
    index::{Index, Terms},
    layout::{CAS, LOCK_FILE, QUARANTINE, TMP, UPLOADS, VERSION_FILE},
    room::Room,
    scan,
    scanned::Scanned,
    scrub, state,
    state::State,
    upkeep,
    upkeep::Recorded,
    watchers::Watchers,
};
use gorego_storage::{Error, Result};

/// The layout that this program reads and writes.
pub(crate) const VERSION: &str = "1";

/// How a local store is set up.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The data directory; made when it is not there.
    pub dir: PathBuf,
    /// How much it may hold, in bytes.
    pub max_bytes: u64,
    /// Usage beyond this calls the janitor, in bytes.
    pub wake_bytes: u64,
    /// How long a blob that was reported present is kept from eviction.
    pub lease: Duration,
    /// The time for which a blob that was just uploaded is protected from eviction.
    pub upload_lease: Duration,
    /// Whether each hit writes the file's access time at once, rather than now and then.
    pub force_update_atime: bool,
    /// Whether an acknowledged upload outlives a loss of power.
    pub sync: SyncMode,
    /// In which time everything is hashed once, in the background; never without.
    pub scrub_period: Option<Duration>,
    /// Counts blobs of more than [`gorego_limits::UNCOUNTED`] bytes that are read as a whole, up to [`gorego_storage::CHUNK_SIZE`].
    /// Without it, or when it is short, these are files to read in pieces.
    pub pieces: Option<Budget>,
}

/// Why a data directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("data directory {} is in use by another gorego (process {holder})", dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// The other process's number, as far as it told.
        holder: String,
    },
    /// It was written by a program with another layout.
    #[error(
        "data directory {} has layout version {found:?}, this program knows {VERSION:?}; \
         empty it or choose another",
        dir.display()
    )]
    Version {
        /// The data directory.
        dir: PathBuf,
        /// What its `VERSION` file says.
        found: String,
    },
    /// It belongs to something else, whose files this program would remove.
    #[error(
        "data directory {} is not gorego's, yet holds files in {folder}, which gorego would empty; \
         choose another",
        dir.display()
    )]
    Foreign {
        /// The data directory.
        dir: PathBuf,
        /// The folder in it.
        folder: &'static str,
    },
    /// A part of it is on another file system.
    #[error(
        "{folder} in data directory {} is on another file system, to which no file can be moved in one \
         step; put the whole data directory on one file system (local_cache.dir)",
        dir.display()
    )]
    Elsewhere {
        /// The data directory.
        dir: PathBuf,
        /// The folder in it.
        folder: String,
    },
    /// It cannot be read or written.
    #[error("data directory {} cannot be used: {source}", dir.display())]
    Unusable {
        /// The data directory.
        dir: PathBuf,
        /// What failed.
        source: Box<Error>,
    },
}

/// A store on a local disk. Opened at once, indexed in the background; close it to have the next
/// start trust everything.
pub struct LocalStore {
    pub(crate) core: Arc<Core>,
    pub(crate) recorded: Arc<Recorded>,
}

impl LocalStore {
    /// Opens a data directory and begins to scan it. Call within a Tokio runtime.
    pub async fn open(options: LocalOptions) -> Result<Self, OpenError> {
        let dir = options.dir.clone();
        let scrub_period = options.scrub_period;
        let opened = core::blocking(move || Ok(Self::open_blocking(&options))).await;
        let store = opened.map_err(|source| OpenError::Unusable {
            dir,
            source: source.into(),
        })??;
        let (core, recorded) = (Arc::clone(&store.core), Arc::clone(&store.recorded));
        core.tracker.spawn(scan::run(Arc::clone(&core)));
        core.tracker.spawn(upkeep::run(Arc::clone(&core), recorded));
        if let Some(period) = scrub_period {
            core.tracker
                .spawn(scrub::run(Arc::clone(&core), period, core::now_ms()));
        }
        Ok(store)
    }

    fn open_blocking(options: &LocalOptions) -> Result<Self, OpenError> {
        let dir = &options.dir;
        let unusable = |source| OpenError::Unusable {
            dir: dir.clone(),
            source: Box::new(source),
        };
        fs::create_dir_all(dir).map_err(|error| unusable(Error::io("creating", dir, error)))?;
        let lock = lock(dir)?;
        let new = check_version(dir)?;
        let files = Files::open(dir, options.sync).map_err(unusable)?;
        if let Some(folder) = files.elsewhere().map_err(unusable)? {
            let dir = dir.clone();
            return Err(OpenError::Elsewhere { dir, folder });
        }
        let (core, state, saved) = build(options, files, new, lock).map_err(unusable)?;
        Ok(Self {
            core: Arc::new(core),
            recorded: Arc::new(Recorded::new(state, saved)),
        })
    }

    /// Writes last uses and all data to the disk, and notes that what is here now is whole: of a
    /// process that is killed, the next one checks only what came later.
    pub async fn save(&self) -> Result<()> {
        let (core, recorded) = (Arc::clone(&self.core), Arc::clone(&self.recorded));
        core::blocking(move || {
            core.write_back()?;
            core.sync_point(&recorded, false)
        })
        .await
    }

    /// Ends background work, writes last uses and all data to the disk, and notes that nothing is
    /// in doubt. What is here can still be read; nothing can be put any more.
    pub async fn close(&self) -> Result<()> {
        self.core.cancel.cancel();
        self.core.tracker.close();
        self.core.tracker.wait().await;
        let (core, recorded) = (Arc::clone(&self.core), Arc::clone(&self.recorded));
        core::blocking(move || {
            // What is on its way to its place gets there first.
            *core.closed.write().unwrap_or_else(PoisonError::into_inner) = true;
            core.write_back()?;
            core.sync_point(&recorded, true)
        })
        .await
    }

    /// Whether the index knows everything on the disk.
    pub fn is_scanned(&self) -> bool {
        self.core.is_scanned()
    }

    /// Whether the data directory can be used, looked at every few seconds. A full disk is no
    /// reason to say no: what is there is served.
    pub fn health(&self) -> watch::Receiver<bool> {
        self.core.healthy.subscribe()
    }

    /// What the store counted since it was opened.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.core.counters)
    }
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        self.core.cancel.cancel();
        // At once, whatever still goes on in the background.
        let lock = self.core.lock_file.lock();
        *lock.unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalStore")
            .field("dir", &self.core.files.path(""))
            .finish_non_exhaustive()
    }
}

/// One process per directory. The lock goes with the process, however it ends.
pub(crate) fn lock(dir: &Path) -> Result<fs::File, OpenError> {
    let path = dir.join(LOCK_FILE);
    let unusable = |action, error| OpenError::Unusable {
        dir: dir.to_owned(),
        source: Box::new(Error::io(action, &path, error)),
    };
    let mut options = fs::OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let file = file.map_err(|error| unusable("opening", error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = fs::read_to_string(&path)
                .unwrap_or_default()
                .trim()
                .to_owned();
            return Err(OpenError::InUse {
                dir: dir.to_owned(),
                holder,
            });
        }
        Err(errno) => return Err(unusable("locking", errno.into())),
    }
    // Only for whoever is refused; a full disk is no reason not to start.
    let _ = fs::write(&path, format!("{}\n", std::process::id()));
    Ok(file)
}

/// Refuses another layout; says whether the directory is new.
fn check_version(dir: &Path) -> Result<bool, OpenError> {
    let path = dir.join(VERSION_FILE);
    let unusable = |action, error| OpenError::Unusable {
        dir: dir.to_owned(),
        source: Box::new(Error::io(action, &path, error)),
    };
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == VERSION => Ok(false),
        Ok(found) => Err(OpenError::Version {
            dir: dir.to_owned(),
            found: found.trim().to_owned(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            for folder in [TMP, UPLOADS, QUARANTINE] {
                let listed = fs::read_dir(dir.join(folder));
                if listed.is_ok_and(|mut names| names.next().is_some()) {
                    return Err(OpenError::Foreign {
                        dir: dir.to_owned(),
                        folder,
                    });
                }
            }
            let new = !dir.join(CAS).exists();
            write_version(dir).map_err(|error| unusable("writing", error))?;
            Ok(new)
        }
        Err(error) => Err(unusable("reading", error)),
    }
}

/// Whole or not at all, since half a version is an unknown one.
pub(crate) fn write_version(dir: &Path) -> io::Result<()> {
    let new = dir.join("VERSION.new");
    let mut file = fs::File::create(&new)?;
    file.write_all(format!("{VERSION}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, dir.join(VERSION_FILE))
}

fn build(
    options: &LocalOptions,
    files: Files,
    new: bool,
    lock: fs::File,
) -> Result<(Core, State, bool)> {
    let last = State::load(&files, new)?;
    // From here on this run is unclean, until it is closed.
    let synced_ms = if last.clean {
        upkeep::dated()
    } else {
        last.synced_ms
    };
    let unscanned = unscanned(&last, options.max_bytes);
    let state = State {
        clean: false,
        synced_ms,
        used: last.used,
    };
    let saved = state.save_or_forget(&files)?;

    let index = Arc::new(Index::new());
    let room = Room::new(
        Arc::clone(&index),
        Arc::clone(&files.folders),
        options.max_bytes,
        options.wake_bytes,
        unscanned,
    );
    for folder in [UPLOADS, QUARANTINE] {
        for name in files.list(folder)? {
            let path = format!("{folder}/{name}");
            if let Some(meta) = files.stat(&path)? {
                room.add_idle(&path, meta.size, meta.mtime_ms);
            }
        }
    }
    let core = Core {
        instances: scan::instances(&files)?,
        files,
        lock_file: Mutex::new(Some(lock)),
        index,
        room,
        claims: Claims::default(),
        watchers: Watchers::default(),
        counters: Arc::default(),
        terms: Terms {
            full_ms: core::millis(options.lease),
            // The longer lease is never the upload's.
            upload_ms: core::millis(options.upload_lease.min(options.lease)),
        },
        force_update_atime: options.force_update_atime,
        pieces: options.pieces.clone(),
        doubt_from_ms: if last.clean { u64::MAX } else { last.synced_ms },
        written: AtomicU64::new(0),
        scanned: Scanned::default(),
        janitor_saw_part: AtomicBool::new(false),
        healthy: watch::Sender::new(true),
        tracker: TaskTracker::new(),
        cancel: CancellationToken::new(),
        closed: RwLock::new(false),
        key_locks: Core::key_locks(),
        settling: Core::key_locks(),
    };
    Ok((core, state, saved))
}

/// How much may lie in the directory until the scan has seen it, and how much of that perhaps not.
fn unscanned(last: &State, limit: u64) -> (u64, u64) {
    if last.used == state::UNKNOWN {
        return (limit, limit);
    }
    let slack = if last.clean { 0 } else { upkeep::slack(limit) };
    let at_most = last.used.saturating_add(slack).min(limit.max(last.used));
    (at_most, at_most - last.used)
}
