//! Promises of a [`gorego_storage::BlobStore`] to a single caller.

use bytes::Bytes;
use futures::StreamExt as _;

use super::{
    Location,
    content::{End, Kind, SHA256, SIZES, broken, content, expect, file, put, read, stream_of},
};
use gorego_storage::{Blob, BlobStore, CHUNK_SIZE, Digest, DigestFunction, Error, Put, Result};

/// Whether this is a valid outcome of a put of a present blob.
fn is_repeated(put: Put, location: Location) -> bool {
    put == Put::Existed || location == Location::Remote
}

fn is_mismatch(put: &Result<Put>, digest: &Digest) -> bool {
    matches!(put, Err(Error::Mismatch { expected, .. }) if expected == digest)
}

pub(super) async fn a_blob_is_stored_and_returned_only_if_its_content_matches(
    store: &dyn BlobStore,
    kind: Kind,
    location: Location,
) {
    for function in DigestFunction::ALL {
        for size in SIZES {
            let right = content(size as u64, size);
            let digest = function.digest(&right);
            if (1..=CHUNK_SIZE + 1).contains(&size) {
                expect(store, &digest, None).await;
                let (other, longer) = (content(2, size), content(size as u64, size + 1));
                for wrong in [other, longer, right.slice(..size - 1)] {
                    let len = wrong.len();
                    let put = store.put(&digest, kind.blob(&wrong)).await;
                    let refused = is_mismatch(&put, &digest);
                    assert!(refused, "{len} bytes for {digest} as {kind:?}: {put:?}");
                    expect(store, &digest, None).await;
                }
            }
            let put = store.put(&digest, kind.blob(&right)).await;
            let put = put.unwrap_or_else(|error| panic!("putting {digest} as {kind:?}: {error}"));
            assert!(put == Put::Stored || size == 0, "{digest} as {kind:?}");
            expect(store, &digest, Some(&right)).await;
            let again = store.put(&digest, kind.blob(&right)).await.unwrap();
            assert!(is_repeated(again, location), "{digest} as {kind:?}");
        }
    }
}

pub(super) async fn content_is_returned_from_any_offset(store: &dyn BlobStore) {
    for size in [0, 1, 5000, CHUNK_SIZE, 2 * CHUNK_SIZE + 7] {
        let content = content(3, size);
        let digest = put(store, SHA256, &content).await;
        for offset in [0, 1, size / 2, size.saturating_sub(1), size] {
            if offset > size {
                continue;
            }
            let blob = store.get(&digest, offset as u64).await.unwrap();
            let mut chunks = blob.into_chunks();
            let mut got = Vec::new();
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.unwrap();
                assert!(!chunk.is_empty(), "an empty chunk of {digest}");
                got.extend_from_slice(&chunk);
            }
            assert!(got == content.slice(offset..), "{digest} from {offset}");
        }
        for offset in [size as u64 + 1, u64::MAX] {
            let got = store.get(&digest, offset).await;
            let past_end = matches!(
                got, Err(Error::OffsetPastEnd { digest: of, offset: at }) if of == digest && at == offset
            );
            assert!(past_end, "{digest} from {offset}: {got:?}");
        }
    }
}

pub(super) async fn blobs_differ_by_function_and_size(store: &dyn BlobStore) {
    let content = content(4, 4096);
    let digest = put(store, SHA256, &content).await;
    let other_size = Digest::from_hash(SHA256, digest.hash(), 4095).unwrap();
    let other_function = Digest::from_hash(DigestFunction::Blake3, digest.hash(), 4096).unwrap();
    for wrong in [other_size, other_function] {
        expect(store, &wrong, None).await;
        let put = store.put(&wrong, Blob::Bytes(content.clone())).await;
        assert!(is_mismatch(&put, &wrong), "{put:?}");
    }
    expect(store, &digest, Some(&content)).await;
}

pub(super) async fn the_empty_blob_is_always_present(store: &dyn BlobStore) {
    for function in DigestFunction::ALL {
        let empty = function.empty();
        expect(store, &empty, Some(&Bytes::new())).await;
        put(store, function, &Bytes::new()).await;
        expect(store, &empty, Some(&Bytes::new())).await;

        // Another hash with size 0, and the hash of the empty blob with another size, are other blobs.
        let other_hash = Digest::from_hash(function, function.digest(b"x").hash(), 0).unwrap();
        let other_size = Digest::from_hash(function, empty.hash(), 1).unwrap();
        for wrong in [other_hash, other_size] {
            let put = store.put(&wrong, Blob::Bytes(Bytes::new())).await;
            assert!(is_mismatch(&put, &wrong), "{wrong}: {put:?}");
            expect(store, &wrong, None).await;
        }
    }
}

