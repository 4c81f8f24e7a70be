//! Promises of a store about interrupted uploads.

use bytes::Bytes;

use super::{
    Location,
    concurrency::run_until,
    content::{End, SHA256, content, expect, stalling, stream_of, stream_with},
};
use gorego_storage::{
    BlobStore, CHUNK_SIZE, Digest, DigestFunction, Error, Put, Result, Resume, UploadId, Uploads,
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

fn resume(name: &str, offset: usize) -> Resume {
    let upload = UploadId::new(name);
    let offset = offset as u64;
    Resume { upload, offset }
}

/// Uploads `bytes` at `offset`, then breaks off.
async fn interrupt<S: BlobStore>(
    store: &S,
    digest: &Digest,
    name: &str,
    offset: usize,
    bytes: &Bytes,
) {
    let upload = stream_with(bytes, End::Error, Some(resume(name, offset)));
    let put = store.put(digest, upload).await;
    assert!(matches!(put, Err(Error::Unavailable(_))), "{put:?}");
}

/// Sends the rest of an upload.
async fn finish<S: BlobStore>(
    store: &S,
    digest: &Digest,
    name: &str,
    offset: usize,
    rest: &Bytes,
) -> Result<Put> {
    let upload = stream_with(rest, End::Complete, Some(resume(name, offset)));
    store.put(digest, upload).await
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
            let mut from = 0;
            for to in [size / 3, size / 2] {
                interrupt(store, &digest, "u", from, &content.slice(from..to)).await;
                assert_eq!(committed(store, &digest, "u").await, to);
                expect(store, &digest, None).await;
                from = to;
            }
            let put = finish(store, &digest, "u", from, &content.slice(from..)).await;
            assert_eq!(put.unwrap(), Put::Stored);
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
            interrupt(store, &unnamed, "u", 0, &content.slice(..from)).await;
            let put = finish(store, &unnamed, "u", from, &content.slice(from..)).await;
            put.unwrap();
            expect(store, &actual, Some(&content)).await;
        }
    }
}

pub(super) async fn an_upload_resumes_at_any_earlier_offset<S: BlobStore + Uploads>(store: &S) {
    for (seed, size) in (2..).zip(SIZES) {
        for from in [0, 1, size / 3, size / 2] {
            let name = format!("from {from}");
            let content = content(seed + from as u64, size);
            let digest = SHA256.digest(&content);
            // The bytes after the offset of the next call are wrong.
            let mut stored = content.slice(..from).to_vec();
            stored.resize(size / 2, 0);
            interrupt(store, &digest, &name, 0, &stored.into()).await;
            let put = finish(store, &digest, &name, from, &content.slice(from..)).await;
            assert_eq!(put.unwrap(), Put::Stored, "from {from}");
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
                interrupt(store, &digest, "u", 0, &content.slice(..stored)).await;
            }
            let beyond = stored + 1;
            let put = finish(store, &digest, "u", beyond, &content.slice(beyond..)).await;
            let refused = matches!(
                put, Err(Error::UploadOffset { committed, .. }) if committed == stored as u64
            );
            assert!(refused, "{stored} bytes are stored: {put:?}");
            let left = committed(store, &digest, "u").await;
            assert_eq!(left, stored, "the stored bytes remain");
        }
        let put = finish(store, &digest, "u", size / 2, &content.slice(size / 2..)).await;
        assert_eq!(put.unwrap(), Put::Stored);
    }
}

