//! The order in which queued executions start.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::ledger::WorkerId;

/// The resources that an execution needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Need {
    /// Memory in bytes. Queued executions have rounded needs, so that few different ones exist.
    Memory(u64),
    /// A worker on which nothing else runs, with all of its memory.
    Alone,
}

impl Need {
    /// Returns whether resources for this need also serve the other one.
    pub fn covers(self, other: Self) -> bool {
        // The variants are in the order of their size.
        other <= self
    }

    /// Returns the need with its memory rounded up, like the needs of queued executions.
    pub(crate) fn rounded(self) -> Self {
        match self {
            Self::Memory(bytes) => Self::Memory(rounded(bytes)),
            Self::Alone => Self::Alone,
        }
    }
}

/// Executions that fit the same workers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Class {
    /// The requirements on the platform. `None` for the work of another node, which has checked that this node meets
    /// them.
    pub(crate) platform: Option<Arc<str>>,
    pub(crate) need: Need,
    /// The workers at which attempts failed or were lost, sorted; `None` if there are none.
    pub(crate) tried: Option<Arc<[WorkerId]>>,
}

impl Class {
    /// Returns whether a worker of this node meets the requirements.
    pub(crate) fn is_met(&self, fits: impl Fn(&str) -> bool) -> bool {
        self.platform.as_deref().is_none_or(fits)
    }

    /// Returns whether an attempt failed or was lost at a worker.
    pub(crate) fn was_tried_at(&self, worker: &WorkerId) -> bool {
        let tried = self.tried.as_deref();
        tried.is_some_and(|tried| tried.binary_search(worker).is_ok())
    }
}

/// Rounds memory up by less than a quarter, and at least to 1 MiB, so that the number of classes is bounded.
pub(crate) fn rounded(bytes: u64) -> u64 {
    const LEAST: u64 = 1 << 20;
    let step = (bytes.max(LEAST).ilog2()).saturating_sub(2);
    let step = (1_u64 << step).max(LEAST);
    bytes.checked_next_multiple_of(step).unwrap_or(u64::MAX)
}

/// The place of an entry in its build's line: retries first, then the lower priority, then the older entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(crate) first_run: bool,
    pub(crate) priority: i32,
    /// A number that no other entry has.
    pub(crate) number: u64,
}

impl Rank {
    /// Returns whether only the age makes a difference to another entry.
    pub(crate) fn is_as_urgent_as(self, other: Self) -> bool {
        (self.first_run, self.priority) == (other.first_run, other.priority)
    }
}

/// The line of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LineId(u64);

/// The rank of a line: the slots of its build, and the number of its last turn.
type Turn = (usize, u64);

/// Up to this number of classes, a turn checks each class once. Beyond, it checks those of the lines that it passes.
const FEW_CLASSES: usize = 64;

/// The queued entries, in one line for each build.
///
/// The next turn is that of the build with the fewest slots; builds with equally many take turns. This is round
/// robin by deficit, with slots as the unit: while actions of a build occupy all slots, the next free slot goes to
/// another build, however long the actions are.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    lines: BTreeMap<LineId, Line>,
    by_build: HashMap<Arc<str>, LineId>,
    /// The lines with entries, in the order of their turns.
    order: BTreeMap<Turn, LineId>,
    /// The numbers of queued executions.
    executions: BTreeMap<Class, usize>,
    next: u64,
    /// A number that grows with each change of the numbers of executions.
    version: u64,
}

#[derive(Debug)]
struct Line {
    build: Arc<str>,
    running: usize,
    turn: u64,
    entries: BTreeMap<Class, BTreeMap<Rank, u64>>,
    /// The classes in the order of their first entries, so that the cost of a turn does not grow with their number.
    heads: BTreeMap<Rank, Class>,
}

impl Line {
    fn turn(&self) -> Turn {
        (self.running, self.turn)
    }

