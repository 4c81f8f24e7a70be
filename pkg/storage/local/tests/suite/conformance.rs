//! The store on a local disk keeps every promise of a store.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use crate::common;
use gorego_storage_conformance as conformance;
use gorego_storage_local::LocalStore;

/// Opens a new store below `root`.
async fn make(root: &Path, count: &AtomicU32) -> Arc<LocalStore> {
    let dir = root.join(count.fetch_add(1, Relaxed).to_string());
    common::open(&dir).await
}

#[tokio::test(flavor = "multi_thread")]
async fn local_store_passes_blob_conformance() {
    let (root, count) = (tempfile::tempdir().unwrap(), AtomicU32::new(0));
    conformance::blob_store(async || make(root.path(), &count).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_store_passes_upload_conformance() {
    let (root, count) = (tempfile::tempdir().unwrap(), AtomicU32::new(0));
    conformance::uploads(async || make(root.path(), &count).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_store_passes_links_conformance() {
    let (root, count) = (tempfile::tempdir().unwrap(), AtomicU32::new(0));
    conformance::links(async || make(root.path(), &count).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_store_passes_action_cache_conformance() {
    let (root, count) = (tempfile::tempdir().unwrap(), AtomicU32::new(0));
    conformance::action_cache(async || make(root.path(), &count).await).await;
}
