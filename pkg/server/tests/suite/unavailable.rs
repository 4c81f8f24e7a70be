//! Statuses that clients get when the store fails.

use std::{io, sync::Arc};

use crate::common::*;
use async_trait::async_trait;
use bytes::Bytes;
use gorego_server::{Options, Stores};
use gorego_storage::{Blob, BlobStore, Digest, Error, MemoryStore, Put};
use prost::Message as _;
use reapi::{
    rpc,
    v2::{
        BatchReadBlobsRequest, BatchUpdateBlobsRequest, FindMissingBlobsRequest,
        batch_update_blobs_request::Request as BlobToStore,
    },
};
use tonic::Code;

/// A store that fails every call.
#[derive(Debug)]
struct Failing(Error);

#[async_trait]
impl BlobStore for Failing {
    async fn find_missing(&self, _: &[Digest]) -> Result<Vec<Digest>, Error> {
        Err(self.0.clone())
    }

    async fn get(&self, _: &Digest, _: u64) -> Result<Blob, Error> {
        Err(self.0.clone())
    }

    async fn put(&self, _: &Digest, _: Blob) -> Result<Put, Error> {
        Err(self.0.clone())
    }
}

async fn failing(error: Error) -> Server {
    let rest = Arc::new(MemoryStore::default());
    let stores = Stores {
        blobs: Arc::new(Failing(error)),
        uploads: Arc::<MemoryStore>::clone(&rest),
        actions: rest,
    };
    Server::over(stores, Options::default()).await
}

/// Returns the retry delay in the status of one blob, in seconds.
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

fn update(contents: &[Bytes]) -> BatchUpdateBlobsRequest {
    let requests = contents.iter().map(|data| BlobToStore {
        digest: Some(sha256(data).to_proto()),
        data: data.clone(),
        ..BlobToStore::default()
    });
    BatchUpdateBlobsRequest {
        requests: requests.collect(),
        ..BatchUpdateBlobsRequest::default()
    }
}

#[tokio::test]
async fn each_unavailable_blob_of_a_batch_has_a_retry_delay() {
    let server = failing(Error::Unavailable("it is away".to_owned())).await;
    let mut cas = server.cas().await;
    let contents = [b"one", b"two"].map(|content| Bytes::from_static(content));
    let digests = contents
        .each_ref()
        .map(|content| sha256(content).to_proto());
    let updated = cas.batch_update_blobs(update(&contents)).await;
    let updated = updated.unwrap().into_inner();
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

#[tokio::test]
async fn a_failure_of_the_disk_is_reported_with_its_cause_and_without_the_path() {
    // The system's numbers: no space, quota, permission, another file system, descriptors of the
    // process and of the system, and one without a name of its own.
    let cases = [
        (28, Code::ResourceExhausted, "the disk is full"),
        (122, Code::ResourceExhausted, "the disk quota is used up"),
        (13, Code::Internal, "permission denied"),
        (18, Code::Internal, "on another file system"),
        (
            24,
            Code::Unavailable,
            "the server is out of file descriptors",
        ),
        (
            23,
            Code::Unavailable,
            "the system is out of file descriptors",
        ),
        (116, Code::Internal, "Stale file handle"),
    ];
    for (number, code, cause) in cases {
        let error = io::Error::from_raw_os_error(number);
        let server = failing(Error::io("creating", "/secret/cas/ab", error)).await;
        let content = Bytes::from_static(b"content");
        let missing = FindMissingBlobsRequest {
            blob_digests: vec![sha256(&content).to_proto()],
            ..FindMissingBlobsRequest::default()
        };
        let mut cas = server.cas().await;
        let refused = cas.find_missing_blobs(missing).await.unwrap_err();
        let updated = cas.batch_update_blobs(update(&[content])).await;
        let updated = updated.unwrap().into_inner().responses.remove(0);
        let updated = updated.status.unwrap();
        for (told, message) in [
            (refused.code(), refused.message()),
            (Code::from(updated.code), &*updated.message),
        ] {
            assert_eq!(told, code, "{message}");
            assert!(message.contains(cause), "{cause} is missing in: {message}");
            assert!(!message.contains("/secret"), "{message}");
        }
    }
}
