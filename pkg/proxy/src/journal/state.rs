//! What waits, in the order in which it was accepted, and what is to be done next.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gorego_storage::{Digest, Error, InUse};

use super::{
    Depth,
    file::{File, Place},
    outcome::{Outcome, Refused},
};

/// How many results an entry is known to be newer than, at most: those that may be in the backing
/// cache are among the last few.
const REPLACES: usize = 16;
/// Keeps a blob from eviction.
pub(super) type Pin = Box<dyn InUse>;

/// What waits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum What {
    Blob(Digest),
    /// An action's result under an instance name.
    Action(String, Digest),
}

impl What {
    /// The blob's, or the action's.
    pub(crate) const fn digest(&self) -> &Digest {
        match self {
            Self::Blob(digest) | Self::Action(_, digest) => digest,
        }
    }
}

/// Something that waits.
pub(super) struct Entry {
    pub(super) what: What,
    /// What it counts for.
    pub(super) bytes: u64,
    pub(super) place: Place,
    pub(super) phase: Phase,
    /// Which results of its action this one is known to be newer than.
    pub(super) replaces: Vec<u64>,
    pub(super) fingerprint: u64,
    pub(super) refused: Option<Refused>,
    /// How often it did not get there.
    pub(super) tries: u32,
    /// Of a blob; not there if it could not be read at the start.
    pub(super) kept: Option<Pin>,
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Written down, but nobody was told that it is accepted.
    Coming,
    Waiting,
    /// On its way to the backing cache.
    Going,
}

/// The actions of which a result waits. Apart, since the rest is locked while the disk is written to.
#[derive(Default)]
pub(super) struct Names(Mutex<HashMap<What, Vec<u64>>>);

impl Names {
    fn map(&self) -> MutexGuard<'_, HashMap<What, Vec<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has(&self, name: &What) -> bool {
        self.map().contains_key(name)
    }

    fn of(&self, name: &What) -> Vec<u64> {
        self.map().get(name).cloned().unwrap_or_default()
    }

    fn add(&self, name: &What, number: u64) {
        self.map().entry(name.clone()).or_default().push(number);
    }

    fn remove(&self, name: &What, number: u64) {
        let mut map = self.map();
        if let Some(numbers) = map.get_mut(name) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                map.remove(name);
            }
        }
    }
}

/// See the module.
pub(super) struct State {
    pub(super) file: File,
    entries: BTreeMap<u64, Entry>,
    next: u64,
    /// What all entries count for.
    pub(super) bytes: u64,
    accepted: u64,
    /// What the records of all entries take.
    records: u64,
    /// The place before which all is noted to be done.
    done: u64,
    /// The blobs that were accepted.
    blobs: HashMap<Digest, u64>,
    names: Arc<Names>,
}

impl State {
    pub(super) fn new(file: File, names: Arc<Names>) -> Self {
        Self {
            file,
            entries: BTreeMap::new(),
            next: 0,
            bytes: 0,
            accepted: 0,
            records: 0,
            done: 0,
            blobs: HashMap::new(),
            names,
        }
    }

    pub(super) fn depth(&self) -> Depth {
        Depth {
            entries: self.accepted,
            results: self.accepted.saturating_sub(self.blobs.len() as u64),
            bytes: self.bytes,
        }
    }

