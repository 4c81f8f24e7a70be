//! Prepared trees: large input trees on disk that several actions have at once, each below an overlay of its own.
//!
//! A tree is prepared when its root comes for the second time. It pins its blobs. It is removed when pins of actions
//! lack room, when a blob was lost, and when it was not used for a while.

#[cfg(test)]
mod tests;

use std::{collections::VecDeque, os::fd::OwnedFd, sync::Arc, time::Duration};

use gorego_storage::{Digest, Links, Pins};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::build_root::ActionDir;
use crate::Inputs;

/// The least entries of an input tree that is prepared.
const MIN_ENTRIES: u64 = 1000;
/// The most entries of all prepared trees.
const MAX_ENTRIES: u64 = 500_000;
/// The most prepared trees.
const MAX_TREES: usize = 32;
/// The most roots that are remembered because they came once, and because they could not be used.
const MAX_SEEN: usize = 1000;

/// The time for which an unused tree lasts, and for which no tree is prepared of a root that could not be used.
const UNUSED: Duration = Duration::from_mins(15);
/// The time between two checks of the trees: pins that need the room of some wait for as long.
const PERIOD: Duration = Duration::from_secs(1);

/// A prepared tree. It is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Tree {
    // Dropped in this order.
    dir: ActionDir,
    _pins: Arc<Pins>,
    digest: Digest,
    /// The losses of the store before it was prepared ([`Links::losses`]).
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
    /// Set if actions have a root of their own, which an overlay needs.
    is_on: bool,
}

#[derive(Debug, Default)]
struct Known {
    /// The trees and the time when each was in use last, the least recently used first.
    trees: VecDeque<(Arc<Tree>, Instant)>,
    /// The roots that came once, the oldest first.
    seen: VecDeque<Digest>,
    /// The roots whose tree could not be used, and since when, the oldest first.
    refused: VecDeque<(Digest, Instant)>,
}

impl Known {
    /// Removes and returns the tree of a root.
    fn remove(&mut self, root: Digest) -> Option<Arc<Tree>> {
        let found = self.trees.iter().position(|(tree, _)| tree.digest == root);
        self.trees.remove(found?).map(|(tree, _)| tree)
    }

    /// Removes and returns the tree that no action has and that has not been used for longest.
    fn remove_oldest(&mut self) -> Option<Arc<Tree>> {
        let idle = self.trees.iter().position(|(tree, _)| is_idle(tree));
        self.trees.remove(idle?).map(|(tree, _)| tree)
    }
}

impl Trees {
    /// Creates an empty set of trees. It stays empty unless actions have a root of their own.
    pub(super) fn new(has_root: bool, max_input_bytes: u64) -> Self {
        Self {
            known: Mutex::default(),
            max_bytes: max_input_bytes / 4,
            is_on: has_root,
        }
    }

    /// Returns the tree of these inputs, if it is prepared and none of its blobs may have been lost since.
    pub(super) fn get(&self, inputs: &Inputs, losses: u64) -> Option<Arc<Tree>> {
        let mut known = self.known.lock();
        let tree = known.remove(inputs.root)?;
        if tree.losses != losses {
            drop(known);
            return None;
        }
        known.trees.push_back((Arc::clone(&tree), Instant::now()));
        Some(tree)
    }

    /// Returns whether the tree of these inputs is to be prepared. Remembers them.
    pub(super) fn wants(&self, inputs: &Inputs) -> bool {
        let is_large = (MIN_ENTRIES..=MAX_ENTRIES).contains(&inputs.entries);
        if !self.is_on || !is_large || inputs.bytes > self.max_bytes {
            return false;
        }
        let mut known = self.known.lock();
        if known.refused.iter().any(|(root, _)| *root == inputs.root) {
            return false;
        }
        if let Some(found) = known.seen.iter().position(|root| *root == inputs.root) {
            known.seen.remove(found);
            drop(known);
            // An overlay does not show them if outputs are below.
            let mut directories = inputs.directories.iter();
            return directories.all(|(_, directory)| directory.node_properties.is_none());
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
        let mut trees = known.trees.iter();
        if trees.any(|(known, _)| known.digest == tree.digest) {
            // Another action prepared it meanwhile.
            return;
        }
        while !self.has_room(&known.trees, tree) {
            let Some(oldest) = known.remove_oldest() else {
                return;
            };
            removed.push(oldest);
        }
        known.trees.push_back((Arc::clone(tree), Instant::now()));
    }

    fn has_room(&self, trees: &VecDeque<(Arc<Tree>, Instant)>, more: &Tree) -> bool {
        let sum = |of: fn(&Tree) -> u64| {
            let trees = trees.iter().map(|(tree, _)| of(tree));
            trees.sum::<u64>() + of(more)
        };
        trees.len() < MAX_TREES
            && sum(|tree| tree.entries) <= MAX_ENTRIES
            && sum(|tree| tree.bytes) <= self.max_bytes
    }

    /// Removes a tree that an action could not use, and prepares none of this root for a while.
    pub(super) fn refuse(&self, tree: &Tree) {
        let mut known = self.known.lock();
        let removed = known.remove(tree.digest);
        known.refused.push_back((tree.digest, Instant::now()));
        if known.refused.len() > MAX_SEEN {
            known.refused.pop_front();
        }
        drop((known, removed));
    }

    /// Removes all trees that no action has, as the disk is full. Blocks for a moment.
    pub(super) fn clear(&self) {
        self.shed(u64::MAX);
    }

    /// Removes the trees that no action has and that have not been used for longest, until they had this many bytes.
    fn shed(&self, bytes: u64) {
        let (mut removed, mut released) = (Vec::new(), 0_u64);
        let mut known = self.known.lock();
        while released < bytes
            && let Some(tree) = known.remove_oldest()
        {
            released = released.saturating_add(tree.bytes);
            removed.push(tree);
        }
        drop((known, removed));
    }

    /// Removes trees of which a blob may have been lost, and those that were not used for a while.
    fn age(&self, losses: u64) {
        let (now, mut removed) = (Instant::now(), Vec::new());
        let mut known = self.known.lock();
        for (tree, used) in std::mem::take(&mut known.trees) {
            let used = if is_idle(&tree) { used } else { now };
            if tree.losses == losses && now - used < UNUSED {
                known.trees.push_back((tree, used));
            } else {
                removed.push(tree);
            }
        }
        known.refused.retain(|(_, since)| now - *since < UNUSED);
        drop((known, removed));
    }

    /// Removes trees when pins wait for room, when blobs were lost, and after a time without use, until `stop` is
    /// cancelled. Runs for as long as there may be trees.
    pub(super) async fn tend(self: Arc<Self>, links: Arc<dyn Links>, stop: CancellationToken) {
        while self.is_on && stop.run_until_cancelled(sleep(PERIOD)).await.is_some() {
            self.shed(links.lacking());
            self.age(links.losses());
        }
    }
}

/// Returns whether no action has a tree.
fn is_idle(tree: &Arc<Tree>) -> bool {
    Arc::strong_count(tree) == 1
}
