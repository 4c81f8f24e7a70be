//! The builds in memory, and the known actions with which their misses are explained.

use std::collections::HashMap;

use super::{
    Build, BuildHead, Evictions, Explanation, LookupOutcome, Miss, Tally, cause,
    event::{CallNames, Event, Outcome, ResultFacts, now_ms},
    known::{ActionNames, KnownAction, KnownActions},
    model::MAX_MISSES,
};

/// The most memory of the details of builds, by estimate, in bytes.
pub(crate) const MAX_MEMORY: usize = 10 * 1024 * 1024;
/// The memory from which on the details of builds in progress no longer grow, but their totals do. Otherwise several
/// large builds would drive each other out, and each of their calls would read a build from the disk.
const FULL: usize = MAX_MEMORY / 4 * 3;
/// The least time between two searches for builds that are not in progress, in milliseconds.
const SEARCHED: u64 = 1000;
/// The memory of one build from which on no more explanations of its misses are recorded. Those are explained when their
/// pages are opened.
const MAX_EXPLAINED: usize = 4 * 1024 * 1024;
/// The most builds that are listed, those whose details are only on disk included.
pub(crate) const MAX_BUILDS: usize = 5000;

/// The memory of an entry of the counts by target or mnemonic, without its name.
const TALLY_MEMORY: usize = size_of::<Tally>() + 64;

/// The builds, the known actions and the counts of calls without a build.
#[derive(Debug, Default)]
pub(crate) struct BuildRecords {
    builds: HashMap<String, KeptBuild>,
    /// The builds of which only the head is in memory, and the rest on the disk.
    heads: HashMap<String, BuildHead>,
    memory: usize,
    /// The time of the last search for builds that are not in progress.
    searched_ms: u64,
    pub(crate) known: KnownActions,
    /// The calls that named no build.
    pub(crate) without_build: Tally,
}

#[derive(Debug, Default)]
struct KeptBuild {
    build: Build,
    /// The positions of the misses by action.
    positions: HashMap<String, usize>,
    memory: usize,
    /// Set while the disk has an older version, or none.
    dirty: bool,
    is_on_disk: bool,
}

/// A miss to be explained by the actions that were known before it.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) build: String,
    pub(crate) action: String,
    /// The time of the lookup, in milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
    pub(crate) candidates: Vec<KnownAction>,
}

impl BuildRecords {
    /// Creates records that begin now, without builds.
    pub(crate) fn new() -> Self {
        Self {
            known: KnownActions::default().restored(now_ms()),
            ..Self::default()
        }
    }

    /// Adds the results of the builds to the known actions, which are saved less often.
    pub(crate) fn recall(&mut self) {
        for miss in self.builds.values().flat_map(|kept| &kept.build.misses) {
            let Some(stored) = miss.stored_ms else {
                continue;
            };
            if self.known.last_result(&miss.action).is_some() {
                continue;
            }
            let names = ActionNames {
                action: miss.action.clone(),
                instance: miss.instance.clone(),
                target: miss.target.clone(),
                mnemonic: miss.mnemonic.clone(),
            };
            self.known.record(&names, miss.output.as_deref(), stored);
        }
    }

    /// Records a call. Returns a job if a miss can be explained now.
    pub(crate) fn apply(
        &mut self,
        event: &Event,
        call: &CallNames,
        evictions: &Evictions,
    ) -> Option<Job> {
        let names = call.action_names(event);
        let job = if call.build.id.is_empty() {
            event.outcome.count_in(&mut self.without_build);
            None
        } else {
            self.apply_to_build(event, call, &names, evictions)
        };
        if let Outcome::Hit(facts) | Outcome::Stored(facts) = &event.outcome {
            self.known
                .record(&names, facts.output.as_deref(), event.at_ms);
        }
        job
    }

    fn apply_to_build(
        &mut self,
        event: &Event,
        call: &CallNames,
        names: &ActionNames,
        evictions: &Evictions,
    ) -> Option<Job> {
        let id = &call.build.id;
        let has_room = self.make_room(id, event.at_ms);
        let known = &mut self.known;
        let kept = self.builds.entry(id.clone()).or_default();
        let before = kept.memory;
        kept.dirty = true;
        kept.see(&call.build, event.at_ms);
        kept.count(names, &event.outcome, has_room);
        let job = match &event.outcome {
            Outcome::Miss | Outcome::Incomplete(_) | Outcome::Outage(_) => {
                known.precede(names, event.at_ms);
                let explanation = || cause::at_once(event, names, known, evictions);
                kept.miss(event, call, names, explanation, has_room);
                None
            }
            Outcome::Stored(facts) => kept.stored(event, names, facts, known),
            Outcome::Hit(_) | Outcome::Error => None,
        };
        self.memory = self.memory + kept.memory - before;
        self.heads.remove(id);
        self.shrink(id);
        job
    }

