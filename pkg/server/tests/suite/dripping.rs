//! Slow clients that hold memory or files which others wait for.

use std::time::Duration;

use crate::common::{
    raw::{RawClient, RawResponse, announce, finish, framed, send},
    *,
};
use bytes::Bytes;
use futures::future::select_all;
use gorego_limits::Budget;
use gorego_server::Options;
use gorego_storage::Digest;
use h2::{RecvStream, SendStream, client::ResponseFuture};
use prost::Message as _;
use reapi::{
    bytestream::{ReadRequest, WriteRequest},
    v2::{
        BatchReadBlobsRequest, BatchUpdateBlobsRequest, batch_update_blobs_request::Request as Blob,
    },
};
use tokio::{
    task::JoinSet,
    time::{interval, timeout},
};
use tonic::Code;

const READ: &str = "/google.bytestream.ByteStream/Read";
const FIND: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs";
const BATCH: &str = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs";

const MIB: usize = 1024 * 1024;

/// A server whose memory for large requests and responses is 20 and 16 MiB.
async fn server() -> Server {
    Server::limited(|options| {
        options.transport.limits.grace = Duration::from_millis(100);
        options.limits.max_batch_bytes = 3 << 20;
    })
    .await
}

/// Sends a byte every few milliseconds until the call ends.
async fn drip(call: (ResponseFuture, SendStream<Bytes>)) -> RawResponse {
    let (response, mut request) = call;
    let endless = async {
        let mut drops = interval(Duration::from_millis(10));
        loop {
            drops.tick().await;
            let _ = request.send_data(Bytes::from_static(&[0]), false);
        }
    };
    tokio::select! {
        response = finish(response) => response,
        () = endless => unreachable!(),
    }
}

/// Reads a byte every few milliseconds until the call ends.
async fn sip(mut body: RecvStream) -> h2::Error {
    let mut sips = interval(Duration::from_millis(10));
    while let Some(data) = body.data().await {
        match data {
            Ok(data) => body.flow_control().release_capacity(data.len()).unwrap(),
            Err(ended) => return ended,
        }
        sips.tick().await;
    }
    panic!("the whole response came");
}

/// Returns the status of the first of these calls to end.
async fn first<T>(calls: impl IntoIterator<Item = impl Future<Output = T>>) -> T {
    let calls = select_all(calls.into_iter().map(Box::pin));
    timeout(LONG, calls).await.expect("one gives way").0
}

fn assert_gave_way(response: &RawResponse) {
    assert_eq!(response.code, Some(Code::ResourceExhausted), "{response:?}");
    assert!(response.message.contains("slow"), "{response:?}");
}

#[tokio::test]
async fn slow_large_requests_give_way_to_waiting_ones() {
    let server = server().await;
    let mut client = RawClient::connect(&server, 65_535).await;
    let mut calls = Vec::new();
    // Memory is set aside for one of them, the others wait.
    for _ in 0..4 {
        calls.push(announce(&mut client, FIND, 16 * MIB, 1000).await);
    }
    let content = noise(5 * MIB / 2, 1);
    let digest = sha256(&content);
    let mut cas = server.cas().await;
    let batch = cas.batch_update_blobs(BatchUpdateBlobsRequest {
        requests: vec![Blob {
            digest: Some(digest.to_proto()),
            data: content,
            ..Blob::default()
        }],
        ..BatchUpdateBlobsRequest::default()
    });
    let (dripping, stored) = tokio::join!(first(calls.into_iter().map(drip)), batch);
    assert_gave_way(&dripping);
    stored.unwrap();
    assert!(server.stored(&digest).await.is_some());
}

fn batch_read(digest: &Digest) -> BatchReadBlobsRequest {
    BatchReadBlobsRequest {
        digests: vec![digest.to_proto()],
        ..BatchReadBlobsRequest::default()
    }
}

#[tokio::test]
async fn slow_readers_of_batches_give_way_to_a_waiting_one() {
    let server = server().await;
    let content = noise(3_100_000, 1);
    let digest = server.has(&content).await;
    let mut client = RawClient::connect(&server, 1).await;
    let message = framed(&batch_read(&digest).encode_to_vec());
    let mut bodies = Vec::new();
    for _ in 0..16 {
        let (response, mut request) = client.open(BATCH);
        request.send_data(message.clone(), true).unwrap();
        bodies.push(response.await.unwrap().into_body());
    }
    let mut cas = server.cas().await;
    let batch = cas.batch_read_blobs(batch_read(&digest));
    let (sipping, batch) = tokio::join!(first(bodies.into_iter().map(sip)), batch);
    assert!(sipping.is_reset(), "{sipping}");
    assert_eq!(batch.unwrap().into_inner().responses[0].data, content);
}

