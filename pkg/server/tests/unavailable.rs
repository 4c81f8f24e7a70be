//! What clients are told while the store is out of reach.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

mod common;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use common::*;
use gorego_server::{Options, Services};
use gorego_storage::{Blob, BlobStore, Digest, Error, MemoryStore, Put};
use prost::Message as _;
use reapi::{
    rpc,
    v2::{
        BatchReadBlobsRequest, BatchUpdateBlobsRequest,
        batch_update_blobs_request::Request as BlobToStore,
    },
};
use tonic::Code;

/// A store that nobody reaches.
#[derive(Debug)]
struct Away;

fn away() -> Error {
    Error::Unavailable("it is away".to_owned())
}

#[async_trait]
impl BlobStore for Away {
    async fn find_missing(&self, _: &[Digest]) -> Result<Vec<Digest>, Error> {
        Err(away())
    }

    async fn get(&self, _: &Digest, _: u64) -> Result<Blob, Error> {
        Err(away())
    }

    async fn put(&self, _: &Digest, _: Blob) -> Result<Put, Error> {
        Err(away())
    }
}

async fn server() -> Server {
    let rest = Arc::new(MemoryStore::default());
    let services = Services {
        blobs: Arc::new(Away),
        uploads: Arc::<MemoryStore>::clone(&rest),
        actions: rest,
    };
    Server::over(services, Options::default()).await
}

/// How many seconds to wait before the next try, as the status of one blob tells.
fn retry_after(status: Option<rpc::Status>) -> i64 {
    let status = status.unwrap();
    assert_eq!(Code::from(status.code), Code::Unavailable);
    let [detail] = status.details.as_slice() else {
        panic!("one detail, not {}", status.details.len());
    };
    assert_eq!(detail.type_url, "type.googleapis.com/google.rpc.RetryInfo");
    let retry = rpc::RetryInfo::decode(detail.value.as_slice()).unwrap();
    retry.retry_delay.unwrap().seconds
}

#[tokio::test]
async fn each_blob_of_a_batch_is_told_when_to_try_again() {
    let server = server().await;
    let mut cas = server.cas().await;
    let contents = [b"one", b"two"].map(|content| Bytes::from_static(content));
    let digests = contents
        .each_ref()
        .map(|content| sha256(content).to_proto());
    let requests = contents.into_iter().zip(&digests);
    let update = BatchUpdateBlobsRequest {
        requests: requests
            .map(|(data, digest)| BlobToStore {
                digest: Some(digest.clone()),
                data,
                ..BlobToStore::default()
            })
            .collect(),
        ..BatchUpdateBlobsRequest::default()
    };
    let updated = cas.batch_update_blobs(update).await.unwrap().into_inner();
    let read = BatchReadBlobsRequest {
        digests: digests.to_vec(),
        ..BatchReadBlobsRequest::default()
    };
    let read = cas.batch_read_blobs(read).await.unwrap().into_inner();
    let updated = updated.responses.into_iter().map(|blob| blob.status);
    let read = read.responses.into_iter().map(|blob| blob.status);
    let delays: Vec<_> = updated.chain(read).map(retry_after).collect();
    assert_eq!(delays, [1; 4]);
}
