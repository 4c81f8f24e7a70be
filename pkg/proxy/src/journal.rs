//! What was accepted while the backing cache was down, and still has to reach it.
//!
//! The blobs themselves are in the local store, kept from eviction. The journal is a file of
//! records in the order in which they were accepted, and one that says how far it was replayed.

mod file;

use std::{
    collections::VecDeque,
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gorego_storage::{Digest, Error, InUse, LocalStore, Result};
use reapi::v2::ActionResult;
use tokio::{sync::watch, task};

use self::file::{File, Record};

/// How much is waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Blobs and action results.
    pub entries: u64,
    /// How many of them are action results.
    pub results: u64,
    /// What they take, in bytes.
    pub bytes: u64,
}

/// See the module.
pub struct Journal {
    local: Arc<LocalStore>,
    max_bytes: u64,
    state: Mutex<State>,
    depth: watch::Sender<Depth>,
}

struct State {
    file: File,
    entries: VecDeque<Entry>,
    /// How many of them are action results.
    results: u64,
    bytes: u64,
}

/// Something that waits.
struct Entry {
    what: What,
    bytes: u64,
    /// Where its record ends in the file.
    end: u64,
    /// Keeps a blob from eviction.
    _kept: Option<Box<dyn InUse>>,
}

/// What waits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    Blob(Digest),
    /// An action's result under an instance name, at this place in the file.
    Action(String, Digest, u64),
}

impl What {
    const fn is_action(&self) -> bool {
        matches!(self, Self::Action(..))
    }
}

impl Journal {
    /// Opens the journal in `dir`, which is made if it is not there, for the blobs of `local`. At most
    /// `max_bytes` may wait; with `durable`, what waits outlives a loss of power.
    pub async fn open(
        dir: &Path,
        max_bytes: u64,
        durable: bool,
        local: Arc<LocalStore>,
    ) -> Result<Self> {
        let dir = dir.to_owned();
        let (file, records) = blocking(move || File::open(&dir, durable)).await?;
        let journal = Self {
            local,
            max_bytes,
            state: Mutex::new(State {
                file,
                entries: VecDeque::new(),
                results: 0,
                bytes: 0,
            }),
            depth: watch::Sender::default(),
        };
        for kept in records {
            journal.restore(&kept).await?;
        }
        journal.tell(&journal.state());
        Ok(journal)
    }

    async fn restore(&self, kept: &file::Kept) -> Result<()> {
        let (record, bytes, end) = (&kept.record, kept.bytes, kept.end);
        let Some(digest) = record.digest() else {
            return Ok(());
        };
        let (what, kept) = if record.is_action() {
            (
                What::Action(record.instance.clone(), digest, kept.start),
                None,
            )
        } else {
            let kept = self.local.keep(&digest).await?;
            if kept.is_none() {
                tracing::error!(%digest, "a blob that waits for the backing cache is gone");
                return Ok(());
            }
            (What::Blob(digest), kept)
        };
        self.state().push(what, bytes, end, kept);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much is waiting, and whenever that changes.
    pub fn depth(&self) -> watch::Receiver<Depth> {
        self.depth.subscribe()
    }

    pub(crate) fn is_empty(&self) -> bool {
        // Not by the lock, which is held while the disk is written to.
        self.depth.borrow().entries == 0
    }

    /// Accepts a blob that is in the local store.
    pub(crate) async fn add_blob(self: &Arc<Self>, digest: &Digest) -> Result<()> {
        if digest.is_empty_blob() {
            return Ok(());
        }
        let kept = self.local.keep(digest).await?;
        let kept = kept.ok_or(Error::NotFound(*digest))?;
        let what = What::Blob(*digest);
        self.add(Record::blob(digest), move |_| what, Some(kept))
            .await
    }

    /// Accepts an action's result.
    pub(crate) async fn add_action(
        self: &Arc<Self>,
        instance: &str,
        action: &Digest,
        result: ActionResult,
    ) -> Result<()> {
        let (name, digest) = (instance.to_owned(), *action);
        let record = Record::action(instance, action, result);
        self.add(record, move |at| What::Action(name, digest, at), None)
            .await
    }

    async fn add(
        self: &Arc<Self>,
        record: Record,
        what: impl FnOnce(u64) -> What + Send + 'static,
        kept: Option<Box<dyn InUse>>,
    ) -> Result<()> {
        let journal = Arc::clone(self);
        blocking(move || {
            let bytes = record.bytes();
            let mut state = journal.state();
            if state.bytes.saturating_add(bytes) > journal.max_bytes {
                let most = journal.max_bytes;
                let why = format!(
                    "the backing cache is down, and no more than {most} bytes may wait for it"
                );
                return Err(Error::Unavailable(why));
            }
            let (at, end) = state.file.append(&record)?;
            state.push(what(at), bytes, end, kept);
            journal.tell(&state);
            Ok(())
        })
        .await
    }

    /// What has waited longest: an action result, or up to `most` blobs that were accepted before the
    /// next one.
    pub(crate) async fn first(self: &Arc<Self>, most: usize) -> Result<Vec<What>> {
        let journal = Arc::clone(self);
        blocking(move || {
            let state = journal.state();
            let is_blob = |entry: &&Entry| matches!(entry.what, What::Blob(_));
            let entries = state.entries.iter();
            let blobs: Vec<_> = entries.take_while(is_blob).take(most).collect();
            let first = if blobs.is_empty() {
                state.entries.front().into_iter().collect()
            } else {
                blobs
            };
            Ok(first.into_iter().map(|entry| entry.what.clone()).collect())
        })
        .await
    }

    /// The action result at that place.
    pub(crate) async fn result(self: &Arc<Self>, at: u64) -> Result<ActionResult> {
        let journal = Arc::clone(self);
        blocking(move || journal.state().file.read(at)).await
    }

    /// So many of the first have reached the backing cache.
    pub(crate) async fn done(self: &Arc<Self>, count: usize) -> Result<()> {
        let journal = Arc::clone(self);
        blocking(move || {
            let mut state = journal.state();
            let count = count.min(state.entries.len());
            let gone: Vec<Entry> = state.entries.drain(..count).collect();
            let bytes: u64 = gone.iter().map(|entry| entry.bytes).sum();
            state.bytes = state.bytes.saturating_sub(bytes);
            let results = gone.iter().filter(|entry| entry.what.is_action()).count();
            state.results = state.results.saturating_sub(results as u64);
            journal.tell(&state);
            if state.entries.is_empty() {
                return state.file.clear();
            }
            match gone.last() {
                Some(last) => state.file.replayed(last.end),
                None => Ok(()),
            }
        })
        .await
    }

    fn tell(&self, state: &State) {
        let depth = Depth {
            entries: state.entries.len() as u64,
            results: state.results,
            bytes: state.bytes,
        };
        self.depth.send_if_modified(|last| {
            let news = *last != depth;
            *last = depth;
            news
        });
    }
}

impl State {
    fn push(&mut self, what: What, bytes: u64, end: u64, kept: Option<Box<dyn InUse>>) {
        self.bytes += bytes;
        self.results += u64::from(what.is_action());
        self.entries.push_back(Entry {
            what,
            bytes,
            end,
            _kept: kept,
        });
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("depth", &*self.depth.borrow())
            .finish_non_exhaustive()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let cut_off = |error| Error::Unavailable(format!("work on the journal was cut off: {error}"));
    task::spawn_blocking(work).await.map_err(cut_off)?
}
