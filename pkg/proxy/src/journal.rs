//! What was accepted while the backing cache was down, and still has to reach it.
//!
//! The blobs themselves are in the local store, kept from eviction. The journal is a file of
//! records in the order in which they were accepted.

mod announced;
mod file;
mod outcome;
mod record;
mod state;

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use gorego_storage::{Digest, Error, Result};
use gorego_storage_local::LocalStore;
use reapi::v2::ActionResult;
use tokio::{
    sync::{OwnedMutexGuard, watch},
    task,
};

pub(crate) use self::{announced::Announced, outcome::Outcome, record::fingerprint, state::What};
use self::{
    file::{File, Kept},
    record::Record,
    state::{Entry, Names, Phase, Pin, State},
};
use crate::writes::Writes;

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
    /// Held while a result goes up of whose action another one waits.
    going: Writes,
    depth: watch::Sender<Depth>,
    /// How often the backing cache took something.
    taken: AtomicU64,
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
            going: Writes::default(),
            depth: watch::Sender::default(),
            taken: AtomicU64::default(),
        };
        journal.restore(records).await?;
        Ok(journal)
    }

    /// How much the journal in `dir` holds, for those who do not replay it: somebody else may.
    pub async fn left_in(dir: &Path) -> Result<Depth> {
        let dir = dir.to_owned();
        let records = blocking(move || File::look(&dir)).await?;
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

    /// Keeps other results of that action from going up, as far as they wait or one does that waits.
    pub(crate) async fn alone(
        &self,
        instance: &str,
        action: &Digest,
    ) -> Option<OwnedMutexGuard<()>> {
        self.going.alone(&(instance, action)).await
    }

    /// The backing cache was given a result that did not wait: those of its action that do need not.
    pub(crate) async fn supersede(self: &Arc<Self>, instance: &str, action: &Digest) -> Result<()> {
        let name = What::Action(instance.to_owned(), *action);
        self.change(move |state| state.supersede(&name)).await
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
            let is_new = |digest: &Digest| !state.has_blob(digest);
            let (new, waiting): (Vec<_>, Vec<_>) = digests.into_iter().partition(is_new);
            (new.iter().map(Record::blob).collect(), waiting)
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
            (vec![record], Vec::new())
        })
        .await
    }

    /// Announces records, and blobs that wait already.
    async fn announce(
        self: &Arc<Self>,
        records: impl FnOnce(&State) -> (Vec<Record>, Vec<Digest>) + Send + 'static,
    ) -> Result<Announced> {
        let journal = Arc::clone(self);
        blocking(move || {
            let mut state = journal.state();
            let (records, waiting) = records(&state);
            let added = journal.add(&mut state, records)?;
            drop(state);
            Ok(Announced::new(journal, added, waiting))
        })
        .await
    }

    /// Adds entries that are still to be accepted, if there is room for them.
    fn add(&self, state: &mut State, records: Vec<Record>) -> Result<Vec<(u64, What)>> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = records.iter().map(Record::bytes);
        let all = bytes.fold(state.bytes, u64::saturating_add);
        if all > self.max_bytes {
            let most = self.max_bytes;
            let first = records.iter().find_map(Record::digest);
            let first = first.map(|digest| digest.to_string()).unwrap_or_default();
            let why = format!(
                "no room for {first} among the {most} bytes that may wait for the backing cache"
            );
            return Err(Error::Unavailable(why));
        }
        let places = state.file.append(&records)?;
        let mut added = Vec::with_capacity(records.len());
        for (record, place) in records.into_iter().zip(places) {
            if let Some(digest) = record.digest() {
                let entry = Entry::of(Kept::of(record, place), digest);
                let what = entry.what.clone();
                added.push((state.push(entry), what));
            }
        }
        Ok(added)
    }

    /// Blobs that waited when they were announced are accepted. Those that wait no more, since they
    /// were not here when their turn came, do so from now on.
    fn accept_anew(&self, state: &mut State, blobs: Vec<(Digest, Pin)>) -> Result<()> {
        let settled = blobs.into_iter().filter_map(|(digest, kept)| {
            let given_back = state.accept_anew(&digest, kept)?;
            Some((Record::blob(&digest), given_back))
        });
        let (records, pins): (Vec<_>, Vec<_>) = settled.unzip();
        for ((number, _), kept) in self.add(state, records)?.into_iter().zip(pins) {
            state.accept(number, Some(kept));
        }
        Ok(())
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

    /// The backing cache took something, whether it waited here or not.
    pub(crate) fn took(&self) {
        self.taken.fetch_add(1, Relaxed);
    }

    /// What became of entries that were on their way.
    pub(crate) async fn settle(self: &Arc<Self>, outcomes: Vec<(u64, Outcome)>) -> Result<()> {
        if outcomes.is_empty() {
            return Ok(());
        }
        let taken = self.taken.load(Relaxed);
        self.change(move |state| {
            for (what, error) in state.settle(outcomes, taken) {
                tracing::error!(
                    ?what,
                    %error,
                    "the backing cache has refused this for too long, and took other things"
                );
            }
        })
        .await
    }

    async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T> {
        let journal = Arc::clone(self);
        blocking(move || {
            let mut state = journal.state();
            let changed = change(&mut state);
            state.tidy();
            journal.tell(&state);
            Ok(changed)
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

#[cfg(test)]
mod tests;
