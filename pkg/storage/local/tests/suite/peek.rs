//! Observers: reads that change nothing, and reports of evictions.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use crate::common::{self, candidates, content, open, path, put};
use gorego_storage::{DigestFunction, Error, Evictable as _, EvictionObserver, Peek as _};

#[derive(Debug, Default)]
struct Observer(Mutex<Vec<([u8; 32], bool)>>);

impl EvictionObserver for Observer {
    fn evicted(&self, hash_prefix: &[u8; 32], is_result: bool) {
        self.0.lock().unwrap().push((*hash_prefix, is_result));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_reads_without_changing_last_use_or_lease() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    common::scanned(&store).await;
    let blob = content(1, 5000);
    let digest = put(&store, &blob).await;
    common::put_result(&store, "i", &digest, 7).await;
    let before = candidates(&store);
    assert_eq!(store.peek_blob(&digest).await.unwrap(), blob);
    let result = store.peek_result("i", &digest).await.unwrap();
    assert_eq!(result.exit_code, 7);
    assert_eq!(candidates(&store), before);

    let other = DigestFunction::Sha256.digest(b"other");
    let missing = store.peek_blob(&other).await;
    assert!(matches!(missing, Err(Error::NotFound(_))), "{missing:?}");
    let missing = store.peek_result("j", &digest).await;
    assert!(matches!(missing, Err(Error::NoResult(_))), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_gets_no_corrupt_blob() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    common::scanned(&store).await;
    let digest = put(&store, &content(1, 5000)).await;
    let file = path(dir.path(), &digest);
    fs::remove_file(&file).unwrap();
    fs::write(&file, content(2, 5000)).unwrap();
    let corrupt = store.peek_blob(&digest).await;
    assert!(matches!(corrupt, Err(Error::NotFound(_))), "{corrupt:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_eviction_is_reported_to_the_observer() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    common::scanned(&store).await;
    let observer = Arc::new(Observer::default());
    store.observe_evictions(Arc::clone(&observer) as _);
    let digest = put(&store, &content(1, 5000)).await;
    common::put_result(&store, "i", &digest, 0).await;
    assert_eq!(store.evict(&candidates(&store), false).count, 1);
    let hash = digest.hash_prefix();
    assert_eq!(*observer.0.lock().unwrap(), [(hash, false)]);
    store.evict(&candidates(&store), true);
    assert_eq!(*observer.0.lock().unwrap(), [(hash, false), (hash, true)]);
}