    fn insert(&mut self, class: &Class, rank: Rank, execution: u64) {
        if let Some(entries) = self.entries.get_mut(class) {
            let first = entries.first_key_value().map(|(first, _)| *first);
            entries.insert(rank, execution);
            if let Some(first) = first.filter(|first| rank < *first)
                && let Some(class) = self.heads.remove(&first)
            {
                self.heads.insert(rank, class);
            }
        } else {
            let entries = BTreeMap::from([(rank, execution)]);
            self.entries.insert(class.clone(), entries);
            self.heads.insert(rank, class.clone());
        }
    }

    fn remove(&mut self, class: &Class, rank: Rank) {
        let Some(entries) = self.entries.get_mut(class) else {
            return;
        };
        entries.remove(&rank);
        let first = entries.first_key_value().map(|(first, _)| *first);
        if first.is_none() {
            self.entries.remove(class);
        }
        if let Some(class) = self.heads.remove(&rank)
            && let Some(first) = first
        {
            self.heads.insert(first, class);
        }
    }
}

/// The next entry that fits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Next {
    pub(crate) line: LineId,
    pub(crate) rank: Rank,
    pub(crate) execution: u64,
}

impl Queue {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Returns the name of a build, shared with the build's line.
    pub(crate) fn build(&self, name: &str) -> Arc<str> {
        let known = self.by_build.get_key_value(name);
        known.map_or_else(|| name.into(), |(name, _)| Arc::clone(name))
    }

    /// Adds an entry to the line of `build`.
    pub(crate) fn push(
        &mut self,
        build: &Arc<str>,
        class: &Class,
        rank: Rank,
        execution: u64,
    ) -> LineId {
        let id = if let Some(id) = self.by_build.get(build) {
            *id
        } else {
            let turn = self.number();
            let line = Line {
                build: Arc::clone(build),
                running: 0,
                turn,
                entries: BTreeMap::new(),
                heads: BTreeMap::new(),
            };
            let id = LineId(turn);
            self.by_build.insert(Arc::clone(build), id);
            self.lines.insert(id, line);
            id
        };
        if let Some(line) = self.lines.get_mut(&id) {
            line.insert(class, rank, execution);
            self.order.insert(line.turn(), id);
        }
        id
    }

    /// Removes an entry.
    pub(crate) fn remove(&mut self, id: LineId, class: &Class, rank: Rank) {
        let Some(line) = self.lines.get_mut(&id) else {
            return;
        };
        line.remove(class, rank);
        if line.entries.is_empty() {
            self.order.remove(&line.turn());
        }
        self.drop_idle(id);
    }

