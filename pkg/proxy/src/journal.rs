//! What was accepted while the backing cache was down, and still has to reach it.
//!
//! The blobs themselves are in the local store, kept from eviction. The journal is a file of
//! records in the order in which they were accepted.

mod announced;
mod file;
mod record;
mod state;

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gorego_storage::{Digest, Error, LocalStore, Result};
use reapi::v2::ActionResult;
use tokio::{sync::watch, task};

pub(crate) use self::{
    announced::Announced,
    record::fingerprint,
    state::{Outcome, What},
};
use self::{
    file::{File, Kept},
    record::Record,
    state::{Entry, Names, Phase, State},
};

/// How much is waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Blobs and action results.
    pub entries: u64,
    /// The action results among them.
    pub results: u64,
    /// What they take, in bytes.
    pub bytes: u64,
}

/// See the module.
pub struct Journal {
    local: Arc<LocalStore>,
    max_bytes: u64,
    state: Mutex<State>,
    names: Arc<Names>,
    depth: watch::Sender<Depth>,
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
        let names = Arc::<Names>::default();
        let journal = Self {
            local,
            max_bytes,
            state: Mutex::new(State::new(file, Arc::clone(&names))),
            names,
            depth: watch::Sender::default(),
        };
        journal.restore(records).await?;
        Ok(journal)
    }

    /// How much the journal in `dir` holds, for those who do not replay it.
    pub async fn left_in(dir: &Path) -> Result<Depth> {
        let dir = dir.to_owned();
        let (_, records) = blocking(move || File::open(&dir, false)).await?;
        Ok(Depth {
            entries: records.len() as u64,
            results: records
                .iter()
                .filter(|kept| kept.record.is_action())
                .count() as u64,
            bytes: records.iter().map(|kept| kept.bytes).sum(),
        })
    }

    /// What can no more be had is one entry lost, and nothing to keep anybody from starting.
    async fn restore(&self, records: Vec<Kept>) -> Result<()> {
        let blob = |kept: &&Kept| !kept.record.is_action();
        let blobs = records.iter().filter(blob);
        let digests: Vec<Digest> = blobs.filter_map(|kept| kept.record.digest()).collect();
        let mut pins = self.local.keep_unread(digests).await?.into_iter();
        let mut state = self.state();
        for kept in records {
            let Some(digest) = kept.record.digest() else {
                continue;
            };
            let pin = if kept.record.is_action() {
                None
            } else {
                pins.next()
            };
            let pin = match pin {
                None => None,
                Some(Ok(Some(pin))) => Some(pin),
                Some(Ok(None)) => {
                    tracing::error!(%digest, "a blob that waits for the backing cache is gone");
                    continue;
                }
                // It may be readable when its turn comes.
                Some(Err(error)) => {
                    tracing::error!(%digest, %error, "a blob that waits may be evicted");
                    None
                }
            };
            let number = state.push(Entry::of(kept, digest));
            state.accept(number, pin);
        }
        state.tidy();
        self.tell(&state);
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

    /// Whether a result of that action waits, or is about to.
    pub(crate) fn has_action(&self, instance: &str, action: &Digest) -> bool {
        self.names.has(&What::Action(instance.to_owned(), *action))
    }

    /// Whether one of the blobs waits.
    pub(crate) async fn has_blob(self: &Arc<Self>, digests: Vec<Digest>) -> Result<bool> {
        let journal = Arc::clone(self);
        blocking(move || {
            let state = journal.state();
            Ok(digests.iter().any(|digest| state.has_blob(digest)))
        })
        .await
    }

    /// Writes down blobs that are about to be accepted, before anybody can see them. Those that wait
    /// already take no more room.
    pub(crate) async fn announce_blobs(
        self: &Arc<Self>,
        mut digests: Vec<Digest>,
    ) -> Result<Announced> {
        digests.retain(|digest| !digest.is_empty_blob());
        self.announce(move |state| {
            let new = digests.iter().filter(|digest| !state.has_blob(digest));
            new.map(Record::blob).collect()
        })
        .await
    }

    /// Writes down an action's result that is about to be accepted in place of the one that is here.
    pub(crate) async fn announce_action(
        self: &Arc<Self>,
        instance: &str,
        action: &Digest,
        result: ActionResult,
        here: Option<&ActionResult>,
    ) -> Result<Announced> {
        let name = What::Action(instance.to_owned(), *action);
        let here = here.map(fingerprint);
        let mut record = Record::action(instance, action, result);
        self.announce(move |state| {
            record.replaces = state.replaced_by(&name, here);
            vec![record]
        })
        .await
    }

    async fn announce(
        self: &Arc<Self>,
        records: impl FnOnce(&State) -> Vec<Record> + Send + 'static,
    ) -> Result<Announced> {
        let journal = Arc::clone(self);
        blocking(move || {
            let mut state = journal.state();
            let records = records(&state);
            let bytes = records.iter().map(Record::bytes);
            let all = bytes.fold(state.bytes, u64::saturating_add);
            if all > journal.max_bytes {
                let most = journal.max_bytes;
                let first = records.iter().find_map(Record::digest);
                let first = first.map(|digest| digest.to_string()).unwrap_or_default();
                let why = format!(
                    "no room for {first} among the {most} bytes that may wait for the backing cache"
                );
                return Err(Error::Unavailable(why));
            }
            if records.is_empty() {
                return Ok(Announced::new(Arc::clone(&journal), Vec::new()));
            }
            let places = state.file.append(&records)?;
            let mut announced = Vec::new();
            for (record, place) in records.into_iter().zip(places) {
                if let Some(digest) = record.digest() {
                    let entry = Entry::of(Kept::of(record, place), digest);
                    let what = entry.what.clone();
                    announced.push((state.push(entry), what));
                }
            }
            drop(state);
            Ok(Announced::new(journal, announced))
        })
        .await
    }

    /// Sends what has waited longest on its way, up to `most` entries or about so many bytes of blobs.
    /// Each has to be settled.
    pub(crate) async fn take(
        self: &Arc<Self>,
        most: usize,
        bytes: u64,
    ) -> Result<Vec<(u64, What)>> {
        let journal = Arc::clone(self);
        blocking(move || Ok(journal.state().take(most, bytes))).await
    }

    /// The result of an entry, and the fingerprints of those that it is newer than.
    pub(crate) async fn result(self: &Arc<Self>, number: u64) -> Result<(ActionResult, Vec<u64>)> {
        let journal = Arc::clone(self);
        blocking(move || {
            let state = journal.state();
            let changed = || Error::Unavailable("the journal has changed".to_owned());
            let entry = state.entry(number).ok_or_else(changed)?;
            let (record, result) = state.file.read(entry.place)?;
            let is_other = match &entry.what {
                What::Action(instance, action) => {
                    *instance != record.instance || Some(*action) != record.digest()
                }
                What::Blob(_) => true,
            };
            if is_other {
                return Err(state.file.misplaced());
            }
            Ok((result, record.replaces))
        })
        .await
    }

    /// What became of entries that were on their way.
    pub(crate) async fn settle(self: &Arc<Self>, outcomes: Vec<(u64, Outcome)>) -> Result<()> {
        if outcomes.is_empty() {
            return Ok(());
        }
        self.change(move |state| {
            for what in state.settle(&outcomes) {
                tracing::error!(
                    ?what,
                    "the backing cache has refused for too long what waits for it"
                );
            }
        })
        .await
    }

    async fn change(
        self: &Arc<Self>,
        change: impl FnOnce(&mut State) + Send + 'static,
    ) -> Result<()> {
        let journal = Arc::clone(self);
        blocking(move || {
            let mut state = journal.state();
            change(&mut state);
            state.tidy();
            journal.tell(&state);
            Ok(())
        })
        .await
    }

    fn tell(&self, state: &State) {
        let depth = state.depth();
        self.depth.send_if_modified(|last| {
            let news = *last != depth;
            *last = depth;
            news
        });
    }
}

impl Entry {
    fn of(kept: Kept, digest: Digest) -> Self {
        let record = kept.record;
        Self {
            what: if record.is_action() {
                What::Action(record.instance, digest)
            } else {
                What::Blob(digest)
            },
            bytes: kept.bytes,
            place: kept.place,
            phase: Phase::Coming,
            replaces: record.replaces,
            fingerprint: kept.fingerprint,
            refused: None,
            tries: 0,
            kept: None,
        }
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
