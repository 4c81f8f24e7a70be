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

/// Executions that fit the same workers. Whether one of a class fits is asked once, however many are queued.
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

/// The line of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LineId(u64);

/// The rank of a line: the slots of its build, and the number of its last turn.
type Turn = (usize, u64);

/// The queued entries, in one line for each build.
///
/// The next turn is that of the build with the fewest slots; builds with equally many take turns. This is round
/// robin by deficit, with slots as the unit: while actions of a build occupy all slots, the next free slot goes to
/// another build, however long the actions are.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    lines: BTreeMap<LineId, Line>,
    by_build: HashMap<Arc<str>, LineId>,
    classes: BTreeMap<Class, ClassQueue>,
    next: u64,
    /// A number that grows with each change of the numbers of executions.
    version: u64,
}

/// The entries of a class.
#[derive(Debug, Default)]
struct ClassQueue {
    /// The lines with entries, in the order of their turns.
    lines: BTreeMap<Turn, LineId>,
    /// The executions with entries.
    executions: usize,
}

#[derive(Debug)]
struct Line {
    build: Arc<str>,
    running: usize,
    turn: u64,
    entries: BTreeMap<Class, BTreeMap<Rank, u64>>,
}

impl Line {
    fn turn(&self) -> Turn {
        (self.running, self.turn)
    }
}

/// The next entry that fits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Next {
    pub(crate) line: LineId,
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
            };
            let id = LineId(turn);
            self.by_build.insert(Arc::clone(build), id);
            self.lines.insert(id, line);
            id
        };
        if let Some(line) = self.lines.get_mut(&id) {
            let turn = line.turn();
            if let Some(entries) = line.entries.get_mut(class) {
                entries.insert(rank, execution);
            } else {
                let entries = BTreeMap::from([(rank, execution)]);
                line.entries.insert(class.clone(), entries);
                let queue = self.classes.entry(class.clone()).or_default();
                queue.lines.insert(turn, id);
            }
        }
        id
    }

    /// Removes an entry.
    pub(crate) fn remove(&mut self, id: LineId, class: &Class, rank: Rank) {
        let Some(line) = self.lines.get_mut(&id) else {
            return;
        };
        let Some(entries) = line.entries.get_mut(class) else {
            return;
        };
        entries.remove(&rank);
        if entries.is_empty() {
            line.entries.remove(class);
            let turn = line.turn();
            unlist(&mut self.classes, class, turn);
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
        let line = self.lines.get_mut(&id);
        if let Some(entries) = line.and_then(|line| line.entries.get_mut(class)) {
            entries.remove(&before);
            entries.insert(after, execution);
        }
    }

    /// Returns the entry whose turn is next among the classes that fit.
    pub(crate) fn next(&self, fits: impl Fn(&Class) -> bool) -> Option<Next> {
        let fitting = self.classes.iter().filter(|(class, _)| fits(class));
        let candidates = fitting.filter_map(|(class, queue)| {
            let (turn, line) = queue.lines.first_key_value()?;
            let entries = self.lines.get(line)?.entries.get(class)?;
            let (rank, execution) = entries.first_key_value()?;
            let (line, execution) = (*line, *execution);
            Some(((turn, rank), Next { line, execution }))
        });
        let next = candidates.min_by(|(a, _), (b, _)| a.cmp(b));
        next.map(|(_, next)| next)
    }

    /// Counts an execution, whose entries are in the queue.
    pub(crate) fn count_execution(&mut self, class: &Class) {
        if let Some(queue) = self.classes.get_mut(class) {
            queue.executions += 1;
            self.version += 1;
        }
    }

    /// Removes an execution from the count, before its entries are removed.
    pub(crate) fn uncount_execution(&mut self, class: &Class) {
        if let Some(queue) = self.classes.get_mut(class) {
            queue.executions = queue.executions.saturating_sub(1);
            self.version += 1;
        }
    }

    /// Returns the numbers of executions by class.
    pub(crate) fn executions(&self) -> impl Iterator<Item = (&Class, usize)> {
        let classes = self.classes.iter();
        classes.map(|(class, queue)| (class, queue.executions))
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
        self.lines.is_empty() && self.by_build.is_empty() && self.classes.is_empty()
    }

    fn change(&mut self, id: LineId, change: impl FnOnce(&mut Line)) {
        let Some(line) = self.lines.get_mut(&id) else {
            return;
        };
        let before = line.turn();
        change(line);
        let after = line.turn();
        for class in line.entries.keys() {
            if let Some(queue) = self.classes.get_mut(class) {
                queue.lines.remove(&before);
                queue.lines.insert(after, id);
            }
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

/// Removes a line from a class.
fn unlist(classes: &mut BTreeMap<Class, ClassQueue>, class: &Class, turn: Turn) {
    if let Some(queue) = classes.get_mut(class) {
        queue.lines.remove(&turn);
        if queue.lines.is_empty() {
            classes.remove(class);
        }
    }
}
