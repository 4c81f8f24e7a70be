//! Conformance of the two tiers to the promises of a store.

use std::sync::{Arc, Mutex};

use crate::common::{self, Proxy};
use gorego_proxy::Options;
use gorego_storage_conformance as conformance;

/// The proxies of the stores under test, which own their directories.
type Kept = Mutex<Vec<Proxy>>;

async fn blobs(options: Options, kept: &Kept) -> Arc<gorego_proxy::ProxyStore> {
    let proxy = Proxy::with(options, common::GIB).await;
    let store = Arc::new(proxy.store.clone());
    kept.lock().unwrap().push(proxy);
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_store_passes_blob_conformance() {
    let kept = Kept::default();
    conformance::blob_store(async || blobs(common::options(), &kept).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_proxy_store_passes_blob_conformance() {
    let kept = Kept::default();
    let options = Options {
        read_only: true,
        ..common::options()
    };
    conformance::blob_store(async || blobs(options.clone(), &kept).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_store_passes_upload_conformance() {
    let kept = Kept::default();
    conformance::uploads(async || blobs(common::options(), &kept).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_store_that_stores_locally_first_passes_conformance() {
    let kept = Kept::default();
    let options = Options {
        local_first: true,
        ..common::options()
    };
    conformance::blob_store(async || blobs(options.clone(), &kept).await).await;
    conformance::uploads(async || blobs(options.clone(), &kept).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_store_passes_links_conformance() {
    let kept = Kept::default();
    conformance::links(async || blobs(common::options(), &kept).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_actions_pass_action_cache_conformance() {
    let kept = Kept::default();
    let make = async || {
        let proxy = Proxy::new().await;
        let actions = proxy.actions();
        // The results of the conformance suite name missing blobs.
        proxy.backing.script(|script| script.has_all = true);
        kept.lock().unwrap().push(proxy);
        Arc::new(actions)
    };
    conformance::action_cache(make).await;
}