#[tokio::test]
async fn slow_compressed_uploads_give_way_to_a_waiting_one_and_stay_resumable() {
    const UPLOADS: usize = 64;
    let server = server().await;
    let content = noise(200_000, 1);
    let digest = sha256(&content);
    let half = zstd(&content[..100_000]);
    let client = server.bytes().await;
    let mut uploads = Vec::new();
    for number in 0..UPLOADS {
        let name = compressed_upload_name(&number.to_string(), &digest);
        let upload = OpenUpload::start(client.clone());
        upload.send(WriteRequest {
            resource_name: name.clone(),
            data: half.clone(),
            ..WriteRequest::default()
        });
        uploads.push((upload, name));
    }
    server.has_taken(UPLOADS as u64 * 100_000).await;
    let dripping = uploads.into_iter().map(async |(mut upload, name)| {
        let answer = upload.answer().await;
        (answer, name)
    });
    let other = monotony(100_000);
    let other_name = compressed_upload_name("other", &sha256(&other));
    let mut other_client = server.bytes().await;
    let other = write(&mut other_client, messages(&other_name, &zstd(&other), 50));
    let ((dripping, name), other) = tokio::join!(first(dripping), other);
    other.unwrap();
    assert_refused(dripping, Code::ResourceExhausted, "slow");
    let mut client = server.bytes().await;
    let status = query(&mut client, &name).await.unwrap();
    assert_eq!(status.committed_size, 100_000);
    let rest = zstd(&content[100_000..]);
    write(&mut client, messages_from(&name, 100_000, &rest, MIB))
        .await
        .unwrap();
    assert_eq!(server.stored(&digest).await.unwrap(), content);
}

#[tokio::test]
async fn a_compressed_read_does_not_wait_for_other_readers() {
    let server = server().await;
    let content = monotony(3 * MIB);
    let digest = server.has(&content).await;
    let name = format!("compressed-blobs/zstd/{digest}");
    let request = ReadRequest {
        resource_name: name.clone(),
        ..ReadRequest::default()
    };
    let message = framed(&request.encode_to_vec());
    let mut stalled = RawClient::connect(&server, 1).await;
    let mut bodies = Vec::new();
    for _ in 0..64 {
        let (response, mut request) = stalled.open(READ);
        request.send_data(message.clone(), true).unwrap();
        bodies.push(response.await.unwrap().into_body());
    }
    let mut client = server.bytes().await;
    let found = timeout(LONG, read(&mut client, &name, 0, 0)).await;
    let found = found.expect("an answer").unwrap();
    assert!(found.len() > content.len(), "there is no room to compress");
    assert_eq!(unzstd(&found), content);
    drop(bodies);
}

