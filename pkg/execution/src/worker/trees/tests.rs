//! Tests of prepared trees without actions.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use async_trait::async_trait;
use gorego_storage::{Adopt, DigestFunction, Result};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use super::{super::build_root::BuildRoot, *};
use crate::Directories;

/// A store whose pins lack room, and that loses blobs.
#[derive(Debug, Default)]
struct Store {
    lacking: AtomicU64,
    losses: AtomicU64,
}

#[async_trait]
impl Links for Store {
    fn lacking(&self) -> u64 {
        self.lacking.load(Relaxed)
    }

    fn losses(&self) -> u64 {
        self.losses.load(Relaxed)
    }

    async fn adopt(&self, _: DigestFunction, _: Vec<Adopt>) -> Vec<Result<Digest>> {
        Vec::new()
    }
}

/// Trees of 10 bytes each, which are tended.
struct Fixture {
    dir: TempDir,
    build_root: Arc<BuildRoot>,
    trees: Arc<Trees>,
    store: Arc<Store>,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let build_root = BuildRoot::open(dir.path()).unwrap();
        let (trees, store) = (Arc::new(Trees::new(true, 1000)), Arc::<Store>::default());
        let links = Arc::clone(&store) as _;
        TaskTracker::new().spawn(Arc::clone(&trees).tend(links, CancellationToken::new()));
        Self {
            dir,
            build_root,
            trees,
            store,
        }
    }

    fn inputs(number: u32) -> Inputs {
        Inputs {
            root: DigestFunction::Sha256.digest(&number.to_le_bytes()),
            directories: Directories::default(),
            entries: MIN_ENTRIES,
            bytes: 10,
        }
    }

    fn add(&self, number: u32) -> Arc<Tree> {
        let dir = self.build_root.create(None, false).unwrap();
        let pins = Arc::new(Pins::new(()));
        let losses = self.store.losses.load(Relaxed);
        let tree = Arc::new(Tree::new(dir, pins, &Self::inputs(number), losses));
        self.trees.add(&tree);
        tree
    }

    /// Returns the roots of the trees, the least recently used first, and the number of directories on disk.
    fn known(&self) -> (Vec<Digest>, usize) {
        let trees = &self.trees.known.lock().trees;
        let roots = trees.iter().map(|(tree, _)| tree.digest).collect();
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        // Beside the marker and the trash.
        (roots, entries.count() - 2)
    }

    fn expect(&self, numbers: &[u32]) {
        let roots = numbers.iter().map(|number| Self::inputs(*number).root);
        assert_eq!(self.known(), (roots.collect(), numbers.len()));
    }
}

#[tokio::test(start_paused = true)]
async fn pins_that_lack_room_get_that_of_the_oldest_trees_that_no_action_has() {
    let fixture = Fixture::new();
    let first = fixture.add(1);
    for number in 2..=5 {
        fixture.add(number);
    }
    // Pins may take long without a lack of room.
    sleep(PERIOD * 5 / 2).await;
    fixture.expect(&[1, 2, 3, 4, 5]);
    fixture.store.lacking.store(15, Relaxed);
    sleep(PERIOD).await;
    fixture.store.lacking.store(0, Relaxed);
    fixture.expect(&[1, 4, 5]);
    drop(first);
    sleep(2 * PERIOD).await;
    fixture.expect(&[1, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_tree_that_is_not_used_for_a_while_is_removed() {
    let fixture = Fixture::new();
    let in_use = fixture.add(1);
    fixture.add(2);
    fixture.add(3);
    sleep(UNUSED / 2).await;
    assert!(fixture.trees.get(&Fixture::inputs(2), 0).is_some());
    sleep(UNUSED * 3 / 4).await;
    fixture.expect(&[1, 2]);
    drop(in_use);
    sleep(UNUSED / 2).await;
    fixture.expect(&[1]);
    sleep(UNUSED).await;
    fixture.expect(&[]);
}

#[tokio::test(start_paused = true)]
async fn trees_are_removed_after_a_blob_was_lost() {
    let fixture = Fixture::new();
    fixture.add(1);
    fixture.store.losses.store(1, Relaxed);
    fixture.add(2);
    sleep(2 * PERIOD).await;
    fixture.expect(&[2]);
}

#[tokio::test(start_paused = true)]
async fn a_tree_that_could_not_be_used_is_removed_and_not_prepared_for_a_while() {
    let fixture = Fixture::new();
    fixture.add(1);
    let odd = fixture.add(2);
    fixture.trees.refuse(&odd);
    drop(odd);
    fixture.expect(&[1]);
    let wants = |number| fixture.trees.wants(&Fixture::inputs(number));
    assert_eq!([3, 3].map(wants), [false, true]);
    assert_eq!([2, 2, 2].map(wants), [false; 3]);
    sleep(UNUSED + 2 * PERIOD).await;
    assert_eq!([2, 2].map(wants), [false, true]);
}
