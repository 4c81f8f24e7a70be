//! Handlers that panic.

use std::sync::Arc;

use crate::common::*;
use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use gorego_server::{Options, Stores};
use gorego_storage::{Blob, BlobStore, Digest, MemoryStore, Put, Result};
use tonic::Code;

/// A store that panics when it reads one of these.
#[derive(Debug)]
struct Panicking;

const AT_ONCE: &[u8] = b"at once";
const WITHIN: &[u8] = b"within the stream";

#[async_trait]
impl BlobStore for Panicking {
    async fn find_missing(&self, _: &[Digest]) -> Result<Vec<Digest>> {
        Ok(Vec::new())
    }

    async fn get(&self, digest: &Digest, _: u64) -> Result<Blob> {
        assert_ne!(*digest, sha256(AT_ONCE), "a fault of the store");
        if *digest == sha256(WITHIN) {
            let first = stream::iter([Ok(noise(1000, 1))]);
            let fault = stream::once(async { panic!("a fault of the store") });
            return Ok(Blob::stream(first.chain(fault)));
        }
        Ok(Blob::Bytes(noise(7, 1)))
    }

    async fn put(&self, _: &Digest, _: Blob) -> Result<Put> {
        panic!("a fault of the store")
    }
}

#[tokio::test]
async fn a_panic_fails_its_call_alone_with_internal() {
    let memory = Arc::new(MemoryStore::default());
    let stores = Stores {
        blobs: Arc::new(Panicking),
        uploads: Arc::<MemoryStore>::clone(&memory),
        actions: memory,
    };
    let server = Server::over(stores, Options::default()).await;
    let mut client = server.bytes().await;
    for fault in [AT_ONCE, WITHIN] {
        let name = format!("blobs/{}", sha256(fault));
        let outcome = read(&mut client, &name, 0, 0).await;
        assert_refused(outcome, Code::Internal, "the server");
    }
    let content = noise(10, 1);
    let upload = messages(&upload_name("u", &sha256(&content)), &content, 3);
    let outcome = write(&mut client, upload).await;
    assert_refused(outcome, Code::Internal, "the server");

    let name = format!("blobs/{}", sha256(b"another"));
    assert_eq!(read(&mut client, &name, 0, 0).await.unwrap(), noise(7, 1));
}