pub(super) async fn missing_digests_are_returned_once_in_order(store: &dyn BlobStore) {
    let [a, b, c] = ["a", "b", "c"].map(|text| SHA256.digest(text.as_bytes()));
    let b_of_sha1 = DigestFunction::Sha1.digest(b"b");
    assert_eq!(store.find_missing(&[]).await.unwrap(), []);
    put(store, SHA256, &"b".into()).await;
    let digests = [c, b, a, b_of_sha1, c, SHA256.empty(), b, a];
    let missing = store.find_missing(&digests).await.unwrap();
    assert_eq!(missing, [c, a, b_of_sha1]);
}

pub(super) async fn many_digests_are_looked_up_at_once(store: &dyn BlobStore) {
    let contents: Vec<_> = (0..10_000_u64).map(u64::to_le_bytes).collect();
    let mut digests: Vec<_> = contents.iter().map(|it| SHA256.digest(it)).collect();
    for content in contents.iter().step_by(100) {
        put(store, SHA256, &Bytes::copy_from_slice(content)).await;
    }
    let missing = store.find_missing(&digests).await.unwrap();
    let mut number = 0..;
    digests.retain(|_| number.next().is_some_and(|number| number % 100 != 0));
    assert!(missing == digests);
}

pub(super) async fn a_part_of_a_file_is_stored(store: &dyn BlobStore) {
    let whole = content(5, 2 * CHUNK_SIZE);
    for (start, len) in [(0, 10), (10, CHUNK_SIZE + 1), (whole.len() - 1, 1), (17, 0)] {
        let part = whole.slice(start..start + len);
        let digest = SHA256.digest(&part);
        let blob = Blob::File(file(&whole, start, len));
        store.put(&digest, blob).await.unwrap();
        expect(store, &digest, Some(&part)).await;
    }
}

pub(super) async fn a_failing_stream_stores_nothing(store: &dyn BlobStore) {
    for len in [0, 1, CHUNK_SIZE + 1, 4 * CHUNK_SIZE] {
        let content = content(6, len + 1);
        let digest = SHA256.digest(&content);
        for arrived in [content.slice(..len), content.clone()] {
            let put = store.put(&digest, stream_of(&arrived, End::Error)).await;
            let error = put.unwrap_err().to_string();
            assert_eq!(error, broken().to_string(), "the stream's error");
            expect(store, &digest, None).await;
        }
        let put = store.put(&digest, stream_of(&content, End::Complete)).await;
        assert_eq!(put.unwrap(), Put::Stored);
    }
}

pub(super) async fn each_blob_of_a_batch_has_its_own_content_or_error(store: &dyn BlobStore) {
    assert!(store.get_batch(&[]).await.is_empty());
    let (small, large) = (content(7, 100), content(8, CHUNK_SIZE + 1));
    let small_digest = put(store, SHA256, &small).await;
    let large_digest = put(store, DigestFunction::Blake3, &large).await;
    let expected = [
        (small_digest, Some(&small)),
        (SHA256.digest(b"absent"), None),
        (large_digest, Some(&large)),
        (SHA256.empty(), Some(&Bytes::new())),
        (small_digest, Some(&small)),
    ];
    let got = store.get_batch(&expected.map(|(digest, _)| digest)).await;
    assert_eq!(got.len(), expected.len());
    for (got, (digest, content)) in got.into_iter().zip(expected) {
        match content {
            Some(content) => assert!(got.unwrap() == content, "{digest}"),
            None => assert!(matches!(got, Err(Error::NotFound(it)) if it == digest)),
        }
    }
}

pub(super) async fn each_blob_of_a_batch_is_stored_or_refused_by_itself(
    store: &dyn BlobStore,
    location: Location,
) {
    assert!(store.put_batch(Vec::new()).await.is_empty());
    let sizes = [(9, 1), (10, 4096), (11, CHUNK_SIZE + 1)];
    let [a, b, c] = sizes.map(|(seed, size)| {
        let content = content(seed, size);
        (DigestFunction::Blake3.digest(&content), content)
    });
    let wrong = SHA256.digest(b"wrong");
    let batch = vec![
        a.clone(),
        (wrong, a.1.clone()),
        b.clone(),
        (SHA256.empty(), Bytes::new()),
        (wrong, Bytes::from_static(b"wronG")),
        c.clone(),
        a.clone(),
    ];
    let put = store.put_batch(batch).await;
    let stored: Vec<_> = put.iter().map(Result::is_ok).collect();
    let expected = [true, false, true, true, false, true, true];
    assert_eq!(stored, expected, "{put:?}");
    for refused in [&put[1], &put[4]] {
        assert!(is_mismatch(refused, &wrong), "{refused:?}");
    }
    for (digest, content) in [&a, &b, &c] {
        expect(store, digest, Some(content)).await;
        assert!(read(store, digest, 1).await.unwrap() == content.slice(1..));
    }
    expect(store, &wrong, None).await;
    let again = store.put_batch(vec![b]).await;
    let is_repeated = matches!(again.as_slice(), [Ok(put)] if is_repeated(*put, location));
    assert!(is_repeated, "{again:?}");
}