/// Waits until this many connections wait for a budget.
async fn wait_for(budget: &Budget, connections: usize) {
    let waiting = async {
        while budget.waiting() != connections {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, waiting).await.expect("so many wait");
}

#[tokio::test]
async fn a_waiting_connection_is_served_before_the_second_request_of_another() {
    let mut options = Options::default();
    options.transport.limits.grace = LONG;
    let requests = Budget::memory("tests", 2 * MIB as u64);
    options.transport.memory.requests = requests.clone();
    let server = Server::with(options).await;
    let content = noise(3 * MIB / 2, 1);
    let digest = sha256(&content);
    let mut greedy = RawClient::connect(&server, 65_535).await;
    let first = announce(&mut greedy, FIND, 3 * MIB / 2, 1000).await;
    while requests.try_reserve(MIB as u64).is_some() {
        tokio::task::yield_now().await;
    }
    let second = announce(&mut greedy, FIND, 3 * MIB / 2, 1000).await;
    let third = announce(&mut greedy, FIND, 3 * MIB / 2, 1000).await;
    wait_for(&requests, 1).await;
    let mut cas = server.cas().await;
    let mut batch = JoinSet::new();
    batch.spawn(async move {
        cas.batch_update_blobs(BatchUpdateBlobsRequest {
            requests: vec![Blob {
                digest: Some(digest.to_proto()),
                data: content,
                ..Blob::default()
            }],
            ..BatchUpdateBlobsRequest::default()
        })
        .await
    });
    wait_for(&requests, 2).await;
    let (response, mut request) = first;
    send(&mut request, 3 * MIB / 2 - 1000).await;
    request.send_data(Bytes::new(), true).unwrap();
    finish(response).await;
    let stored = timeout(LONG, batch.join_next()).await.expect("its turn");
    stored.unwrap().unwrap().unwrap();
    assert!(server.stored(&digest).await.is_some());
    drop((second, third));
}

#[tokio::test]
async fn stalled_reads_of_large_blobs_release_their_open_files() {
    let mut options = Options::default();
    options.transport.limits.grace = Duration::from_millis(100);
    let files = Budget::count("files", 2);
    options.memory.files = files.clone();
    let server = Server::with(options).await;
    let content = noise(MIB, 1);
    let name = format!("blobs/{}", server.has(&content).await);
    let small = format!("blobs/{}", server.has(b"small").await);
    let request = ReadRequest {
        resource_name: name.clone(),
        ..ReadRequest::default()
    };
    let message = framed(&request.encode_to_vec());
    let mut stalled = RawClient::connect(&server, 1).await;
    let mut bodies = Vec::new();
    for _ in 0..2 {
        let (response, mut request) = stalled.open(READ);
        request.send_data(message.clone(), true).unwrap();
        bodies.push(response.await.unwrap().into_body());
    }
    wait_until_none_is_free(&files).await;
    let mut client = server.bytes().await;
    assert_eq!(read(&mut client, &small, 0, 0).await.unwrap(), b"small");
    let found = timeout(LONG, read(&mut client, &name, 0, 0)).await;
    assert_eq!(found.expect("an answer").unwrap(), content);
    drop(bodies);
}

#[tokio::test]
async fn stalled_uploads_release_their_open_files() {
    let mut options = Options::default();
    options.transport.limits.grace = Duration::from_millis(100);
    let files = Budget::count("files", 2);
    options.memory.files = files.clone();
    let server = Server::with(options).await;
    let content = noise(MIB, 1);
    let digest = sha256(&content);
    let client = server.bytes().await;
    let stalled = [
        (upload_name("1", &digest), content.clone()),
        (compressed_upload_name("2", &digest), zstd(&content)),
    ];
    let mut uploads = Vec::new();
    for (name, content) in stalled {
        let upload = OpenUpload::start(client.clone());
        upload.send(messages(&name, &content, MIB / 2).swap_remove(0));
        uploads.push(upload);
    }
    wait_until_none_is_free(&files).await;
    // A small blob in one message needs none.
    let small = Bytes::from_static(b"small");
    let name = upload_name("3", &sha256(&small));
    let mut other = server.bytes().await;
    write(&mut other, messages(&name, &small, 5)).await.unwrap();
    let large = noise(MIB, 2);
    let name = upload_name("4", &sha256(&large));
    let stalled = uploads.iter_mut().map(OpenUpload::answer);
    let written = write(&mut other, messages(&name, &large, MIB / 2));
    let (stalled, written) = tokio::join!(first(stalled), written);
    written.unwrap();
    assert_refused(stalled, Code::ResourceExhausted, "slow");
}

#[tokio::test]
async fn uploads_that_need_no_file_are_answered_while_none_is_free() {
    let mut options = Options::default();
    let files = Budget::count("files", 1);
    options.memory.files = files.clone();
    let server = Server::with(options).await;
    let _taken = files.reserve(1).await.unwrap();
    let mut client = server.bytes().await;
    let stored = noise(MIB, 1);
    let digest = server.has(&stored).await;
    let small = noise(1000, 2);
    let large_names = [
        (upload_name("1", &digest), stored.clone()),
        (compressed_upload_name("2", &digest), zstd(&stored)),
    ];
    for (name, content) in large_names {
        write(&mut client, messages(&name, &content, MIB / 2))
            .await
            .unwrap();
    }
    let name = compressed_upload_name("3", &sha256(&small));
    write(&mut client, messages(&name, &zstd(&small), MIB))
        .await
        .unwrap();
    assert_eq!(server.stored(&sha256(&small)).await.unwrap(), small);
}

async fn wait_until_none_is_free(budget: &Budget) {
    let taken = async {
        while budget.try_reserve(1).is_some() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, taken).await.expect("all are taken");
}
