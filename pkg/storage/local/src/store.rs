//! The local store: opening and closing of a data directory.

use std::{
    fmt, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64},
    },
};

use parking_lot::{Mutex, RwLock};
use rustix::fs::FlockOperation;
use tokio::{sync::watch, task::spawn_blocking};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    LocalOptions,
    disk::{self, Disk, ScanState},
    files::Files,
    index::{Index, Terms},
    inflight::{Claims, Watchers},
    instances::Instances,
    layout::{CAS, LOCK_FILE, QUARANTINE, TMP, UPLOADS, VERSION_FILE},
    pins::PinLedger,
    room::Room,
    scan, scrub,
    state::{self, Record, StoreState},
    twins::Twins,
    upkeep,
};
use gorego_storage::{Error, Result};

/// The version of the layout that this program reads and writes.
pub(crate) const VERSION: &str = "1";

/// The error of opening a data directory.
#[derive(Debug, thiserror::Error)]
#[error("data directory {} {why}", dir.display())]
pub struct OpenError {
    /// The data directory.
    pub dir: PathBuf,
    /// The cause.
    pub why: OpenFailure,
}

/// The cause of an error of opening a data directory.
#[derive(Debug, thiserror::Error)]
pub enum OpenFailure {
    /// Another process, with this number if it is known, uses the directory.
    #[error("is in use by another gorego (process {0})")]
    InUse(String),
    /// The directory has another layout, of this version.
    #[error("has layout version {0:?}, this program knows {VERSION:?}; empty it or choose another")]
    Version(String),
    /// The directory belongs to another program, whose files in this folder would be removed.
    #[error("is not gorego's, yet holds files in {0}, which gorego would empty; choose another")]
    Foreign(&'static str),
    /// This folder of the directory is on another file system.
    #[error(
        "has {0} on another file system, to which no file can be moved in one step; put the whole \
         data directory on one file system (local_cache.dir)"
    )]
    Elsewhere(String),
    /// The directory cannot be read or written.
    #[error("cannot be used: {0}")]
    Unusable(Box<Error>),
}

impl From<Error> for OpenFailure {
    fn from(error: Error) -> Self {
        Self::Unusable(Box::new(error))
    }
}

/// A store on a local disk. It is usable at once after opening, and indexed in the background. Close it, so
/// that the next start has nothing to verify.
pub struct LocalStore {
    pub(crate) disk: Arc<Disk>,
}

impl LocalStore {
    /// Opens a data directory and begins to scan it. Call within a Tokio runtime.
    pub async fn open(options: LocalOptions) -> Result<Self, OpenError> {
        let (dir, scrub_period) = (options.dir.clone(), options.scrub_period);
        let opened = spawn_blocking(move || open(options)).await;
        let opened = opened.unwrap_or_else(|error| Err(disk::cut_off(&error).into()));
        let disk = &opened.map_err(|why| OpenError { dir, why })?;
        disk.tracker.spawn(scan::run(Arc::clone(disk)));
        disk.tracker.spawn(upkeep::run(Arc::clone(disk)));
        if let Some(period) = scrub_period {
            disk.tracker.spawn(scrub::run(Arc::clone(disk), period));
        }
        Ok(Self {
            disk: Arc::clone(disk),
        })
    }

    /// Writes last uses and all data to the disk, and records a sync point: after a kill, only files written
    /// later have to be verified.
    pub async fn save(&self) -> Result<()> {
        let save = |disk: &Arc<Disk>| {
            disk.write_back()?;
            disk.sync_point(false)
        };
        self.disk.run(save).await
    }

    /// Ends background work, writes last uses and all data to the disk, and records a clean end. After
    /// that, reads work and writes fail.
    pub async fn close(&self) -> Result<()> {
        self.disk.cancel.cancel();
        self.disk.tracker.close();
        self.disk.tracker.wait().await;
        let close = |disk: &Arc<Disk>| {
            // Waits for files that are being moved to their places.
            *disk.closed.write() = true;
            disk.write_back()?;
            disk.sync_point(true)
        };
        self.disk.run(close).await
    }

    /// Reports if the data directory is usable, as probed every few seconds. A full disk counts as usable,
    /// since reads work.
    pub fn health(&self) -> watch::Receiver<bool> {
        self.disk.healthy.subscribe()
    }
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        self.disk.cancel.cancel();
        // Released at once, although background work may run for a moment.
        *self.disk.lock_file.lock() = None;
    }
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalStore")
            .field("dir", &self.disk.files.path(""))
            .finish_non_exhaustive()
    }
}

