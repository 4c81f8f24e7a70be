//! Downloads from a peer that does not always do as it should.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

#[path = "common/peer/mod.rs"]
mod peer;

use bytes::Bytes;
use futures::StreamExt as _;
use gorego_storage::{BlobStore, Error, RemoteAddress, RemoteOptions, RemoteStore, conformance};
use peer::{Act, Line, Peer, within};
use tonic::Code;

const MIB: usize = 1 << 20;

fn content(len: usize) -> Bytes {
    conformance::content(1, len)
}

fn offsets(peer: &Peer) -> Vec<i64> {
    peer.calls("read").iter().map(|call| call.offset).collect()
}

async fn read(store: &RemoteStore, content: &Bytes, offset: u64) -> Result<Bytes, Error> {
    let digest = peer::sha256(content);
    within(async { store.get(&digest, offset).await?.into_bytes().await }).await
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_stopped() {
    let peer = Peer::start().await;
    let content = content(2 * MIB);
    peer.has(&content);
    peer.script(
        "read",
        [
            Act::CutAfter(300_000),
            Act::Fail(Code::Unavailable),
            Act::CutAfter(5),
        ],
    );
    let store = peer.store();
    assert_eq!(read(&store, &content, 0).await.unwrap(), content);
    assert_eq!(offsets(&peer), [0, 300_000, 300_000, 300_005]);

    peer.script("read", [Act::CutAfter(10)]);
    assert_eq!(
        read(&store, &content, 1000).await.unwrap(),
        content.slice(1000..)
    );
    assert_eq!(offsets(&peer)[4..], [1000, 1010]);
}

#[tokio::test]
async fn a_download_survives_a_cut_connection() {
    let peer = Peer::start().await;
    let content = content(4 * MIB);
    peer.has(&content);
    let line = Line::breaking_after(&peer, usize::MAX, MIB).await;
    let options = RemoteOptions {
        connections: 1,
        ..RemoteOptions::new(RemoteAddress::Tcp(line.address.clone()))
    };
    let store = RemoteStore::new(&options).unwrap();
    assert_eq!(read(&store, &content, 0).await.unwrap(), content);
    let offsets = offsets(&peer);
    assert!(offsets.len() == 2 && offsets[1] > 100_000, "{offsets:?}");
}

#[tokio::test]
async fn only_attempts_without_progress_count() {
    let peer = Peer::start().await;
    let content = content(MIB);
    peer.has(&content);
    peer.script("read", vec![Act::CutAfter(1000); 8]);
    let store = peer.impatient(1);
    assert_eq!(read(&store, &content, 0).await.unwrap(), content);
    assert_eq!(offsets(&peer).len(), 9);

    peer.script("read", vec![Act::Fail(Code::Unavailable); 8]);
    let error = read(&store, &content, 0).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains(&peer.address), "{error}");
    assert_eq!(offsets(&peer).len(), 11);
}

#[tokio::test]
async fn wrong_content_never_reaches_its_end() {
    let peer = Peer::start().await;
    let right = content(MIB);
    let digest = peer.has(&right);
    let longer: Bytes = [&right[..], b"x"].concat().into();
    let other = conformance::content(2, MIB);
    for store in [peer.store(), peer.zstd_store()] {
        for wrong in [other.clone(), right.slice(..MIB - 1), longer.clone()] {
            peer.script("read", [Act::Serve(wrong.clone())]);
            let blob = store.get(&digest, 0).await.unwrap();
            let mut chunks = blob.into_chunks();
            let mut came = 0;
            let error = loop {
                match within(chunks.next()).await.expect("an error at the end") {
                    Ok(chunk) => came += chunk.len(),
                    Err(error) => break error,
                }
            };
            let mismatch =
                matches!(&error, Error::Mismatch { expected, .. } if *expected == digest);
            assert!(mismatch && came < MIB, "{came} bytes came, then {error:?}");
            assert!(error.to_string().contains(&peer.address), "{error}");
            assert!(chunks.next().await.is_none());
        }
    }
    // Small ones come in one piece.
    let small = content(1000);
    let digest = peer.has(&small);
    peer.script("batch_read", [Act::Serve(other.slice(..1000))]);
    let error = peer.store().get(&digest, 0).await.unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
}

#[tokio::test]
async fn a_peer_has_the_last_word_on_a_part() {
    let peer = Peer::start().await;
    let content = content(MIB);
    peer.has(&content);
    let store = peer.store();
    peer.script("read", [Act::FailAtEnd(Code::DataLoss)]);
    let error = read(&store, &content, 5).await.unwrap_err();
    let refused = matches!(
        error,
        Error::Refused {
            code: Code::DataLoss,
            ..
        }
    );
    assert!(refused, "{error:?}");
    // Of the whole, the hash decides.
    peer.script("read", [Act::FailAtEnd(Code::Unavailable)]);
    assert_eq!(read(&store, &content, 0).await.unwrap(), content);
}

#[tokio::test]
async fn a_stalled_download_is_begun_anew() {
    let peer = Peer::start().await;
    let content = content(MIB);
    peer.has(&content);
    peer.script("read", [Act::StallAfter(200_000), Act::Stall]);
    let store = peer.impatient(3);
    assert_eq!(read(&store, &content, 0).await.unwrap(), content);
    assert_eq!(offsets(&peer), [0, 200_000, 200_000]);
}

#[tokio::test]
async fn what_is_not_there_is_told_before_the_first_piece() {
    let peer = Peer::start().await;
    let store = peer.store();
    for absent in [content(10), content(MIB)] {
        let digest = peer::sha256(&absent);
        for offset in [0, 5, absent.len() as u64] {
            let error = within(store.get(&digest, offset)).await.unwrap_err();
            assert!(
                matches!(error, Error::NotFound(d) if d == digest),
                "{error:?}"
            );
        }
        let past = absent.len() as u64 + 1;
        let error = within(store.get(&digest, past)).await.unwrap_err();
        assert!(matches!(error, Error::OffsetPastEnd { .. }), "{error:?}");
    }
    assert_eq!(peer.calls("read").len(), 3);
}

#[tokio::test]
async fn a_compressed_download_goes_on_by_uncompressed_bytes() {
    let peer = Peer::start().await;
    let content: Bytes = content(1000).repeat(3000).into();
    peer.has(&content);
    let incompressible = conformance::content(3, MIB);
    peer.has(&incompressible);
    let store = peer.zstd_store();
    assert_eq!(read(&store, &content, 0).await.unwrap(), content);
    peer.script("read", [Act::Behave, Act::CutAfter(500_000)]);
    assert_eq!(
        read(&store, &content, 777).await.unwrap(),
        content.slice(777..)
    );
    assert_eq!(
        read(&store, &incompressible, 0).await.unwrap(),
        incompressible
    );
    let calls = peer.calls("read");
    assert!(
        calls
            .iter()
            .all(|call| call.name.contains("compressed-blobs/zstd/"))
    );
    let offsets = offsets(&peer);
    assert!(
        offsets[..3] == [0, 777, 0] && offsets[3] > 300_000,
        "{offsets:?}"
    );
}
