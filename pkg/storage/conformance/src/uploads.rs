//! Promises of a store about interrupted uploads.

use bytes::Bytes;

use super::{
    Location,
    concurrency::{run_until, stalling},
    content::{End, SHA256, content, expect, stream_of, upload},
};
use gorego_storage::{
    Blob, BlobStore, CHUNK_SIZE, Digest, DigestFunction, Error, Put, Resume, UploadId, Uploads,
};

/// A size that is buffered in memory, and one that is written to disk while it arrives.
const SIZES: [usize; 2] = [1000, 6 * CHUNK_SIZE + 1];

async fn committed<S: Uploads>(store: &S, digest: &Digest, name: &str) -> usize {
    let bytes = store.committed(digest, &UploadId::new(name)).await.unwrap();
    usize::try_from(bytes).unwrap()
}

/// Waits until `bytes` of an upload are stored, which may be shortly after the put was dropped.
async fn expect_committed<S: Uploads>(store: &S, digest: &Digest, name: &str, bytes: usize) {
    while committed(store, digest, name).await != bytes {
        tokio::task::yield_now().await;
    }
}

/// Starts an upload that is interrupted after `content`.
async fn interrupt<S: BlobStore>(store: &S, digest: &Digest, name: &str, content: &Bytes) {
    let put = store
        .put(digest, upload(name, 0, content, End::Error))
        .await;
    assert!(matches!(put, Err(Error::Unavailable(_))), "{put:?}");
}

pub(super) async fn an_unknown_upload_has_no_bytes<S: Uploads>(store: &S) {
    for function in DigestFunction::ALL {
        assert_eq!(committed(store, &function.digest(b"x"), "unknown").await, 0);
    }
    let hostile = format!("../../{}/\0", "x".repeat(1000));
    assert_eq!(committed(store, &SHA256.digest(b"x"), &hostile).await, 0);
}

pub(super) async fn an_interrupted_upload_resumes_where_it_ended<S: BlobStore + Uploads>(
    store: &S,
) {
    for function in DigestFunction::ALL {
        for size in SIZES {
            let content = content(1, size);
            let digest = function.digest(&content);
            let (first, second) = (size / 3, size / 2);
            interrupt(store, &digest, "u", &content.slice(..first)).await;
            assert_eq!(committed(store, &digest, "u").await, first);
            expect(store, &digest, None).await;

            let middle = upload("u", first, &content.slice(first..second), End::Error);
            let put = store.put(&digest, middle).await;
            assert!(matches!(put, Err(Error::Unavailable(_))), "{put:?}");
            assert_eq!(committed(store, &digest, "u").await, second);

            let rest = upload("u", second, &content.slice(second..), End::Complete);
            assert_eq!(store.put(&digest, rest).await.unwrap(), Put::Stored);
            expect(store, &digest, Some(&content)).await;
        }
    }
}

pub(super) async fn an_unnamed_function_is_determined_by_the_content<S: BlobStore + Uploads>(
    store: &S,
) {
    for (seed, size) in (20..).zip(SIZES) {
        for from in [0, size / 2] {
            let content = content(seed + from as u64, size);
            let actual = DigestFunction::Blake3.digest(&content);
            let unnamed = Digest::from_proto(None, &actual.to_proto()).unwrap();
            interrupt(store, &unnamed, "u", &content.slice(..from)).await;
            let rest = upload("u", from, &content.slice(from..), End::Complete);
            store.put(&unnamed, rest).await.unwrap();
            expect(store, &actual, Some(&content)).await;
        }
    }
}