pub(super) async fn an_upload_that_does_not_match_is_dropped<S: BlobStore + Uploads>(store: &S) {
    for size in SIZES {
        let (right, other) = (content(6, size), content(7, size));
        let digest = SHA256.digest(&right);
        let half = size / 2;
        let longer: Bytes = [&right[half..], b"x"].concat().into();
        // The only bytes of the right size are wrong where the upload was interrupted: the client has to start anew.
        let resumed = (other.slice(..half), right.slice(half..));
        for (stored, rest) in [
            (Bytes::new(), other.clone()),
            (Bytes::new(), content(6, size + 1)),
            (Bytes::new(), right.slice(..size - 1)),
            (right.slice(..half), longer),
            (right.slice(..half), right.slice(half..size - 1)),
            resumed.clone(),
        ] {
            if !stored.is_empty() {
                interrupt(store, &digest, "u", 0, &stored).await;
            }
            let put = finish(store, &digest, "u", stored.len(), &rest).await;
            let mismatch = match &put {
                Err(Error::Mismatch { expected, .. }) => *expected == digest && stored != resumed.0,
                Err(Error::ResumedMismatch { expected, .. }) => {
                    *expected == digest && !stored.is_empty()
                }
                _ => false,
            };
            let (stored, rest) = (stored.len(), rest.len());
            assert!(mismatch, "{rest} bytes after {stored}: {put:?}");
            assert_eq!(committed(store, &digest, "u").await, 0);
            expect(store, &digest, None).await;
        }
        let anew = finish(store, &digest, "u", 0, &right).await;
        assert_eq!(anew.unwrap(), Put::Stored);
    }
}

pub(super) async fn uploads_differ_by_id_and_digest<S: BlobStore + Uploads>(store: &S) {
    for size in SIZES {
        let half = size / 2;
        let contents = [content(8, size), content(9, size)];
        let digests = contents.each_ref().map(|content| SHA256.digest(content));
        let uploads = [(0, "u", half), (1, "u", half), (1, "v", 10)];
        for (of, name, bytes) in uploads {
            interrupt(store, &digests[of], name, 0, &contents[of].slice(..bytes)).await;
        }
        for (of, name, bytes) in uploads.into_iter().chain([(0, "v", 0)]) {
            assert_eq!(committed(store, &digests[of], name).await, bytes);
        }
        for (digest, content) in digests.iter().zip(&contents) {
            let put = finish(store, digest, "u", half, &content.slice(half..)).await;
            assert_eq!(put.unwrap(), Put::Stored);
            expect(store, digest, Some(content)).await;
        }
    }
}

/// Uploads `content`, then stalls. Returns the unfinished put.
async fn stall<'a, S: BlobStore>(
    store: &'a S,
    digest: &'a Digest,
    content: &Bytes,
) -> impl Future<Output = Result<Put>> + use<'a, S> {
    let (blob, delivered) = stalling(content, Some(resume("u", 0)));
    run_until(store.put(digest, blob), delivered).await
}

pub(super) async fn a_dropped_upload_resumes_where_it_ended<S: BlobStore + Uploads>(store: &S) {
    for size in SIZES {
        let content = content(10, size);
        let digest = SHA256.digest(&content);
        for arrived in [size / 2, size - 1] {
            drop(stall(store, &digest, &content.slice(..arrived)).await);
            expect_committed(store, &digest, "u", arrived).await;
            expect(store, &digest, None).await;
        }
        let put = finish(store, &digest, "u", size - 1, &content.slice(size - 1..)).await;
        assert_eq!(put.unwrap(), Put::Stored);
        expect(store, &digest, Some(&content)).await;
    }
}

pub(super) async fn a_retry_supersedes_the_stalled_call<S: BlobStore + Uploads>(store: &S) {
    for size in SIZES {
        let content = content(11, size);
        let digest = SHA256.digest(&content);
        let half = content.slice(..size / 2);
        let stalled = stall(store, &digest, &half).await;
        let from = committed(store, &digest, "u").await;
        assert!(from <= half.len(), "{from} bytes are stored");
        let rest = content.slice(from..);
        let retry = finish(store, &digest, "u", from, &rest);
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
        let stalled = stall(store, &digest, &content.slice(..size / 2)).await;
        let other = store.put(&digest, stream_of(&content, End::Complete)).await;
        assert_eq!(other.unwrap(), Put::Stored);
        assert_eq!(stalled.await.unwrap(), Put::Existed);
        let left = match location {
            Location::Local => 0,
            Location::Remote => size,
        };
        let committed = committed(store, &digest, "u").await;
        assert_eq!(committed, left, "the partial upload is dropped");
    }
}
