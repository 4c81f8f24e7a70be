//! Conformance tests of [`MemoryStore`].

use std::sync::Arc;

use gorego_storage::MemoryStore;
use gorego_storage_conformance as conformance;

async fn make() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_store_is_a_blob_store() {
    conformance::blob_store(make).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_store_resumes_uploads() {
    conformance::uploads(make).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_store_is_an_action_cache() {
    conformance::action_cache(make).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_store_links_and_adopts_files() {
    conformance::links(make).await;
}