pub(super) async fn an_upload_resumes_at_any_earlier_offset<S: BlobStore + Uploads>(store: &S) {
    for (seed, size) in (2..).zip(SIZES) {
        for (from, wrong) in [(0, 0), (1, 1), (size / 3, size / 3), (size / 2, size / 2)] {
            let name = format!("from {from}");
            let content = content(seed + from as u64, size);
            let digest = SHA256.digest(&content);
            // The bytes after the offset of the next call are wrong.
            let mut stored = content.slice(..wrong).to_vec();
            stored.resize(size / 2, 0);
            interrupt(store, &digest, &name, &stored.into()).await;
            let rest = upload(&name, from, &content.slice(from..), End::Complete);
            assert_eq!(
                store.put(&digest, rest).await.unwrap(),
                Put::Stored,
                "from {from}"
            );
            expect(store, &digest, Some(&content)).await;
        }
    }
}

pub(super) async fn an_upload_does_not_resume_beyond_its_stored_bytes<S: BlobStore + Uploads>(
    store: &S,
) {
    for size in SIZES {
        let content = content(3, size);
        let digest = SHA256.digest(&content);
        for stored in [0, size / 2] {
            if stored > 0 {
                interrupt(store, &digest, "u", &content.slice(..stored)).await;
            }
            let far = upload("u", stored + 1, &content.slice(stored + 1..), End::Complete);
            let put = store.put(&digest, far).await;
            let refused = matches!(
                put, Err(Error::UploadOffset { committed, .. }) if committed == stored as u64
            );
            assert!(refused, "{stored} bytes are stored: {put:?}");
            assert_eq!(
                committed(store, &digest, "u").await,
                stored,
                "the stored bytes remain"
            );
        }
        let rest = upload("u", size / 2, &content.slice(size / 2..), End::Complete);
        assert_eq!(store.put(&digest, rest).await.unwrap(), Put::Stored);
    }
}

pub(super) async fn a_resumed_upload_that_does_not_match_is_dropped<S: BlobStore + Uploads>(
    store: &S,
) {
    for size in SIZES {
        let (right, wrong) = (content(4, size), content(5, size));
        let digest = SHA256.digest(&right);
        let half = size / 2;
        interrupt(store, &digest, "u", &wrong.slice(..half)).await;
        let put = store
            .put(
                &digest,
                upload("u", half, &right.slice(half..), End::Complete),
            )
            .await;
        assert!(
            matches!(put, Err(Error::ResumedMismatch { expected, .. }) if expected == digest),
            "{put:?}"
        );
        assert_eq!(committed(store, &digest, "u").await, 0);
        expect(store, &digest, None).await;
        let anew = store
            .put(&digest, upload("u", 0, &right, End::Complete))
            .await;
        assert_eq!(anew.unwrap(), Put::Stored);
    }
}

pub(super) async fn an_upload_that_does_not_match_is_dropped<S: BlobStore + Uploads>(store: &S) {
    for size in SIZES {
        let right = content(6, size);
        let digest = SHA256.digest(&right);
        let half = size / 2;
        let longer: Bytes = [&right[half..], b"x"].concat().into();
        for (stored, rest) in [
            (0, content(7, size)),
            (0, content(6, size + 1)),
            (0, right.slice(..size - 1)),
            (half, longer),
            (half, right.slice(half..size - 1)),
        ] {
            if stored > 0 {
                interrupt(store, &digest, "u", &right.slice(..stored)).await;
            }
            let put = store
                .put(&digest, upload("u", stored, &rest, End::Complete))
                .await;
            let mismatch = match &put {
                Err(Error::Mismatch { expected, .. }) => *expected == digest,
                Err(Error::ResumedMismatch { expected, .. }) => stored > 0 && *expected == digest,
                _ => false,
            };
            assert!(mismatch, "{} bytes after {stored}: {put:?}", rest.len());
            assert_eq!(committed(store, &digest, "u").await, 0);
            expect(store, &digest, None).await;
        }
    }
}

