//! Clients that stop sending or reading.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use crate::common::{
    raw::{RawClient, finish, framed},
    *,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use gorego_server::{Options, Stores};
use gorego_storage::{Blob, BlobStore, Digest, MemoryStore, Put, Result};
use http::{HeaderMap, HeaderName};
use prost::Message as _;
use reapi::{bytestream::ReadRequest, v2::BatchReadBlobsRequest};
use tokio::sync::watch;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

const IDLE: Duration = Duration::from_millis(100);

fn options() -> Options {
    let mut options = Options::default();
    options.transport.limits.idle_timeout = IDLE;
    options.limits.max_batch_bytes = 3 << 20;
    options
}

fn read_request(digest: &Digest) -> Bytes {
    let request = ReadRequest {
        resource_name: format!("blobs/{digest}"),
        ..ReadRequest::default()
    };
    framed(&request.encode_to_vec())
}

const READ: &str = "/google.bytestream.ByteStream/Read";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const WRITE: &str = "/google.bytestream.ByteStream/Write";
const STORAGE: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage";

fn within(timeout: &str) -> HeaderMap {
    HeaderMap::from_iter([(
        HeaderName::from_static("grpc-timeout"),
        timeout.parse().unwrap(),
    )])
}

#[tokio::test]
async fn uploads_and_streams_end_at_the_deadline_of_their_client() {
    let server = Server::start().await;
    let mut client = RawClient::connect(&server, 65_535).await;
    for path in [WRITE, WATCH] {
        let (response, mut request) = client.open_as(path, "application/grpc", within("50m"));
        let all_there_is = path == WATCH;
        let sent = framed(b"").slice(if all_there_is { 0..5 } else { 0..2 });
        request.send_data(sent, all_there_is).unwrap();
        let code = finish(response).await.code;
        assert_eq!(code, Some(Code::DeadlineExceeded), "{path}");
    }
}

#[tokio::test]
async fn a_stalled_download_ends_at_the_deadline_of_its_client() {
    let server = Server::start().await;
    let digest = server.has(&monotony(10_000_000)).await;
    let mut client = RawClient::connect(&server, 65_535).await;
    let (response, mut request) = client.open_as(READ, "application/grpc", within("2S"));
    request.send_data(read_request(&digest), true).unwrap();
    let reset = async {
        let mut body = response.await.unwrap().into_body();
        while let Some(piece) = body.data().await {
            if piece.is_err() {
                return;
            }
        }
        panic!("all of it came, although the client takes no more than a window");
    };
    tokio::time::timeout(LONG, reset).await.unwrap();
}

