//! Downloads from a peer that misbehaves.

use std::time::Instant;

use crate::peer::{self, Act, Line, Peer, within};
use bytes::Bytes;
use futures::StreamExt as _;
use gorego_storage::{BlobStore, Error};
use gorego_storage_conformance as conformance;
use gorego_storage_remote::{RemoteAddress, RemoteOptions, RemoteStore};
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
async fn an_interrupted_download_resumes_at_its_offset() {
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

    peer.script("read", [Act::CutAfter(2000)]);
    assert_eq!(
        read(&store, &content, 1000).await.unwrap(),
        content.slice(1000..)
    );
    assert_eq!(offsets(&peer)[4..], [0, 2000]);
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
async fn only_download_attempts_without_progress_count_as_retries() {
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
async fn a_corrupt_download_fails_before_its_end() {
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
    assert!(error.to_string().contains(&peer.address), "{error}");
}

#[tokio::test]
async fn a_partial_read_succeeds_only_once_the_whole_blob_is_verified() {
    let peer = Peer::start().await;
    let right = content(MIB);
    let digest = peer.has(&right);
    let small = content(1000);
    peer.has(&small);
    let mut wrong = right.to_vec();
    wrong[MIB - 1] ^= 1;
    let wrong = Bytes::from(wrong);
    for store in [peer.store(), peer.zstd_store()] {
        let part = async |offset: usize, limit: usize| {
            let blob = within(store.get(&digest, offset as u64)).await?;
            within(blob.truncate(limit as u64).into_bytes()).await
        };
        for (offset, limit) in [
            (0, 1000),
            (5, MIB),
            (5, 1000),
            (MIB - 1, 1),
            (MIB / 2, 300_000),
        ] {
            peer.script("read", [Act::Serve(wrong.clone())]);
            let error = part(offset, limit).await.unwrap_err();
            assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");

            peer.script("read", [Act::CutAfter(150_000)]);
            let expected = right.slice(offset..MIB.min(offset + limit));
            assert!(part(offset, limit).await.unwrap() == expected);
        }
        assert_eq!(read(&store, &small, 7).await.unwrap(), small.slice(7..));
        peer.script("batch_read", [Act::Serve(wrong.slice(..1000))]);
        let error = read(&store, &content(999), 7).await.unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_verified_download_succeeds_whatever_its_final_status() {
    let peer = Peer::start().await;
    let content = content(MIB);
    peer.has(&content);
    let store = peer.store();
    for act in [
        Act::FailAtEnd(Code::DataLoss),
        Act::FailAtEnd(Code::Unavailable),
        Act::StallAfter(MIB),
    ] {
        for offset in [0, 5] {
            peer.script("read", [act.clone()]);
            let since = Instant::now();
            let read = read(&store, &content, offset as u64).await;
            assert!(read.unwrap() == content.slice(offset..));
            assert!(since.elapsed() < peer::LONG / 3, "{act:?}");
        }
    }
}

#[tokio::test]
async fn a_stalled_download_is_retried() {
    let peer = Peer::start().await;
    let content = content(MIB);
    peer.has(&content);
    peer.script("read", [Act::StallAfter(200_000), Act::Stall]);
    let store = peer.impatient(3);
    assert_eq!(read(&store, &content, 0).await.unwrap(), content);
    assert_eq!(offsets(&peer), [0, 200_000, 200_000]);
}

#[tokio::test]
async fn a_missing_blob_fails_before_the_first_chunk() {
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
    assert_eq!(peer.calls("read").len(), 2);
}

#[tokio::test]
async fn a_compressed_download_resumes_uncompressed_at_its_offset() {
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
    let compressed = calls
        .iter()
        .map(|call| call.name.contains("compressed-blobs/zstd/"));
    // Some peers resume compressed content at another position.
    assert!(compressed.eq([true, true, true, false]), "{calls:?}");
    let offsets = offsets(&peer);
    assert!(
        offsets[..3] == [0, 0, 0] && offsets[3] > 300_000,
        "{offsets:?}"
    );
}

#[tokio::test]
async fn wrong_content_of_a_resumed_download_is_a_temporary_error() {
    let peer = Peer::start().await;
    let content = content(500_000);
    peer.has(&content);
    let wrong = conformance::content(2, 300_000);
    for store in [peer.store(), peer.zstd_store()] {
        for act in [Act::FromStart, Act::Serve(wrong.clone())] {
            peer.script("read", [Act::CutAfter(200_000), act]);
            let error = read(&store, &content, 0).await.unwrap_err();
            assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
            assert_eq!(read(&store, &content, 0).await.unwrap(), content);
        }
    }
}

#[tokio::test]
async fn a_download_in_large_messages_arrives_in_bounded_chunks() {
    let peer = Peer::start().await;
    let content = content(17 * MIB);
    let digest = peer.has(&content);
    for store in [peer.store(), peer.zstd_store()] {
        for len in [8 * MIB, usize::MAX] {
            peer.script("read", [Act::InMessages(len)]);
            let mut chunks = within(store.get(&digest, 0)).await.unwrap().into_chunks();
            let mut at = 0;
            while let Some(chunk) = within(chunks.next()).await {
                let chunk = chunk.unwrap();
                assert!(chunk.len() <= MIB, "{} bytes at once", chunk.len());
                assert!(content[at..].starts_with(&chunk), "at {at}");
                at += chunk.len();
            }
            assert_eq!(at, content.len());
        }
    }
}
