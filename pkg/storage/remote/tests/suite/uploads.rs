//! Uploads to a peer that misbehaves.

use std::sync::Arc;

use crate::peer::{self, Act, Line, Peer, within};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_storage::{
    Blob, BlobFile, BlobStore, BlobStream, Digest, Error, Put, Resume, UploadId, Uploads as _,
};
use gorego_storage_conformance as conformance;
use gorego_storage_remote::{BreakerOptions, RemoteAddress, RemoteOptions, RemoteStore};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

const MIB: usize = 1 << 20;

fn content(len: usize) -> Bytes {
    conformance::content(1, len)
}

fn file(content: &Bytes) -> Blob {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    Blob::File(BlobFile {
        file: Arc::new(file.reopen().unwrap()),
        path: file.path().to_owned(),
        offset: 0,
        len: content.len() as u64,
        guard: None,
    })
}

fn pieces(content: &Bytes) -> Vec<Result<Bytes, Error>> {
    let starts = (0..content.len()).step_by(100_000);
    let piece = |start: usize| content.slice(start..content.len().min(start + 100_000));
    starts.map(|start| Ok(piece(start))).collect()
}

fn stream_of(content: &Bytes) -> Blob {
    Blob::stream(stream::iter(pieces(content)))
}

/// A part of a named upload.
fn part(upload: &str, offset: usize, content: &Bytes) -> Blob {
    Blob::Stream(BlobStream {
        chunks: stream::iter(pieces(content)).boxed(),
        resume: Some(Resume {
            upload: UploadId::new(upload),
            offset: offset as u64,
        }),
        verified: None,
    })
}

async fn put(store: &RemoteStore, digest: &Digest, blob: Blob) -> Result<Put, Error> {
    within(store.put(digest, blob)).await
}

fn offsets(peer: &Peer) -> Vec<i64> {
    peer.calls("write").iter().map(|call| call.offset).collect()
}

#[tokio::test]
async fn an_interrupted_upload_resumes_at_the_committed_size() {
    let content = content(3 * MIB);
    let digest = peer::sha256(&content);
    for blob in [Blob::Bytes(content.clone()), file(&content)] {
        let peer = Peer::start().await;
        let cuts = [MIB, MIB, 2 * MIB + 1].map(Act::CutAfter);
        peer.script("write", cuts);
        let stored = put(&peer.store(), &digest, blob).await.unwrap();
        assert_eq!(stored, Put::Stored);
        assert_eq!(peer.stored(&digest).unwrap(), content);
        let mib = i64::try_from(MIB).unwrap();
        assert_eq!(offsets(&peer), [0, mib, mib, 2 * mib + 1]);
        let calls = peer.calls("write");
        assert!(calls.iter().all(|call| call.name == calls[0].name));
        let most = calls.iter().flat_map(|call| &call.sizes).max();
        assert!(most <= Some(&MIB), "{most:?}");
    }
}

#[tokio::test]
async fn an_upload_survives_a_cut_connection() {
    let peer = Peer::start().await;
    let content = content(4 * MIB);
    let digest = peer::sha256(&content);
    let line = Line::breaking_after(&peer, 2 * MIB, usize::MAX).await;
    let store = RemoteStore::new(&RemoteOptions {
        connections: 1,
        ..RemoteOptions::new(RemoteAddress::Tcp(line.address.clone()))
    });
    let stored = put(&store.unwrap(), &digest, Blob::Bytes(content.clone())).await;
    assert_eq!(stored.unwrap(), Put::Stored);
    assert_eq!(peer.stored(&digest).unwrap(), content);
    assert_eq!(offsets(&peer).len(), 2);
}

#[tokio::test]
async fn upload_attempts_without_progress_are_limited_and_the_error_names_the_peer() {
    let peer = Peer::start().await;
    let content = content(MIB);
    let digest = peer::sha256(&content);
    peer.script("write", vec![Act::CutAfter(1000); 5]);
    let error = put(&peer.impatient(1), &digest, Blob::Bytes(content)).await;
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains(&peer.address) && text.contains(&digest.hex()),
        "{text}"
    );
    assert_eq!(offsets(&peer), [0, 1000, 1000]);
}

#[tokio::test]
async fn an_upload_to_a_peer_that_keeps_losing_bytes_fails() {
    let peer = Peer::start().await;
    let content = content(2 * MIB);
    let digest = peer::sha256(&content);
    let turns = 10;
    for _ in 0..turns {
        peer.script("write", [Act::CutAfter(MIB), Act::Fail(Code::Unavailable)]);
        peer.script("query", [Act::Behave, Act::Fail(Code::NotFound)]);
    }
    let store = RemoteStore::new(&RemoteOptions {
        retries: 2,
        breaker: BreakerOptions {
            failures: u32::MAX,
            ..BreakerOptions::default()
        },
        ..peer.options()
    });
    let error = put(&store.unwrap(), &digest, Blob::Bytes(content)).await;
    assert!(matches!(error, Err(Error::Unavailable(_))), "{error:?}");
    assert!(peer.calls("write").len() < turns, "{:?}", offsets(&peer));
}