pub(super) async fn uploads_differ_by_id_and_digest<S: BlobStore + Uploads>(store: &S) {
    for size in SIZES {
        let contents = [content(8, size), content(9, size)];
        let digests = contents.each_ref().map(|content| SHA256.digest(content));
        let halves = contents.each_ref().map(|content| content.slice(..size / 2));
        interrupt(store, &digests[0], "u", &halves[0]).await;
        interrupt(store, &digests[1], "u", &halves[1]).await;
        interrupt(store, &digests[1], "v", &halves[1].slice(..10)).await;
        assert_eq!(committed(store, &digests[0], "u").await, size / 2);
        assert_eq!(committed(store, &digests[1], "u").await, size / 2);
        assert_eq!(committed(store, &digests[1], "v").await, 10);
        assert_eq!(committed(store, &digests[0], "v").await, 0);
        for (digest, content) in digests.iter().zip(&contents) {
            let rest = upload("u", size / 2, &content.slice(size / 2..), End::Complete);
            assert_eq!(store.put(digest, rest).await.unwrap(), Put::Stored);
            expect(store, digest, Some(content)).await;
        }
    }
}

/// Creates an upload that delivers `content` and then stalls, and a future that completes when it stalls.
fn stalling_upload(name: &str, content: &Bytes) -> (Blob, impl Future<Output = ()> + use<>) {
    let (blob, delivered) = stalling(content);
    let Blob::Stream(mut stream) = blob else {
        panic!("not a stream");
    };
    let upload = UploadId::new(name);
    stream.resume = Some(Resume { upload, offset: 0 });
    (Blob::Stream(stream), delivered)
}

pub(super) async fn a_dropped_upload_resumes_where_it_ended<S: BlobStore + Uploads>(store: &S) {
    for size in SIZES {
        let content = content(10, size);
        let digest = SHA256.digest(&content);
        for arrived in [size / 2, size - 1] {
            let (blob, delivered) = stalling_upload("u", &content.slice(..arrived));
            drop(run_until(store.put(&digest, blob), delivered).await);
            expect_committed(store, &digest, "u", arrived).await;
            expect(store, &digest, None).await;
        }
        let rest = upload("u", size - 1, &content.slice(size - 1..), End::Complete);
        assert_eq!(store.put(&digest, rest).await.unwrap(), Put::Stored);
        expect(store, &digest, Some(&content)).await;
    }
}

pub(super) async fn a_retry_supersedes_the_stalled_call<S: BlobStore + Uploads>(store: &S) {
    for size in SIZES {
        let content = content(11, size);
        let digest = SHA256.digest(&content);
        let (blob, delivered) = stalling_upload("u", &content.slice(..size / 2));
        let stalled = run_until(store.put(&digest, blob), delivered).await;
        let from = committed(store, &digest, "u").await;
        assert!(
            from <= size / 2,
            "{from} bytes are stored, {} were sent",
            size / 2
        );
        let retry = store.put(
            &digest,
            upload("u", from, &content.slice(from..), End::Complete),
        );
        let (stalled, retry) = tokio::join!(stalled, retry);
        assert_eq!(retry.unwrap(), Put::Stored);
        let ended = matches!(stalled, Ok(Put::Existed) | Err(Error::Superseded(_)));
        assert!(ended, "the stalled call: {stalled:?}");
        expect(store, &digest, Some(&content)).await;
    }
}

pub(super) async fn an_upload_ends_when_another_finishes_first<S: BlobStore + Uploads>(
    store: &S,
    location: Location,
) {
    for size in SIZES {
        let content = content(12, size);
        let digest = SHA256.digest(&content);
        let (blob, delivered) = stalling_upload("u", &content.slice(..size / 2));
        let stalled = run_until(store.put(&digest, blob), delivered).await;
        let other = store.put(&digest, stream_of(&content, End::Complete)).await;
        assert_eq!(other.unwrap(), Put::Stored);
        assert_eq!(stalled.await.unwrap(), Put::Existed);
        let stored = match location {
            Location::Local => 0,
            Location::Remote => size,
        };
        assert_eq!(
            committed(store, &digest, "u").await,
            stored,
            "the partial upload is dropped"
        );
    }
}