    /// Records the explanation of a miss.
    pub(crate) fn explained(&mut self, job: &Job, explanation: Explanation) {
        let Some(kept) = self.builds.get_mut(&job.build) else {
            return;
        };
        let grown = explanation.memory();
        if kept.memory + grown > MAX_EXPLAINED || self.memory + grown > FULL {
            return;
        }
        // A result that is stored twice is explained twice.
        let miss = kept.find(&job.action);
        if let Some(miss) = miss.filter(|miss| miss.explanation.is_none()) {
            miss.explanation = Some(explanation);
            kept.memory += grown;
            kept.dirty = true;
            self.memory += grown;
        }
    }

    /// Adds a build that was read from the disk. Returns `false` once no more builds can be listed.
    pub(crate) fn restore(&mut self, build: Build) -> bool {
        let id = build.head.id.clone();
        let positions = build.misses.iter().enumerate();
        let mut kept = KeptBuild {
            positions: positions
                .map(|(at, miss)| (miss.action.clone(), at))
                .collect(),
            build,
            memory: 0,
            dirty: false,
            is_on_disk: true,
        };
        kept.memory = kept.build.memory();
        self.memory += kept.memory;
        self.heads.remove(&id);
        if let Some(replaced) = self.builds.insert(id.clone(), kept) {
            self.memory = self.memory.saturating_sub(replaced.memory);
        }
        self.shrink(&id);
        self.heads.len() + self.builds.len() < MAX_BUILDS / 8 * 7
    }

    /// Whether only the head of this build is in memory.
    pub(crate) fn is_on_disk_only(&self, id: &str) -> bool {
        self.heads.contains_key(id)
    }

    /// Drops the details of a build, as the limits do.
    #[cfg(test)]
    pub(crate) fn keep_head_only(&mut self, id: &str) {
        if let Some(dropped) = self.builds.remove(id) {
            self.memory -= dropped.memory;
            self.heads.insert(id.to_owned(), dropped.build.head);
        }
    }

    /// Records that a build is not on the disk. It is no longer listed if only its head is in memory.
    pub(crate) fn not_on_disk(&mut self, id: &str) {
        self.heads.remove(id);
        if let Some(kept) = self.builds.get_mut(id) {
            kept.is_on_disk = false;
        }
    }

    /// Records that a build could not be saved.
    pub(crate) fn not_saved(&mut self, id: &str) {
        self.not_on_disk(id);
        if let Some(kept) = self.builds.get_mut(id) {
            kept.dirty = true;
        }
    }

    /// Returns the builds that changed since the last call, to be saved.
    pub(crate) fn take_dirty(&mut self) -> Vec<Build> {
        let dirty = self.builds.values_mut().filter(|kept| kept.dirty);
        dirty
            .map(|kept| {
                kept.dirty = false;
                kept.is_on_disk = true;
                kept.build.clone()
            })
            .collect()
    }

    /// Returns a build whose details are in memory.
    pub(crate) fn build(&self, id: &str) -> Option<&Build> {
        self.builds.get(id).map(|kept| &kept.build)
    }

    /// Returns all builds in memory.
    pub(crate) fn builds(&self) -> impl Iterator<Item = &Build> {
        self.builds.values().map(|kept| &kept.build)
    }

    /// Returns the heads of all builds, in no order.
    pub(crate) fn heads(&self) -> impl Iterator<Item = &BuildHead> {
        let kept = self.builds.values().map(|kept| &kept.build.head);
        kept.chain(self.heads.values())
    }

    /// Returns whether details of builds may grow. If not, first drops those of builds that are not in progress `now`.
    fn make_room(&mut self, current: &str, now: u64) -> bool {
        if self.memory > FULL && now.abs_diff(self.searched_ms) >= SEARCHED {
            self.searched_ms = now;
            let is_idle = |head: &BuildHead| !head.is_in_progress(now);
            self.drop_details(current, FULL / 8 * 7, is_idle);
        }
        self.memory <= FULL
    }