#[tokio::test]
async fn an_upload_of_a_present_blob_ends_at_once() {
    let peer = Peer::start().await;
    let content = content(64 * MIB);
    let digest = peer::sha256(&content);
    let size = i64::try_from(content.len()).unwrap();
    let store = peer.store();
    for blob in [
        Blob::Bytes(content.clone()),
        file(&content),
        stream_of(&content),
    ] {
        peer.script("write", [Act::Answer(size)]);
        assert_eq!(put(&store, &digest, blob).await.unwrap(), Put::Existed);
    }
    // Even of content that does not come.
    peer.script("write", [Act::Answer(size)]);
    let never = Blob::stream(stream::pending());
    assert_eq!(put(&store, &digest, never).await.unwrap(), Put::Existed);

    let store = peer.zstd_store();
    within(store.capabilities()).await.unwrap();
    peer.script("write", [Act::Answer(-1)]);
    let again = put(&store, &digest, Blob::Bytes(content)).await;
    assert_eq!(again.unwrap(), Put::Existed);
    let last = peer.calls("write").pop().unwrap();
    assert!(
        last.name.contains("compressed-blobs/zstd/"),
        "{}",
        last.name
    );
}

#[tokio::test]
async fn content_that_the_peer_does_not_need_is_dropped() {
    let peer = Peer::start().await;
    let content = content(MIB);
    let digest = peer::sha256(&content);
    let size = i64::try_from(content.len()).unwrap();
    for act in [Act::Answer(size), Act::AnswerOnly(size)] {
        peer.script("write", [act]);
        let (sender, receiver) = mpsc::channel(1);
        let blob = Blob::stream(ReceiverStream::new(receiver));
        let stored = put(&peer.store(), &digest, blob).await;
        assert_eq!(stored.unwrap(), Put::Existed);
        within(sender.closed()).await;
    }
}

#[tokio::test]
async fn an_interrupted_stream_is_resumed_by_its_owner() {
    let peer = Peer::start().await;
    let content = content(MIB);
    let digest = peer::sha256(&content);
    let store = peer.store();
    peer.script("write", [Act::CutAfter(300_000)]);
    let error = put(&store, &digest, part("mine", 0, &content)).await;
    assert!(matches!(error, Err(Error::Unavailable(_))), "{error:?}");
    let upload = UploadId::new("mine");
    assert_eq!(
        within(store.committed(&digest, &upload)).await.unwrap(),
        300_000
    );

    let far = part("mine", 300_001, &content.slice(300_001..));
    let error = put(&store, &digest, far).await;
    let refused = matches!(
        error,
        Err(Error::UploadOffset {
            committed: 300_000,
            ..
        })
    );
    assert!(refused, "{error:?}");

    let rest = part("mine", 300_000, &content.slice(300_000..));
    assert_eq!(put(&store, &digest, rest).await.unwrap(), Put::Stored);
    assert_eq!(peer.stored(&digest).unwrap(), content);
    let calls = peer.calls("write");
    assert_eq!(offsets(&peer), [0, 300_000]);
    assert!(
        calls
            .iter()
            .all(|call| call.name == format!("uploads/mine/blobs/{digest}"))
    );
    let committed = within(store.committed(&digest, &upload)).await.unwrap();
    assert_eq!(committed, MIB as u64);
}

#[tokio::test]
async fn a_peer_without_upload_status_has_committed_nothing() {
    let peer = Peer::start().await;
    let digest = peer::sha256(b"x");
    let store = peer.store();
    peer.script("query", [Act::Behave, Act::Fail(Code::Unimplemented)]);
    let upload = UploadId::new("u");
    for _ in 0..2 {
        let committed = store.committed(&digest, &upload);
        assert_eq!(within(committed).await.unwrap(), 0);
    }
    peer.script("query", [Act::Fail(Code::PermissionDenied)]);
    let error = within(store.committed(&digest, &UploadId::new("u"))).await;
    assert!(matches!(error, Err(Error::Refused { .. })), "{error:?}");
}