fn open(options: LocalOptions) -> Result<Arc<Disk>, OpenFailure> {
    let dir = &options.dir;
    fs::create_dir_all(dir).map_err(|error| Error::io("creating", dir, error))?;
    let lock = lock(dir)?;
    let new = check_version(dir)?;
    let index = Arc::new(Index::default());
    let room = Room::new(Arc::clone(&index), options.max_bytes, options.wake_bytes);
    let files = Files::open(dir, options.sync, Arc::clone(&room))?;
    if let Some(folder) = files.elsewhere()? {
        return Err(OpenFailure::Elsewhere(folder));
    }
    let disk = build(options, index, files, room, new, lock)?;
    Ok(Arc::new(disk))
}

/// Locks the data directory, for as long as the process or the returned file lives.
pub(crate) fn lock(dir: &Path) -> Result<fs::File, OpenFailure> {
    let path = dir.join(LOCK_FILE);
    let mut options = fs::OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let file = file.map_err(|error| Error::io("opening", &path, error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            return Err(OpenFailure::InUse(holder.trim().to_owned()));
        }
        Err(errno) => return Err(Error::io("locking", path, errno.into()).into()),
    }
    // Only for the error of a second process, so that a full disk does not prevent the start.
    let _ = fs::write(&path, format!("{}\n", std::process::id()));
    Ok(file)
}

/// Refuses another layout. Returns `true` for a new directory.
fn check_version(dir: &Path) -> Result<bool, OpenFailure> {
    let path = dir.join(VERSION_FILE);
    match fs::read_to_string(&path) {
        Ok(found) if found.trim() == VERSION => Ok(false),
        Ok(found) => Err(OpenFailure::Version(found.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            for folder in [TMP, UPLOADS, QUARANTINE] {
                let listed = fs::read_dir(dir.join(folder));
                if listed.is_ok_and(|mut names| names.next().is_some()) {
                    return Err(OpenFailure::Foreign(folder));
                }
            }
            let new = !dir.join(CAS).exists();
            write_version(dir).map_err(|error| Error::io("writing", &path, error))?;
            Ok(new)
        }
        Err(error) => Err(Error::io("reading", path, error).into()),
    }
}

/// Writes the version atomically, since a truncated one would be another version.
pub(crate) fn write_version(dir: &Path) -> io::Result<()> {
    let new = dir.join("VERSION.new");
    let mut file = fs::File::create(&new)?;
    file.write_all(format!("{VERSION}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, dir.join(VERSION_FILE))
}

fn build(
    options: LocalOptions,
    index: Arc<Index>,
    files: Files,
    room: Arc<Room>,
    new: bool,
    lock: fs::File,
) -> Result<Disk> {
    let last = StoreState::load(&files, new)?;
    let (unscanned, slack) = unscanned(&last, options.max_bytes);
    room.expect_scan(unscanned, slack);
    // This run is unclean until it is closed.
    let synced_ms = if last.clean {
        upkeep::dated()
    } else {
        last.synced_ms
    };
    let state = StoreState {
        clean: false,
        synced_ms,
        used: last.used,
    };
    let saved = state.save_or_forget(&files)?;
    for folder in [UPLOADS, QUARANTINE] {
        for name in files.list(folder)? {
            let path = format!("{folder}/{name}");
            if let Some(meta) = files.stat_file(&path)? {
                room.add_idle(&path, meta.size, meta.mtime_ms);
            }
        }
    }
    Ok(Disk {
        instances: Instances::default(),
        files,
        lock_file: Mutex::new(Some(lock)),
        index,
        room,
        pins: PinLedger::new(options.max_bytes),
        twins: Twins::default(),
        claims: Claims::default(),
        watchers: Watchers::default(),
        counters: Arc::default(),
        eviction_observer: OnceLock::new(),
        traffic: Arc::default(),
        terms: Terms {
            full_ms: disk::millis(options.lease),
            // The longer lease is never the upload's.
            upload_ms: disk::millis(options.upload_lease.min(options.lease)),
        },
        options,
        unverified_from_ms: if last.clean { u64::MAX } else { last.synced_ms },
        written: AtomicU64::new(0),
        scanned: ScanState::default(),
        janitor_saw_part: AtomicBool::new(false),
        healthy: watch::Sender::new(true),
        record: Mutex::new(Record {
            state,
            saved,
            synced: None,
        }),
        tracker: TaskTracker::new(),
        cancel: CancellationToken::new(),
        closed: RwLock::new(false),
        key_locks: Disk::key_locks(),
        verifying: Disk::key_locks(),
    })
}

/// Returns the largest possible usage before the scan, and the uncertain part of it.
fn unscanned(last: &StoreState, limit: u64) -> (u64, u64) {
    if last.used == state::UNKNOWN {
        return (limit, limit);
    }
    let slack = if last.clean { 0 } else { upkeep::slack(limit) };
    let at_most = last.used.saturating_add(slack).min(limit.max(last.used));
    (at_most, at_most - last.used)
}
