//! Recent builds, and why their actions missed.
//!
//! [`RecordedActions`] hands each call of the action cache to [`BuildsWorker`] through a bounded channel. The worker
//! counts it for its build, explains misses and saves builds. [`Builds`] answers queries.

mod cause;
mod compare;
mod contents;
mod event;
mod evictions;
mod executed;
mod explain;
mod explanation;
mod history;
mod jobs;
mod known;
mod model;
mod query;
mod recorded;
mod records;
mod redact;
mod search;
mod view;
mod walk;
mod worker;

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use gorego_storage::Peek;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc};

pub use evictions::Evictions;
pub use executed::{ExplainedWorker, MissedLookups, Misses};
pub use explanation::{Aspect, Cause, Comparison, Difference, Explanation};
pub use model::{Build, BuildHead, LeftOut, LookupOutcome, Miss, Tally};
pub use recorded::RecordedActions;
pub use redact::{InvalidPattern, REDACTED, Redaction};
pub use view::{ActionView, Entry, RecentBuilds, TargetMiss, TargetView, Variable};
pub use worker::BuildsWorker;

use self::{contents::Contents, event::Event, history::History, jobs::Jobs, records::BuildRecords};

/// The most calls that wait for the worker. Others are not recorded.
const MAX_WAITING: usize = 4096;
/// The most queries that read actions or search the disk at once.
const VIEWS: usize = 2;

/// The options of the records of builds.
#[derive(Debug)]
pub struct BuildsOptions {
    /// The data directory; `None` for builds in memory only.
    pub dir: Option<PathBuf>,
    /// The most bytes of builds on the disk.
    pub history_max: u64,
    /// The secrets to replace.
    pub redaction: Redaction,
    /// The stores from which actions are read, the local tier first.
    pub stores: Vec<Arc<dyn Peek>>,
    /// Set if `stores` is the local tier only, while a backing cache may have further blobs and results.
    pub is_local_only: bool,
    /// The evictions of the local tier.
    pub evictions: Arc<Evictions>,
}

/// The recent builds. Clones are of the same builds.
#[derive(Clone, Debug)]
pub struct Builds(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    records: Mutex<BuildRecords>,
    redaction: Redaction,
    contents: Contents,
    evictions: Arc<Evictions>,
    history: Option<History>,
    events: mpsc::Sender<Event>,
    /// The number of calls that were not recorded, since too many waited.
    unrecorded: AtomicU64,
    jobs: Jobs,
    /// Notified after a miss was explained.
    explained: Notify,
    views: Arc<Semaphore>,
}

impl Builds {
    /// Creates the records, and the worker that fills them. Blocks while builds that were saved under another redaction
    /// are written anew.
    pub fn new(options: BuildsOptions) -> (Self, BuildsWorker) {
        let (send, events) = mpsc::channel(MAX_WAITING);
        let history = options.dir;
        let history = history.map(|dir| History::new(&dir, options.history_max));
        let redacted = history
            .iter()
            .try_for_each(|it| it.redact(&options.redaction.fingerprint()));
        if let Err(error) = redacted {
            tracing::warn!(
                %error,
                "failed to redact earlier builds in builds/ of local_cache.dir anew; they are not shown in this run"
            );
        }
        let builds = Self(Arc::new(Shared {
            records: Mutex::new(BuildRecords::new()),
            redaction: options.redaction,
            contents: Contents {
                stores: options.stores,
                is_local_only: options.is_local_only,
            },
            evictions: options.evictions,
            history,
            events: send,
            unrecorded: AtomicU64::new(0),
            jobs: Jobs::default(),
            explained: Notify::new(),
            views: Arc::new(Semaphore::new(VIEWS)),
        }));
        let worker = BuildsWorker {
            builds: builds.clone(),
            events,
            saved: (0, 0),
            failing: HashSet::new(),
        };
        (builds, worker)
    }

    /// Hands a call over to the worker. Never waits.
    pub(crate) fn record(&self, event: Event) {
        if self.0.events.try_send(event).is_err() {
            self.0.unrecorded.fetch_add(1, Relaxed);
        }
    }
}

/// Removes the builds that earlier runs saved in the data directory `dir`. Returns the number of files. Blocks.
pub fn remove_history(dir: &Path) -> io::Result<usize> {
    History::new(dir, 0).clear()
}

#[cfg(test)]
mod tests;