#[tokio::test]
async fn a_malformed_deadline_is_refused() {
    let server = Server::start().await;
    let mut client = RawClient::connect(&server, 65_535).await;
    let (response, mut request) = client.open_as(READ, "application/grpc", within("soon"));
    request.send_data(framed(b""), true).unwrap();
    let refused = finish(response).await;
    assert_eq!(refused.code, Some(Code::InvalidArgument));
    assert!(refused.message.contains("grpc-timeout"), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stalled_upload_is_ended_and_stays_resumable() {
    let server = Server::with(options()).await;
    let content = noise(100_000, 1);
    let digest = sha256(&content);
    for name in [
        upload_name("u", &digest),
        compressed_upload_name("v", &digest),
    ] {
        let sent = if name.contains("compressed") {
            zstd(&content)
        } else {
            content.clone()
        };
        let mut upload = OpenUpload::start(server.bytes().await);
        upload.send(messages(&name, &sent, 60_000).swap_remove(0));
        let outcome = upload.answer().await;
        assert_refused(outcome, Code::DeadlineExceeded, "arrived");
    }
    let status = query(&mut server.bytes().await, &upload_name("u", &digest)).await;
    assert_eq!(status.unwrap().committed_size, 60_000);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_request_is_ended_whatever_its_method() {
    let server = Server::with(options()).await;
    let mut client = RawClient::connect(&server, 65_535).await;
    // A name of 997 bytes.
    let message = framed(&[&[0x0a, 0xe5, 0x07], [0; 997].as_slice()].concat());
    for path in [
        format!("{STORAGE}/FindMissingBlobs"),
        format!("{STORAGE}/BatchUpdateBlobs"),
        READ.to_owned(),
        WRITE.to_owned(),
    ] {
        for sent in [0, 3, 5, 500] {
            let (response, mut request) = client.open(&path);
            request.send_data(message.slice(..sent), false).unwrap();
            let response = finish(response).await;
            assert_eq!(response.code, Some(Code::DeadlineExceeded), "{path} {sent}");
        }
    }
}

/// A store of endless blobs that counts the readers of each.
#[derive(Debug, Default)]
struct Endless {
    held: Arc<()>,
}

#[async_trait]
impl BlobStore for Endless {
    async fn find_missing(&self, _: &[Digest]) -> Result<Vec<Digest>> {
        Ok(Vec::new())
    }

    async fn get(&self, _: &Digest, _: u64) -> Result<Blob> {
        let chunk = noise(100_000, 1);
        let held = Arc::clone(&self.held);
        let chunks = stream::repeat_with(move || {
            let _ = &held;
            Ok(chunk.clone())
        });
        Ok(Blob::stream(chunks))
    }

    async fn put(&self, _: &Digest, _: Blob) -> Result<Put> {
        Ok(Put::Existed)
    }
}

/// Waits until the store alone holds the content.
async fn let_go(held: &Weak<()>) {
    let wait = async {
        while held.strong_count() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stalled_download_is_ended_and_its_memory_freed() {
    let store = Arc::new(Endless::default());
    let held = Arc::downgrade(&store.held);
    let memory = Arc::new(MemoryStore::default());
    let stores = Stores {
        blobs: store,
        uploads: Arc::<MemoryStore>::clone(&memory),
        actions: memory,
    };
    let server = Server::over(stores, options()).await;
    // From a client that never takes anything to one that takes some and stops.
    for window in [0, 1, 65_535, 1_000_000] {
        let mut client = RawClient::connect(&server, window).await;
        let (response, mut request) = client.open(READ);
        let read = read_request(&sha256(b"any"));
        request.send_data(read.clone(), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert!(held.strong_count() > 1);
        let ended = async {
            loop {
                // Taken out, but never released.
                match body.data().await {
                    Some(Ok(_)) => {}
                    other => return other,
                }
            }
        };
        let ended = tokio::time::timeout(LONG, ended).await.unwrap();
        let error = ended.expect("a reset").expect_err("no end of the content");
        assert!(error.is_reset(), "{error}");
        let_go(&held).await;
        // The connection is not to blame, and goes on.
        let (response, mut request) = client.open(READ);
        request.send_data(read, true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_batch_response_is_ended() {
    let server = Server::with(options()).await;
    let digest = server.has(&noise(1_000_000, 1)).await;
    let request = BatchReadBlobsRequest {
        digests: vec![digest.to_proto(); 3],
        ..BatchReadBlobsRequest::default()
    };
    let message = framed(&request.encode_to_vec());
    for window in [0, 1000] {
        let mut client = RawClient::connect(&server, window).await;
        let (response, mut request) = client.open(&format!("{STORAGE}/BatchReadBlobs"));
        request.send_data(message.clone(), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        let ended = async {
            loop {
                match body.data().await {
                    Some(Ok(_)) => {}
                    other => return other,
                }
            }
        };
        let ended = tokio::time::timeout(LONG, ended).await.unwrap();
        assert!(ended.unwrap().unwrap_err().is_reset());
    }
}

#[tokio::test(start_paused = true)]
async fn a_watcher_of_health_may_wait_beyond_the_idle_timeout() {
    let (healthy, receiver) = watch::channel(true);
    let mut options = options();
    options.transport.healthy = Some(receiver);
    let server = Server::with(options).await;
    let mut client = HealthClient::new(server.connect().await);
    let watched = client.watch(HealthCheckRequest::default()).await;
    let mut watched = watched.unwrap().into_inner();
    let first = watched.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    // Another client stalls, twice in a row: that is how the time passes here.
    let mut other = RawClient::connect(&server, 65_535).await;
    for _ in 0..2 {
        let (response, _request) = other.open(WRITE);
        let response = finish(response).await;
        assert_eq!(response.code, Some(Code::DeadlineExceeded));
    }
    healthy.send_replace(false);
    let second = watched.message().await.unwrap().unwrap();
    assert_eq!(second.status(), ServingStatus::NotServing);
}