    /// Keeps within the limits: drops the details, and then the heads, of the builds seen longest ago, but not
    /// `current`. Leaves an eighth free, so that not each call searches for the oldest.
    fn shrink(&mut self, current: &str) {
        if self.memory > MAX_MEMORY {
            self.drop_details(current, MAX_MEMORY / 8 * 7, |_| true);
        }
        if self.heads.len() + self.builds.len() > MAX_BUILDS {
            let heads = self.heads.iter().map(|(id, head)| (head.last_call_ms, id));
            let mut heads: Vec<_> = heads.map(|(seen, id)| (seen, id.clone())).collect();
            heads.sort_unstable();
            let heads = heads.into_iter().map(|(_, id)| id);
            let others: Vec<_> = heads.chain(self.oldest_first(current)).collect();
            for id in others.into_iter().take(MAX_BUILDS / 8) {
                self.heads.remove(&id);
                let dropped = self.builds.remove(&id);
                self.memory -= dropped.map_or(0, |kept| kept.memory);
            }
        }
    }

    /// Drops the details of builds that may be dropped until they take at most `most` bytes.
    fn drop_details(&mut self, current: &str, most: usize, may_drop: impl Fn(&BuildHead) -> bool) {
        for id in self.oldest_first(current) {
            if self.memory <= most {
                break;
            }
            if self.build(&id).is_some_and(|build| may_drop(&build.head))
                && let Some(dropped) = self.builds.remove(&id)
            {
                self.memory = self.memory.saturating_sub(dropped.memory);
                if dropped.is_on_disk {
                    self.heads.insert(id, dropped.build.head);
                }
            }
        }
    }

    /// Returns the builds with details, but not `current`: first those that are on the disk, by time.
    fn oldest_first(&self, current: &str) -> Vec<String> {
        let others = self.builds.iter().filter(|(id, _)| *id != current);
        let key = |kept: &KeptBuild| (kept.dirty, kept.build.head.last_call_ms);
        let mut others: Vec<_> = others.map(|(id, kept)| (key(kept), id.clone())).collect();
        others.sort_unstable();
        others.into_iter().map(|(_, id)| id).collect()
    }
}

impl KeptBuild {
    fn see(&mut self, head: &BuildHead, now: u64) {
        let own = &mut self.build.head;
        if own.id.is_empty() {
            *own = head.clone();
            own.started_ms = now;
            self.memory = Build::default().memory();
        }
        own.last_call_ms = own.last_call_ms.max(now);
    }

    fn find(&mut self, action: &str) -> Option<&mut Miss> {
        self.build.misses.get_mut(*self.positions.get(action)?)
    }

    fn count(&mut self, names: &ActionNames, outcome: &Outcome, has_room: bool) {
        let entries = self.build.targets.len() + self.build.mnemonics.len();
        for tally in self
            .build
            .tallies(&names.target, &names.mnemonic, has_room)
            .into_iter()
            .flatten()
        {
            outcome.count_in(tally);
        }
        if self.build.targets.len() + self.build.mnemonics.len() > entries {
            self.memory += names.target.len() + names.mnemonic.len() + 2 * TALLY_MEMORY;
        }
    }

    fn miss(
        &mut self,
        event: &Event,
        call: &CallNames,
        names: &ActionNames,
        explanation: impl FnOnce() -> Option<Explanation>,
        has_room: bool,
    ) {
        if self.positions.contains_key(&names.action) {
            return;
        }
        if self.build.misses.len() >= MAX_MISSES || !has_room {
            self.build.head.left_out.misses += 1;
            return;
        }
        self.positions
            .insert(names.action.clone(), self.build.misses.len());
        let miss = Miss {
            action: names.action.clone(),
            instance: names.instance.clone(),
            target: names.target.clone(),
            mnemonic: names.mnemonic.clone(),
            configuration: call.configuration.clone(),
            outcome: match event.outcome {
                Outcome::Incomplete(_) => LookupOutcome::Incomplete,
                _ => LookupOutcome::Miss,
            },
            at_ms: event.at_ms,
            stored_ms: None,
            executed_ms: None,
            output: None,
            explanation: explanation(),
        };
        self.memory += miss.memory();
        self.build.misses.push(miss);
    }

    fn stored(
        &mut self,
        event: &Event,
        names: &ActionNames,
        facts: &ResultFacts,
        known: &KnownActions,
    ) -> Option<Job> {
        let miss = self.find(&names.action)?;
        miss.stored_ms = Some(event.at_ms);
        miss.executed_ms = facts.executed_ms;
        let length = |output: &Option<String>| output.as_ref().map_or(0, String::len);
        let (former, grown) = (length(&miss.output), length(&facts.output));
        miss.output.clone_from(&facts.output);
        let (before, is_explained) = (miss.at_ms, miss.explanation.is_some());
        self.memory = self.memory + grown - former;
        if is_explained {
            return None;
        }
        let candidates = known.candidates(names, facts.output.as_deref(), before);
        Some(Job {
            build: self.build.head.id.clone(),
            action: names.action.clone(),
            at_ms: before,
            candidates,
        })
    }
}

#[cfg(test)]
mod tests;