    /// Moves an entry to another place in its line.
    pub(crate) fn replace(
        &mut self,
        id: LineId,
        class: &Class,
        before: Rank,
        after: Rank,
        execution: u64,
    ) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.remove(class, before);
            line.insert(class, after, execution);
        }
    }

    /// Returns the entry whose turn is next among the classes that fit.
    pub(crate) fn next(&self, fits: impl Fn(&Class) -> bool) -> Option<Next> {
        // Few classes are asked for once, since many lines may have entries of them.
        let few = self.executions.len() <= FEW_CLASSES;
        let fitting: Vec<_> = self
            .executions
            .keys()
            .filter(|class| few && fits(class))
            .collect();
        let some_fit = if few {
            !fitting.is_empty()
        } else {
            self.has_class(&fits)
        };
        let is_fitting = |class: &Class| {
            if few && class.platform.is_some() {
                fitting.binary_search(&class).is_ok()
            } else {
                fits(class)
            }
        };
        self.order.values().find_map(|id| {
            let line = self.lines.get(id)?;
            // A line has either executions or actions of another node.
            if !some_fit && line.heads.values().next()?.platform.is_some() {
                return None;
            }
            let mut heads = line.heads.iter();
            let (rank, class) = heads.find(|(_, class)| is_fitting(class))?;
            Some(Next {
                line: *id,
                rank: *rank,
                execution: *line.entries.get(class)?.get(rank)?,
            })
        })
    }

    /// Returns whether the executions of some class fit. If none does, that costs less than a search in all lines.
    fn has_class(&self, fits: impl Fn(&Class) -> bool) -> bool {
        self.executions.keys().any(fits)
    }

    /// Returns the first entries of executions that fit, at most `most`: those whose turns are next if no slot is freed
    /// meanwhile.
    pub(crate) fn first(&self, most: usize, fits: impl Fn(&Class) -> bool) -> Vec<Next> {
        if !self.has_class(&fits) {
            return Vec::new();
        }
        let each = most.div_ceil(self.order.len().clamp(1, most));
        let mut first = Vec::new();
        for id in self.order.values().take(most) {
            let Some(line) = self.lines.get(id) else {
                continue;
            };
            let classes = line.heads.values().filter(|class| fits(class)).take(each);
            let entries = classes.filter_map(|class| line.entries.get(class));
            let entries = entries.flat_map(|entries| entries.iter().take(each));
            let mut entries: Vec<_> = entries.collect();
            entries.sort_unstable();
            entries.truncate(each);
            let entries = entries.into_iter().map(|(rank, execution)| Next {
                line: *id,
                rank: *rank,
                execution: *execution,
            });
            first.extend(entries.enumerate());
        }
        // Stable: entries at the same place of their lines stay in the order of the turns.
        first.sort_by_key(|(place, _)| *place);
        first.truncate(most);
        first.into_iter().map(|(_, next)| next).collect()
    }

    /// Counts an execution, whose entries are in the queue.
    pub(crate) fn count_execution(&mut self, class: &Class) {
        if let Some(executions) = self.executions.get_mut(class) {
            *executions += 1;
        } else {
            self.executions.insert(class.clone(), 1);
        }
        self.version += 1;
    }

    /// Removes an execution from the count.
    pub(crate) fn uncount_execution(&mut self, class: &Class) {
        if let Some(executions) = self.executions.get_mut(class) {
            *executions = executions.saturating_sub(1);
            if *executions == 0 {
                self.executions.remove(class);
            }
            self.version += 1;
        }
    }

    /// Returns the numbers of executions by class; none is 0.
    pub(crate) fn executions(&self) -> impl ExactSizeIterator<Item = (&Class, usize)> {
        let executions = self.executions.iter();
        executions.map(|(class, executions)| (class, *executions))
    }

    /// Changes the number that [`Self::version`] returns.
    pub(crate) fn renumber(&mut self) {
        self.version += 1;
    }

    /// Returns a number that grows with each change of [`Self::executions`].
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Counts a slot for the build of a line. Its next turn comes after those of the others.
    pub(crate) fn reserve_slot(&mut self, id: LineId) {
        let turn = self.number();
        self.change(id, |line| {
            line.running += 1;
            line.turn = turn;
        });
    }

    /// Releases a slot of the build of a line.
    pub(crate) fn free_slot(&mut self, id: LineId) {
        self.change(id, |line| line.running = line.running.saturating_sub(1));
        self.drop_idle(id);
    }

    /// Returns whether no entry is queued and no build has a slot.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
            && self.by_build.is_empty()
            && self.order.is_empty()
            && self.executions.is_empty()
    }

    fn change(&mut self, id: LineId, change: impl FnOnce(&mut Line)) {
        let Some(line) = self.lines.get_mut(&id) else {
            return;
        };
        let before = line.turn();
        change(line);
        if self.order.remove(&before).is_some() {
            self.order.insert(line.turn(), id);
        }
    }

    /// Forgets a line without entries and slots.
    fn drop_idle(&mut self, id: LineId) {
        if let Some(line) = self.lines.get(&id)
            && line.running == 0
            && line.entries.is_empty()
        {
            self.by_build.remove(&line.build);
            self.lines.remove(&id);
        }
    }
}