#[tokio::test]
async fn the_error_of_a_source_is_returned_and_its_upload_not_finished() {
    let peer = Peer::start().await;
    let content = content(MIB);
    let digest = peer::sha256(&content);
    let broken = Err(Error::source(std::io::Error::other("the client went away")));
    let pieces: Vec<_> = pieces(&content).into_iter().chain([broken]).collect();
    let blob = Blob::stream(stream::iter(pieces));
    let error = put(&peer.store(), &digest, blob).await.unwrap_err();
    assert!(matches!(error, Error::Source(_)), "{error:?}");
    assert_eq!(
        error.to_string(),
        "reading the content: the client went away"
    );
    assert_eq!(peer.stored(&digest), None);
    assert_eq!(peer.calls("write").len(), 1);
}

#[tokio::test]
async fn an_upload_to_a_stalled_peer_fails() {
    let peer = Peer::start().await;
    let content = content(4 * MIB);
    let digest = peer::sha256(&content);
    peer.script("write", vec![Act::Stall; 2]);
    let store = peer.impatient(0);
    for blob in [Blob::Bytes(content.clone()), stream_of(&content)] {
        let error = put(&store, &digest, blob).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
        assert!(error.to_string().contains("no answer in"), "{error}");
    }
    assert_eq!(
        put(&store, &digest, Blob::Bytes(content)).await.unwrap(),
        Put::Stored
    );
}

#[tokio::test]
async fn a_slow_source_does_not_count_as_a_stalled_peer() {
    let peer = Peer::start().await;
    let (content, other) = (content(MIB), conformance::content(2, MIB));
    let store = peer.impatient(0);
    let (first, second) = (content.slice(..MIB / 2), content.slice(MIB / 2..));
    let (patience_is_over, over) = tokio::sync::oneshot::channel();
    let slow = stream::iter([Ok(first)]).chain(stream::once(async move {
        over.await.unwrap();
        Ok(second)
    }));
    peer.script("write", [Act::Behave, Act::Stall, Act::Stall]);
    let digest = peer::sha256(&content);
    let slow = put(&store, &digest, Blob::stream(slow));
    let stalled = async {
        while peer.calls("write").is_empty() {
            tokio::task::yield_now().await;
        }
        for _ in 0..2 {
            let blob = Blob::Bytes(other.clone());
            put(&store, &peer::sha256(&other), blob).await.unwrap_err();
        }
        patience_is_over.send(()).unwrap();
    };
    let (stored, ()) = tokio::join!(slow, stalled);
    assert_eq!(stored.unwrap(), Put::Stored);
}

#[tokio::test]
async fn content_with_a_wrong_hash_is_a_mismatch_and_no_refusal() {
    let peer = Peer::start().await;
    let (right, wrong) = (content(MIB), conformance::content(2, MIB));
    let digest = peer::sha256(&right);
    let store = peer.store();
    for blob in [Blob::Bytes(wrong.clone()), file(&wrong), stream_of(&wrong)] {
        let error = put(&store, &digest, blob).await.unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
    }
    for (code, blob) in [
        (Code::InvalidArgument, Blob::Bytes(right.clone())),
        (Code::PermissionDenied, Blob::Bytes(right.clone())),
        (Code::Unauthenticated, stream_of(&right)),
    ] {
        peer.script("write", [Act::Fail(code)]);
        let error = put(&store, &digest, blob).await.unwrap_err();
        let same = matches!(&error, Error::Refused { code: c, .. } if *c == code);
        assert!(same, "{code:?}: {error:?}");
    }
    assert_eq!(peer.calls("write").len(), 6, "no refusal is tried again");
    peer.script("write", [Act::Fail(Code::AlreadyExists)]);
    assert_eq!(
        put(&store, &digest, Blob::Bytes(right)).await.unwrap(),
        Put::Existed
    );
}

#[tokio::test]
async fn the_bytes_sent_before_an_upload_is_dropped_reach_the_peer() {
    let peer = Peer::start().await;
    let content = content(MIB);
    let digest = peer::sha256(&content);
    let store = peer.store();
    let (delivered, all) = tokio::sync::oneshot::channel();
    let chunks = stream::iter([Ok(content.slice(..1000))]).chain(stream::once(async move {
        let _ = delivered.send(());
        std::future::pending().await
    }));
    let upload = Blob::Stream(BlobStream {
        chunks: chunks.boxed(),
        resume: Some(Resume {
            upload: UploadId::new("mine"),
            offset: 0,
        }),
        verified: None,
    });
    tokio::select! {
        ended = store.put(&digest, upload) => panic!("{ended:?}"),
        _ = all => {}
    }
    let kept = async {
        while store
            .committed(&digest, &UploadId::new("mine"))
            .await
            .unwrap()
            != 1000
        {
            tokio::task::yield_now().await;
        }
    };
    within(kept).await;
}
