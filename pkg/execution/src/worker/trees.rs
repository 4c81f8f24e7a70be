//! Prepared trees: large input trees on disk that several actions have at once, each below an overlay of its own.
//!
//! A tree is prepared when its root comes for the second time. It pins its blobs, so that it goes before they do.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use gorego_storage::{Digest, Pins};
use parking_lot::Mutex;

use super::build_root::ActionDir;
use crate::Inputs;

/// The least entries of an input tree that is prepared.
const MIN_ENTRIES: u64 = 1000;
/// The most entries of all prepared trees.
const MAX_ENTRIES: u64 = 500_000;
/// The most prepared trees.
const MAX_TREES: usize = 32;
/// The most roots that are remembered because they came once.
const MAX_SEEN: usize = 1000;

/// A prepared tree. It is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Tree {
    // Dropped in this order.
    dir: ActionDir,
    _pins: Arc<Pins>,
    digest: Digest,
    /// The losses of the store before it was prepared ([`gorego_storage::Links::losses`]).
    losses: u64,
    entries: u64,
    bytes: u64,
}

impl Tree {
    pub(super) fn new(dir: ActionDir, pins: Arc<Pins>, inputs: &Inputs, losses: u64) -> Self {
        Self {
            dir,
            _pins: pins,
            digest: inputs.root,
            losses,
            entries: inputs.entries,
            bytes: inputs.bytes,
        }
    }

    /// The tree on disk.
    pub(super) const fn root(&self) -> &OwnedFd {
        &self.dir.root
    }
}

/// The prepared trees of a worker.
#[derive(Debug)]
pub(super) struct Trees {
    known: Mutex<Known>,
    /// The most bytes of all of them. Their pins must leave room for those of any action.
    max_bytes: u64,
    is_off: AtomicBool,
}

#[derive(Debug, Default)]
struct Known {
    /// The trees, the least recently used first.
    trees: VecDeque<Arc<Tree>>,
    /// The roots that came once, the oldest first.
    seen: VecDeque<Digest>,
}

impl Trees {
    /// Creates the trees of a worker, without any; there are never any unless its actions
    /// have a root of their own.
    pub(super) fn new(has_root: bool, max_input_bytes: u64) -> Self {
        Self {
            known: Mutex::default(),
            max_bytes: max_input_bytes / 4,
            is_off: AtomicBool::new(!has_root),
        }
    }

    /// Returns the tree of these inputs, if it is prepared and none of its blobs may have been lost since.
    pub(super) fn get(&self, inputs: &Inputs, losses: u64) -> Option<Arc<Tree>> {
        let mut known = self.known.lock();
        let found = known
            .trees
            .iter()
            .position(|tree| tree.digest == inputs.root);
        let tree = known.trees.remove(found?)?;
        if tree.losses != losses || self.is_off.load(Relaxed) {
            drop(known);
            return None;
        }
        known.trees.push_back(Arc::clone(&tree));
        Some(tree)
    }

    /// Returns whether the tree of these inputs is to be prepared. Remembers them.
    pub(super) fn wants(&self, inputs: &Inputs) -> bool {
        let is_large = (MIN_ENTRIES..=MAX_ENTRIES).contains(&inputs.entries);
        if self.is_off.load(Relaxed) || !is_large || inputs.bytes > self.max_bytes {
            return false;
        }
        let mut known = self.known.lock();
        if let Some(found) = known.seen.iter().position(|root| *root == inputs.root) {
            known.seen.remove(found);
            drop(known);
            // An overlay does not show them if outputs are below.
            let mut directories = inputs.directories.values();
            return directories.all(|directory| directory.node_properties.is_none());
        }
        known.seen.push_back(inputs.root);
        if known.seen.len() > MAX_SEEN {
            known.seen.pop_front();
        }
        false
    }

    /// Keeps a tree for later actions, and removes those that have not been used for longest in exchange. Without room,
    /// as running actions have the others, it lasts as long as the caller has it.
    pub(super) fn add(&self, tree: &Arc<Tree>) {
        let mut removed = Vec::new();
        let mut known = self.known.lock();
        if known.trees.iter().any(|known| known.digest == tree.digest) {
            // Another action prepared it meanwhile.
            return;
        }
        while !self.has_room(&known.trees, tree) {
            let idle = known.trees.iter().position(is_idle);
            let Some(idle) = idle.and_then(|idle| known.trees.remove(idle)) else {
                return;
            };
            removed.push(idle);
        }
        known.trees.push_back(Arc::clone(tree));
    }

    fn has_room(&self, trees: &VecDeque<Arc<Tree>>, more: &Tree) -> bool {
        let sum = |of: fn(&Tree) -> u64| trees.iter().map(|tree| of(tree)).sum::<u64>() + of(more);
        trees.len() < MAX_TREES
            && sum(|tree| tree.entries) <= MAX_ENTRIES
            && sum(|tree| tree.bytes) <= self.max_bytes
    }

    /// Removes the trees that no action has. Blocks for a moment.
    pub(super) fn clear(&self) {
        let mut idle = Vec::new();
        let mut known = self.known.lock();
        for tree in std::mem::take(&mut known.trees) {
            if is_idle(&tree) {
                idle.push(tree);
            } else {
                known.trees.push_back(tree);
            }
        }
    }

    /// Prepares none from now on.
    pub(super) fn turn_off(&self) {
        self.is_off.store(true, Relaxed);
        self.clear();
    }
}

/// Returns whether no action has a tree.
fn is_idle(tree: &Arc<Tree>) -> bool {
    Arc::strong_count(tree) == 1
}
