//! Content that is compressed on its way to a peer.

use crate::peer::{self, Act, Peer, within};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use gorego_storage::{Blob, BlobStore, BlobStream, Digest, Error, Put, Resume, UploadId};
use gorego_storage_conformance as conformance;
use gorego_storage_remote::RemoteStore;
use tonic::Code;

const MIB: usize = 1 << 20;

/// 5 MB that take little when compressed.
fn monotonous() -> Bytes {
    conformance::content(1, 1000).repeat(5000).into()
}

fn pieces(content: &Bytes) -> Vec<Result<Bytes, Error>> {
    let starts = (0..content.len()).step_by(100_000);
    let piece = |start: usize| content.slice(start..content.len().min(start + 100_000));
    starts.map(|start| Ok(piece(start))).collect()
}

fn stream_of(content: &Bytes) -> Blob {
    Blob::stream(stream::iter(pieces(content)))
}

async fn put(store: &RemoteStore, digest: &Digest, blob: Blob) -> Result<Put, Error> {
    within(store.put(digest, blob)).await
}

fn offsets(peer: &Peer) -> Vec<i64> {
    peer.calls("write").iter().map(|call| call.offset).collect()
}

#[tokio::test]
async fn an_interrupted_compressed_upload_restarts() {
    let peer = Peer::start().await;
    let content = monotonous();
    let digest = peer::sha256(&content);
    let store = peer.zstd_store();
    peer.script("write", [Act::CutAfter(500)]);
    assert_eq!(
        put(&store, &digest, Blob::Bytes(content.clone()))
            .await
            .unwrap(),
        Put::Stored
    );
    assert_eq!(peer.stored(&digest).unwrap(), content);
    let calls = peer.calls("write");
    assert_eq!(offsets(&peer), [0, 0]);
    assert_ne!(calls[0].name, calls[1].name);
    let sent: usize = calls[1].sizes.iter().sum();
    assert!(sent < content.len() / 10, "{sent} bytes were sent");

    let noise = conformance::content(3, MIB);
    let digest = peer::sha256(&noise);
    assert_eq!(
        put(&store, &digest, Blob::Bytes(noise.clone()))
            .await
            .unwrap(),
        Put::Stored
    );
    assert_eq!(peer.stored(&digest).unwrap(), noise);
}

#[tokio::test]
async fn a_stream_is_compressed_unless_its_owner_can_resume_it() {
    let peer = Peer::start().await;
    let store = peer.zstd_store();
    for content in [
        monotonous(),
        conformance::content(2, MIB),
        content_of_one_piece(),
    ] {
        let digest = peer::sha256(&content);
        let stored = put(&store, &digest, stream_of(&content)).await;
        assert_eq!(stored.unwrap(), Put::Stored);
        assert!(peer.stored(&digest).unwrap() == content);
    }
    let calls = peer.calls("write");
    let compressed = |call: &peer::Call| call.name.contains("/compressed-blobs/zstd/");
    assert!(calls.iter().all(compressed), "{calls:?}");
    let sent: usize = calls[0].sizes.iter().sum();
    assert!(sent < monotonous().len() / 10, "{sent} bytes were sent");

    let content = conformance::content(3, MIB);
    let digest = peer::sha256(&content);
    let named = Blob::Stream(BlobStream {
        chunks: stream::iter(pieces(&content)).boxed(),
        resume: Some(Resume {
            upload: UploadId::new("mine"),
            offset: 0,
        }),
        verified: None,
    });
    assert_eq!(put(&store, &digest, named).await.unwrap(), Put::Stored);
    let last = peer.calls("write").pop().unwrap();
    assert_eq!(last.name, format!("uploads/mine/blobs/{digest}"));
}

fn content_of_one_piece() -> Bytes {
    conformance::content(4, 100_000)
}

#[tokio::test]
async fn a_compressed_stream_of_wrong_size_or_hash_has_its_own_error() {
    let peer = Peer::start().await;
    let store = peer.zstd_store();
    let right = conformance::content(1, MIB);
    let digest = peer::sha256(&right);
    let longer: Bytes = [&right[..], b"x"].concat().into();
    let other = conformance::content(2, MIB);
    for wrong in [right.slice(..MIB - 1), longer, other] {
        let error = put(&store, &digest, stream_of(&wrong)).await.unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
        assert_eq!(peer.stored(&digest), None);
    }
    peer.script("write", [Act::Fail(Code::PermissionDenied)]);
    let error = put(&store, &digest, stream_of(&right)).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
}

#[tokio::test]
async fn a_peer_that_rejects_compressed_content_gets_it_uncompressed() {
    let peer = Peer::start().await;
    let store = peer.zstd_store();
    let content = monotonous();
    let digest = peer::sha256(&content);
    let small = Bytes::from(vec![7; 10_000]);
    let plain = |method: &str| {
        let calls = peer.calls(method);
        calls
            .iter()
            .map(|call| !call.name.contains("compressed-blobs"))
            .collect::<Vec<_>>()
    };
    for code in [Code::InvalidArgument, Code::Unimplemented] {
        let forget = || {
            peer.state.calls.lock().unwrap().clear();
            // As after an outage.
            peer.script("result", [Act::Fail(Code::Unavailable)]);
        };
        for blob in [
            Blob::Bytes(content.clone()),
            Blob::stream(stream::pending()),
        ] {
            forget();
            let action = gorego_storage::ActionCacheExt::find(&store, "", &digest);
            within(action).await.unwrap();
            peer.script("write", [Act::Fail(code)]);
            if matches!(blob, Blob::Stream(_)) {
                peer.script(
                    "write",
                    [Act::Answer(i64::try_from(content.len()).unwrap())],
                );
            }
            put(&store, &digest, blob).await.unwrap();
            assert_eq!(plain("write"), [false, true]);
        }
        peer.has(&content);
        forget();
        let action = gorego_storage::ActionCacheExt::find(&store, "", &digest);
        within(action).await.unwrap();
        peer.script("read", [Act::Fail(code)]);
        for plain_reads in [vec![false, true], vec![false, true, true]] {
            let blob = within(BlobStore::get(&store, &digest, 0)).await.unwrap();
            assert!(within(blob.into_bytes()).await.unwrap() == content);
            // It is not tried in vain again.
            assert_eq!(plain("read"), plain_reads);
        }
        peer.script("update", [Act::Fail(code)]);
        let stored = store.put_batch(vec![(peer::sha256(&small), small.clone())]);
        assert!(within(stored).await[0].is_ok());
        let sizes: Vec<_> = peer
            .calls("update")
            .iter()
            .map(|call| call.sizes[0])
            .collect();
        assert!(sizes[0] < 1000 && sizes[1] == small.len(), "{sizes:?}");
    }
}
