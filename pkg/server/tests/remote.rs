//! A store behind a real server keeps the promises of a store.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::{Arc, Mutex};

use common::*;
use gorego_storage::{
    RemoteAddress, RemoteOptions, RemoteStore,
    conformance::{self, Keeper},
};

/// Yields empty stores, each behind a server of its own; all of them end with this.
#[derive(Default)]
struct Stores(Mutex<Vec<Server>>);

impl Stores {
    async fn make(&self, zstd: bool) -> Arc<RemoteStore> {
        let server = Server::start().await;
        let store = RemoteStore::new(&RemoteOptions {
            zstd,
            ..RemoteOptions::new(RemoteAddress::Tcp(server.address.clone()))
        });
        self.0.lock().unwrap().push(server);
        Arc::new(store.unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stores_blobs() {
    let stores = Stores::default();
    conformance::blob_store_of(Keeper::Peer, || stores.make(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stores_blobs_that_are_compressed_on_the_way() {
    let stores = Stores::default();
    conformance::blob_store_of(Keeper::Peer, || stores.make(true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_uploads_that_break_off() {
    let stores = Stores::default();
    conformance::uploads_of(Keeper::Peer, || stores.make(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_caches_action_results() {
    let stores = Stores::default();
    conformance::action_cache_of(Keeper::Peer, || stores.make(false)).await;
}
