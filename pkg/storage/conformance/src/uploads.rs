//! What a store promises about uploads that break off.

use bytes::Bytes;

use super::{
    Keeper,
    concurrency::{run_until, stalling},
    content::{End, SHA256, content, expect, stream_of, upload},
};
use gorego_storage::{
    Blob, BlobStore, CHUNK_SIZE, Digest, DigestFunction, Error, Put, Resume, UploadId, Uploads,
};

/// Small enough to stay in memory, and large enough to go to the disk while it arrives.
const SIZES: [usize; 2] = [1000, 6 * CHUNK_SIZE + 1];

async fn committed<S: Uploads>(store: &S, digest: &Digest, name: &str) -> usize {
    let bytes = store.committed(digest, &UploadId::new(name)).await.unwrap();
    usize::try_from(bytes).unwrap()
}

/// Waits until this much of an upload is kept: it may take a moment after a put was dropped.
async fn expect_committed<S: Uploads>(store: &S, digest: &Digest, name: &str, bytes: usize) {
    while committed(store, digest, name).await != bytes {
        tokio::task::yield_now().await;
    }
}

/// Starts an upload that breaks off after `content`.
async fn break_off<S: BlobStore>(store: &S, digest: &Digest, name: &str, content: &Bytes) {
    let put = store
        .put(digest, upload(name, 0, content, End::Breaks))
        .await;
    assert!(matches!(put, Err(Error::Unavailable(_))), "{put:?}");
}

pub(super) async fn an_unknown_upload_has_nothing<S: Uploads>(store: &S) {
    for function in DigestFunction::ALL {
        assert_eq!(committed(store, &function.digest(b"x"), "unknown").await, 0);
    }
    let hostile = format!("../../{}/\0", "x".repeat(1000));
    assert_eq!(committed(store, &SHA256.digest(b"x"), &hostile).await, 0);
}

pub(super) async fn a_broken_upload_goes_on_where_it_stopped<S: BlobStore + Uploads>(store: &S) {
    for function in DigestFunction::ALL {
        for size in SIZES {
            let content = content(1, size);
            let digest = function.digest(&content);
            let (first, second) = (size / 3, size / 2);
            break_off(store, &digest, "u", &content.slice(..first)).await;
            assert_eq!(committed(store, &digest, "u").await, first);
            expect(store, &digest, None).await;

            let middle = upload("u", first, &content.slice(first..second), End::Breaks);
            let put = store.put(&digest, middle).await;
            assert!(matches!(put, Err(Error::Unavailable(_))), "{put:?}");
            assert_eq!(committed(store, &digest, "u").await, second);

            let rest = upload("u", second, &content.slice(second..), End::Ends);
            assert_eq!(store.put(&digest, rest).await.unwrap(), Put::Stored);
            expect(store, &digest, Some(&content)).await;
        }
    }
}

pub(super) async fn the_content_tells_a_function_that_was_not_named<S: BlobStore + Uploads>(
    store: &S,
) {
    for (seed, size) in (20..).zip(SIZES) {
        for from in [0, size / 2] {
            let content = content(seed + from as u64, size);
            let actual = DigestFunction::Blake3.digest(&content);
            let unnamed = Digest::from_proto(None, &actual.to_proto()).unwrap();
            break_off(store, &unnamed, "u", &content.slice(..from)).await;
            let rest = upload("u", from, &content.slice(from..), End::Ends);
            store.put(&unnamed, rest).await.unwrap();
            expect(store, &actual, Some(&content)).await;
        }
    }
}

pub(super) async fn an_upload_goes_on_from_any_earlier_offset<S: BlobStore + Uploads>(store: &S) {
    for (seed, size) in (2..).zip(SIZES) {
        for (from, wrong) in [(0, 0), (1, 1), (size / 3, size / 3), (size / 2, size / 2)] {
            let name = format!("from {from}");
            let content = content(seed + from as u64, size);
            let digest = SHA256.digest(&content);
            // What comes after the offset of the next attempt does not matter.
            let mut kept = content.slice(..wrong).to_vec();
            kept.resize(size / 2, 0);
            break_off(store, &digest, &name, &kept.into()).await;
            let rest = upload(&name, from, &content.slice(from..), End::Ends);
            assert_eq!(
                store.put(&digest, rest).await.unwrap(),
                Put::Stored,
                "from {from}"
            );
            expect(store, &digest, Some(&content)).await;
        }
    }
}

pub(super) async fn an_upload_does_not_go_on_from_further<S: BlobStore + Uploads>(store: &S) {
    for size in SIZES {
        let content = content(3, size);
        let digest = SHA256.digest(&content);
        for kept in [0, size / 2] {
            if kept > 0 {
                break_off(store, &digest, "u", &content.slice(..kept)).await;
            }
            let far = upload("u", kept + 1, &content.slice(kept + 1..), End::Ends);
            let put = store.put(&digest, far).await;
            let refused = matches!(
                put, Err(Error::UploadOffset { committed, .. }) if committed == kept as u64
            );
            assert!(refused, "{kept} bytes are here: {put:?}");
            assert_eq!(
                committed(store, &digest, "u").await,
                kept,
                "what is here is kept"
            );
        }
        let rest = upload("u", size / 2, &content.slice(size / 2..), End::Ends);
        assert_eq!(store.put(&digest, rest).await.unwrap(), Put::Stored);
    }
}

