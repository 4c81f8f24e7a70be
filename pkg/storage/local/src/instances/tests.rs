use std::time::Duration;

use reapi::v2::ActionResult;

use super::*;
use crate::{LocalOptions, LocalStore, SyncMode};
use gorego_storage::{ActionCache, ActionCacheExt as _, Digest, DigestFunction};

fn hash(number: usize) -> InstanceHash {
    let mut hash = InstanceHash::default();
    hash[..8].copy_from_slice(&number.to_le_bytes());
    hash
}

fn used(numbers: std::ops::Range<usize>) -> HashMap<u32, InstanceUse> {
    let numbers = numbers.map(|number| u32::try_from(number).unwrap());
    numbers.map(|n| (n, InstanceUse::default())).collect()
}

#[test]
fn a_number_is_reused_once_its_instance_has_no_result() {
    let instances = Instances::default();
    let held = instances.intern(&hash(0)).unwrap();
    for number in 1..MAX {
        let interned = instances.intern(&hash(number)).unwrap();
        assert_eq!(instances.hash(interned.number), Some(hash(number)));
    }
    instances.release_unused(|| used(0..MAX));
    assert!(instances.intern(&hash(MAX)).is_none());
    // The index has results of all but two, and one of the two is about to get one.
    instances.release_unused(|| used(2..MAX));
    let new = instances.intern(&hash(MAX)).unwrap();
    assert!(instances.find(&hash(1)).is_none());
    assert_eq!(instances.hash(new.number), Some(hash(MAX)));
    let found = instances.find(&hash(0)).unwrap();
    assert_eq!(found.number, held.number);
}

async fn open(dir: &std::path::Path) -> LocalStore {
    let options = LocalOptions {
        dir: dir.to_owned(),
        max_bytes: 1 << 30,
        wake_bytes: 1 << 30,
        lease: Duration::from_hours(1),
        upload_lease: Duration::ZERO,
        force_update_atime: false,
        sync: SyncMode::None,
        scrub_period: None,
        pieces: None,
    };
    let store = LocalStore::open(options).await.unwrap();
    while !store.disk.is_scanned() {
        tokio::task::yield_now().await;
    }
    store
}

fn action(number: usize) -> Digest {
    DigestFunction::Sha256.digest(&number.to_le_bytes())
}

async fn put(store: &LocalStore, instance: &str, number: usize) {
    let (action, result) = (action(number), ActionResult::default());
    store.put(instance, &action, result).await.unwrap();
}

async fn has(store: &LocalStore, instance: &str, number: usize) -> bool {
    let found = store.find(instance, &action(number)).await.unwrap();
    found.is_some()
}

#[tokio::test]
async fn a_new_instance_name_is_served_when_all_numbers_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for number in 0..5 {
        put(&store, "main", number).await;
    }
    for number in 0..3 * MAX {
        let name = format!("name-{number}");
        put(&store, &name, number).await;
        assert!(has(&store, &name, number).await, "{name}");
    }
    store.close().await.unwrap();
    drop(store);

    let store = open(dir.path()).await;
    put(&store, "new", 0).await;
    for number in 0..5 {
        assert!(
            has(&store, "main", number).await,
            "the one with the most results stays"
        );
    }
    assert!(has(&store, "new", 0).await);
    assert!(!has(&store, "name-0", 0).await, "the oldest has gone");
    let folders = std::fs::read_dir(dir.path().join("ac/sha256")).unwrap();
    assert!((MAX - DROPPED..=MAX).contains(&folders.count()));
}

#[tokio::test]
async fn folders_of_instances_without_results_take_no_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    put(&store, "main", 1).await;
    store.close().await.unwrap();
    drop(store);
    for number in 0..2 * MAX {
        let folder = format!("ac/sha256/{number:032x}");
        std::fs::create_dir(dir.path().join(folder)).unwrap();
    }
    let store = open(dir.path()).await;
    assert!(has(&store, "main", 1).await);
    put(&store, "another", 2).await;
    let folders = std::fs::read_dir(dir.path().join("ac/sha256")).unwrap();
    assert_eq!(folders.count(), 2);
}