    pub(super) fn has_blob(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    pub(super) fn entry(&self, number: u64) -> Option<&Entry> {
        self.entries.get(&number)
    }

    /// Adds an entry that is still to be accepted; its number.
    pub(super) fn push(&mut self, entry: Entry) -> u64 {
        let number = self.next;
        self.next += 1;
        self.bytes += entry.bytes;
        self.records += entry.place.len();
        if matches!(entry.what, What::Action(..)) {
            self.names.add(&entry.what, number);
        }
        self.entries.insert(number, entry);
        number
    }

    /// What a result is newer than: what was here instead, and whatever waits already.
    pub(super) fn replaced_by(&self, name: &What, here: Option<u64>) -> Vec<u64> {
        let mut replaced = Vec::new();
        let waiting = self.names.of(name).into_iter();
        for entry in waiting.filter_map(|number| self.entries.get(&number)) {
            replaced.extend(&entry.replaces);
            replaced.push(entry.fingerprint);
        }
        replaced.extend(here);
        let mut last = Vec::new();
        for fingerprint in replaced.into_iter().rev() {
            if !last.contains(&fingerprint) && last.len() < REPLACES {
                last.push(fingerprint);
            }
        }
        last.reverse();
        last
    }

    /// An entry is accepted: it takes the place of older results of the same action. A blob that waits
    /// already does so once.
    pub(super) fn accept(&mut self, number: u64, kept: Option<Pin>) {
        let Some(entry) = self.entries.get_mut(&number) else {
            return;
        };
        entry.kept = kept;
        entry.phase = Phase::Waiting;
        let what = entry.what.clone();
        self.accepted += 1;
        match &what {
            What::Blob(digest) => {
                if *self.blobs.entry(*digest).or_insert(number) != number {
                    let kept = entry.kept.take();
                    self.remove(number);
                    if let Some(kept) = kept {
                        self.accept_anew(digest, kept);
                    }
                }
            }
            What::Action(..) => {
                for older in self.names.of(&what) {
                    let entry = self.entries.get(&older);
                    let waits = entry.is_some_and(|entry| entry.phase == Phase::Waiting);
                    if older < number && waits {
                        self.remove(older);
                    }
                }
            }
        }
    }

    /// A blob that waits is here anew, whatever the replay has just found. Gives the pin back if it
    /// waits no more.
    pub(super) fn accept_anew(&mut self, digest: &Digest, kept: Pin) -> Option<Pin> {
        let number = self.blobs.get(digest);
        let Some(entry) = number.and_then(|number| self.entries.get_mut(number)) else {
            return Some(kept);
        };
        entry.kept = Some(kept);
        entry.phase = Phase::Waiting;
        None
    }

    /// Results of that action wait no more, since a later one went up.
    pub(super) fn supersede(&mut self, name: &What) {
        for number in self.names.of(name) {
            let entry = self.entries.get(&number);
            if entry.is_some_and(|entry| entry.phase != Phase::Coming) {
                self.remove(number);
            }
        }
    }

    pub(super) fn remove(&mut self, number: u64) {
        let Some(entry) = self.entries.remove(&number) else {
            return;
        };
        self.bytes = self.bytes.saturating_sub(entry.bytes);
        self.records = self.records.saturating_sub(entry.place.len());
        if entry.phase != Phase::Coming {
            self.accepted = self.accepted.saturating_sub(1);
        }
        match &entry.what {
            What::Blob(digest) => {
                if self.blobs.get(digest) == Some(&number) {
                    self.blobs.remove(digest);
                }
            }
            name @ What::Action(..) => self.names.remove(name, number),
        }
    }

    /// Sends what has waited longest on its way, up to `most` entries or until their blobs have so
    /// many bytes. What did not get there before comes behind the others.
    pub(super) fn take(&mut self, most: usize, bytes: u64) -> Vec<(u64, What)> {
        // There is nobody else who takes: what is still on its way was given up in between, and may be
        // why.
        for entry in self.entries.values_mut() {
            if entry.phase == Phase::Going {
                entry.phase = Phase::Waiting;
                entry.tries = entry.tries.saturating_add(1);
            }
        }
        let waits = |(_, entry): &(&u64, &Entry)| entry.phase == Phase::Waiting;
        let mut waiting: Vec<_> = self.entries.iter().filter(waits).collect();
        let turn = |(number, entry): &(&u64, &Entry)| (entry.tries, **number);
        if most < waiting.len() {
            // Not all are sorted for the sake of a few.
            waiting.select_nth_unstable_by_key(most, turn);
            waiting.truncate(most);
        }
        waiting.sort_unstable_by_key(turn);
        let mut sum = 0;
        let enough = |(_, entry): &(&u64, &Entry)| {
            let within = sum < bytes;
            sum += entry.bytes;
            within
        };
        let next = waiting.into_iter().take_while(enough);
        let next: Vec<_> = next.map(|(at, entry)| (*at, entry.what.clone())).collect();
        for (number, _) in &next {
            if let Some(entry) = self.entries.get_mut(number) {
                entry.phase = Phase::Going;
            }
        }
        next
    }

    /// What was on its way has arrived, or not; so much was ever taken. Gives those that are given up, and
    /// why they were last refused.
    pub(super) fn settle(
        &mut self,
        outcomes: Vec<(u64, Outcome)>,
        taken: u64,
    ) -> Vec<(What, Error)> {
        let mut given_up = Vec::new();
        for (number, outcome) in outcomes {
            let Some(entry) = self.entries.get_mut(&number) else {
                continue;
            };
            let is_anew = entry.phase == Phase::Waiting;
            entry.phase = Phase::Waiting;
            if matches!(outcome, Outcome::Never(Error::NotFound(_))) && is_anew {
                // It was brought after that was found out.
                continue;
            }
            let what = entry.what.clone();
            if !matches!(outcome, Outcome::Untried) {
                entry.tries = entry.tries.saturating_add(1);
            }
            let is_over = match outcome {
                Outcome::Done | Outcome::Never(_) => true,
                Outcome::Again(_) | Outcome::Untried => {
                    // It is not refused by itself any more, as far as anybody can tell.
                    entry.refused = None;
                    false
                }
                Outcome::Later(error) => {
                    let refused = entry.refused.get_or_insert_with(|| Refused::first(taken));
                    let is_over = refused.again(taken);
                    if is_over {
                        given_up.push((what.clone(), error));
                    }
                    is_over
                }
            };
            if is_over || self.is_outdated(number, &what) {
                self.remove(number);
            }
        }
        given_up
    }

    /// Whether a newer result of its action was accepted meanwhile.
    fn is_outdated(&self, number: u64, what: &What) -> bool {
        let newer = |other: &u64| {
            let entry = self.entries.get(other);
            *other > number && entry.is_some_and(|entry| entry.phase != Phase::Coming)
        };
        matches!(what, What::Action(..)) && self.names.of(what).iter().any(newer)
    }

    /// Notes in the file what is done, and keeps the file short.
    pub(super) fn tidy(&mut self) {
        let tidied = match self.entries.first_key_value() {
            None => self.compact(),
            Some(_) if self.file.is_mostly_done(self.records) => self.compact(),
            Some((_, first)) if first.place.start > self.done => {
                self.done = first.place.start;
                self.file.done(self.done)
            }
            Some(_) => Ok(()),
        };
        if let Err(error) = tidied {
            tracing::warn!(%error, "the journal keeps what is done");
        }
    }

    fn compact(&mut self) -> gorego_storage::Result<()> {
        let places: Vec<_> = self.entries.values().map(|entry| entry.place).collect();
        let moved = self.file.compact(&places)?;
        for (entry, place) in self.entries.values_mut().zip(moved) {
            entry.place = place;
        }
        self.done = 0;
        Ok(())
    }
}