pub(super) async fn a_wrong_resumed_upload_is_dropped<S: BlobStore + Uploads>(store: &S) {
    for size in SIZES {
        let (right, wrong) = (content(4, size), content(5, size));
        let digest = SHA256.digest(&right);
        let half = size / 2;
        break_off(store, &digest, "u", &wrong.slice(..half)).await;
        let put = store
            .put(&digest, upload("u", half, &right.slice(half..), End::Ends))
            .await;
        assert!(
            matches!(put, Err(Error::ResumedMismatch { expected, .. }) if expected == digest),
            "{put:?}"
        );
        assert_eq!(committed(store, &digest, "u").await, 0);
        expect(store, &digest, None).await;
        let anew = store.put(&digest, upload("u", 0, &right, End::Ends)).await;
        assert_eq!(anew.unwrap(), Put::Stored);
    }
}

pub(super) async fn a_wrong_upload_is_dropped<S: BlobStore + Uploads>(store: &S) {
    for size in SIZES {
        let right = content(6, size);
        let digest = SHA256.digest(&right);
        let half = size / 2;
        let longer: Bytes = [&right[half..], b"x"].concat().into();
        for (kept, rest) in [
            (0, content(7, size)),
            (0, content(6, size + 1)),
            (0, right.slice(..size - 1)),
            (half, longer),
            (half, right.slice(half..size - 1)),
        ] {
            if kept > 0 {
                break_off(store, &digest, "u", &right.slice(..kept)).await;
            }
            let put = store
                .put(&digest, upload("u", kept, &rest, End::Ends))
                .await;
            let mismatch = match &put {
                Err(Error::Mismatch { expected, .. }) => *expected == digest,
                Err(Error::ResumedMismatch { expected, .. }) => kept > 0 && *expected == digest,
                _ => false,
            };
            assert!(mismatch, "{} bytes after {kept}: {put:?}", rest.len());
            assert_eq!(committed(store, &digest, "u").await, 0);
            expect(store, &digest, None).await;
        }
    }
}

pub(super) async fn uploads_are_told_apart_by_name_and_digest<S: BlobStore + Uploads>(store: &S) {
    for size in SIZES {
        let contents = [content(8, size), content(9, size)];
        let digests = contents.each_ref().map(|content| SHA256.digest(content));
        let halves = contents.each_ref().map(|content| content.slice(..size / 2));
        break_off(store, &digests[0], "u", &halves[0]).await;
        break_off(store, &digests[1], "u", &halves[1]).await;
        break_off(store, &digests[1], "v", &halves[1].slice(..10)).await;
        assert_eq!(committed(store, &digests[0], "u").await, size / 2);
        assert_eq!(committed(store, &digests[1], "u").await, size / 2);
        assert_eq!(committed(store, &digests[1], "v").await, 10);
        assert_eq!(committed(store, &digests[0], "v").await, 0);
        for (digest, content) in digests.iter().zip(&contents) {
            let rest = upload("u", size / 2, &content.slice(size / 2..), End::Ends);
            assert_eq!(store.put(digest, rest).await.unwrap(), Put::Stored);
            expect(store, digest, Some(content)).await;
        }
    }
}

/// An upload that delivers `content`, reports that, and then stalls.
fn stalling_upload(name: &str, content: &Bytes) -> (Blob, impl Future<Output = ()> + use<>) {
    let (blob, delivered) = stalling(content);
    let Blob::Stream(mut arriving) = blob else {
        panic!("a stream");
    };
    let upload = UploadId::new(name);
    arriving.resume = Some(Resume { upload, offset: 0 });
    (Blob::Stream(arriving), delivered)
}

pub(super) async fn a_dropped_upload_goes_on_where_it_stopped<S: BlobStore + Uploads>(store: &S) {
    for size in SIZES {
        let content = content(10, size);
        let digest = SHA256.digest(&content);
        for arrived in [size / 2, size - 1] {
            let (blob, delivered) = stalling_upload("u", &content.slice(..arrived));
            drop(run_until(store.put(&digest, blob), delivered).await);
            expect_committed(store, &digest, "u", arrived).await;
            expect(store, &digest, None).await;
        }
        let rest = upload("u", size - 1, &content.slice(size - 1..), End::Ends);
        assert_eq!(store.put(&digest, rest).await.unwrap(), Put::Stored);
        expect(store, &digest, Some(&content)).await;
    }
}

pub(super) async fn a_retry_overtakes_its_stalled_predecessor<S: BlobStore + Uploads>(store: &S) {
    for size in SIZES {
        let content = content(11, size);
        let digest = SHA256.digest(&content);
        let (blob, delivered) = stalling_upload("u", &content.slice(..size / 2));
        let stalled = run_until(store.put(&digest, blob), delivered).await;
        let from = committed(store, &digest, "u").await;
        assert!(
            from <= size / 2,
            "{from} bytes are here, {} were sent",
            size / 2
        );
        let retry = store.put(
            &digest,
            upload("u", from, &content.slice(from..), End::Ends),
        );
        let (stalled, retry) = tokio::join!(stalled, retry);
        assert_eq!(retry.unwrap(), Put::Stored);
        let ended = matches!(stalled, Ok(Put::Existed) | Err(Error::Superseded(_)));
        assert!(ended, "the predecessor: {stalled:?}");
        expect(store, &digest, Some(&content)).await;
    }
}

pub(super) async fn an_upload_ends_when_another_finishes_first<S: BlobStore + Uploads>(
    store: &S,
    keeper: Keeper,
) {
    for size in SIZES {
        let content = content(12, size);
        let digest = SHA256.digest(&content);
        let (blob, delivered) = stalling_upload("u", &content.slice(..size / 2));
        let stalled = run_until(store.put(&digest, blob), delivered).await;
        let other = store.put(&digest, stream_of(&content, End::Ends)).await;
        assert_eq!(other.unwrap(), Put::Stored);
        assert_eq!(stalled.await.unwrap(), Put::Existed);
        let kept = match keeper {
            Keeper::Own => 0,
            Keeper::Peer => size,
        };
        assert_eq!(
            committed(store, &digest, "u").await,
            kept,
            "nobody needs the rest"
        );
    }
}
