//! The store in memory keeps every promise of a store.

use std::sync::Arc;

use gorego_storage::MemoryStore;
use gorego_storage_conformance as conformance;

async fn make() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stores_blobs() {
    conformance::blob_store(make).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_uploads_that_break_off() {
    conformance::uploads(make).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_caches_action_results() {
    conformance::action_cache(make).await;
}
