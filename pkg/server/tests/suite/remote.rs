//! A store behind a real server keeps the promises of a store.

use std::sync::{Arc, Mutex};

use crate::common::*;
use gorego_server::{Options, Stores};
use gorego_storage_conformance as conformance;
use gorego_storage_remote::{RemoteAddress, RemoteOptions, RemoteStore};

use reapi::v2::FindMissingBlobsRequest;
use tokio::net::TcpListener;
use tonic::Code;

/// A factory of empty stores, each behind a server of its own that ends with this.
#[derive(Default)]
struct Servers(Mutex<Vec<Server>>);

impl Servers {
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
async fn a_store_behind_the_server_passes_the_blob_conformance_suite() {
    let servers = Servers::default();
    conformance::remote_blob_store(|| servers.make(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_behind_the_server_passes_the_blob_conformance_suite_with_zstd() {
    let servers = Servers::default();
    conformance::remote_blob_store(|| servers.make(true)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_behind_the_server_passes_the_upload_conformance_suite() {
    let servers = Servers::default();
    conformance::remote_uploads(|| servers.make(false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_behind_the_server_passes_the_result_conformance_suite() {
    let servers = Servers::default();
    conformance::action_cache(|| servers.make(false)).await;
}

/// A server over its backing cache alone.
fn in_front_of(listener: TcpListener, backing: &str) -> Server {
    let options = RemoteOptions::new(RemoteAddress::Tcp(backing.to_owned()));
    let store = Arc::new(RemoteStore::new(&options).unwrap());
    let stores = Stores {
        blobs: Arc::clone(&store) as _,
        uploads: Arc::clone(&store) as _,
        actions: store,
    };
    let options = Options {
        chain: options.chain,
        ..Options::default()
    };
    Server::on(listener, stores, options)
}

async fn find_missing(server: &Server) -> Result<usize, tonic::Status> {
    let request = FindMissingBlobsRequest {
        blob_digests: vec![sha256(b"x").to_proto()],
        ..FindMissingBlobsRequest::default()
    };
    let mut cas = server.cas().await;
    let answer = tokio::time::timeout(LONG, cas.find_missing_blobs(request)).await;
    // No call hangs.
    let answer = answer.unwrap()?;
    Ok(answer.into_inner().missing_blob_digests.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_of_backing_caches_is_refused_over_any_number_of_hops() {
    for hops in 1..=4 {
        let mut listeners = Vec::new();
        for _ in 0..hops {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
        let next = addresses.iter().cycle().skip(1);
        let servers = listeners.into_iter().zip(next);
        let servers: Vec<_> = servers
            .map(|(listener, next)| in_front_of(listener, &next.to_string()))
            .collect();
        for server in &servers {
            let refused = find_missing(server).await;
            let named = if hops < 3 { "backing_cache.target" } else { "" };
            assert_refused(refused, Code::FailedPrecondition, named);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_backing_caches_is_no_loop() {
    let last = Server::start().await;
    let mut servers = vec![last];
    for _ in 0..20 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let next = servers.last().unwrap().address.clone();
        servers.push(in_front_of(listener, &next));
    }
    for server in &servers {
        assert_eq!(find_missing(server).await.unwrap(), 1);
    }
}
