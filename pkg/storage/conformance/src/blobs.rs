//! Promises of a [`gorego_storage::BlobStore`] to a single caller.

use bytes::Bytes;
use futures::StreamExt as _;

use super::{
    Location,
    content::{End, Kind, SHA256, SIZES, broken, content, expect, file, read, stream_of},
};
use gorego_storage::{Blob, BlobStore, CHUNK_SIZE, Digest, DigestFunction, Error, Put};

/// Whether this is a valid outcome of a put of a present blob.
fn is_repeated(put: Put, location: Location) -> bool {
    put == Put::Existed || location == Location::Remote
}

pub(super) async fn a_stored_blob_is_returned(
    store: &dyn BlobStore,
    kind: Kind,
    location: Location,
) {
    for function in DigestFunction::ALL {
        for size in SIZES {
            let content = content(size as u64, size);
            let digest = function.digest(&content);
            let put = store.put(&digest, kind.blob(&content)).await;
            let put = put.unwrap_or_else(|error| panic!("putting {digest} as {kind:?}: {error}"));
            assert!(put == Put::Stored || size == 0, "{digest} as {kind:?}");
            expect(store, &digest, Some(&content)).await;
            let again = store.put(&digest, kind.blob(&content)).await.unwrap();
            assert!(is_repeated(again, location), "{digest} as {kind:?}");
        }
    }
}

pub(super) async fn content_that_does_not_match_is_not_stored(store: &dyn BlobStore, kind: Kind) {
    for function in DigestFunction::ALL {
        for size in [1, 4096, CHUNK_SIZE + 1] {
            let right = content(1, size);
            let digest = function.digest(&right);
            for wrong in [
                content(2, size),
                content(1, size + 1),
                right.slice(..size - 1),
            ] {
                let put = store.put(&digest, kind.blob(&wrong)).await;
                assert!(
                    matches!(&put, Err(Error::Mismatch { expected, .. }) if *expected == digest),
                    "{} bytes for {digest} as {kind:?}: {put:?}",
                    wrong.len()
                );
                expect(store, &digest, None).await;
            }
            assert_eq!(
                store.put(&digest, kind.blob(&right)).await.unwrap(),
                Put::Stored
            );
            expect(store, &digest, Some(&right)).await;
        }
    }
}

pub(super) async fn content_is_returned_from_any_offset(store: &dyn BlobStore) {
    for size in [0, 1, 5000, CHUNK_SIZE, 2 * CHUNK_SIZE + 7] {
        let content = content(3, size);
        let digest = SHA256.digest(&content);
        store
            .put(&digest, Blob::Bytes(content.clone()))
            .await
            .unwrap();
        for offset in [0, 1, size / 2, size.saturating_sub(1), size] {
            if offset > size {
                continue;
            }
            let mut chunks = store
                .get(&digest, offset as u64)
                .await
                .unwrap()
                .into_chunks();
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

pub(super) async fn a_missing_blob_is_not_found(store: &dyn BlobStore) {
    for function in DigestFunction::ALL {
        expect(store, &function.digest(b"never put"), None).await;
    }
}

pub(super) async fn blobs_differ_by_function_and_size(store: &dyn BlobStore) {
    let content = content(4, 4096);
    let digest = SHA256.digest(&content);
    store
        .put(&digest, Blob::Bytes(content.clone()))
        .await
        .unwrap();
    let other_size = Digest::from_hash(SHA256, digest.hash(), 4095).unwrap();
    let other_function = Digest::from_hash(DigestFunction::Blake3, digest.hash(), 4096).unwrap();
    expect(store, &other_size, None).await;
    expect(store, &other_function, None).await;
    expect(store, &digest, Some(&content)).await;
    for wrong in [other_size, other_function] {
        let put = store.put(&wrong, Blob::Bytes(content.clone())).await;
        assert!(matches!(put, Err(Error::Mismatch { .. })), "{put:?}");
    }
    expect(store, &digest, Some(&content)).await;
}

pub(super) async fn the_empty_blob_is_always_present(store: &dyn BlobStore) {
    for function in DigestFunction::ALL {
        let empty = function.empty();
        expect(store, &empty, Some(&Bytes::new())).await;
        store.put(&empty, Blob::Bytes(Bytes::new())).await.unwrap();
        expect(store, &empty, Some(&Bytes::new())).await;

        // Another hash with size 0, and the hash of the empty blob with another size, are other blobs.
        let other_hash = Digest::from_hash(function, function.digest(b"x").hash(), 0).unwrap();
        let other_size = Digest::from_hash(function, empty.hash(), 1).unwrap();
        for wrong in [other_hash, other_size] {
            let put = store.put(&wrong, Blob::Bytes(Bytes::new())).await;
            assert!(
                matches!(put, Err(Error::Mismatch { .. })),
                "{wrong}: {put:?}"
            );
            expect(store, &wrong, None).await;
        }
    }
}

pub(super) async fn missing_digests_are_returned_once_in_order(store: &dyn BlobStore) {
    let [a, b, c] = ["a", "b", "c"].map(|text| SHA256.digest(text.as_bytes()));
    let b_of_sha1 = DigestFunction::Sha1.digest(b"b");
    assert_eq!(store.find_missing(&[]).await.unwrap(), []);
    store.put(&b, Blob::Bytes("b".into())).await.unwrap();
    let digests = [c, b, a, b_of_sha1, c, SHA256.empty(), b, a];
    assert_eq!(
        store.find_missing(&digests).await.unwrap(),
        [c, a, b_of_sha1]
    );
}

pub(super) async fn many_digests_are_looked_up_at_once(store: &dyn BlobStore) {
    const COUNT: u64 = 10_000;
    let digests: Vec<_> = (0..COUNT)
        .map(|n| SHA256.digest(&n.to_le_bytes()))
        .collect();
    for (number, digest) in (0..COUNT).zip(&digests).step_by(100) {
        let content = Bytes::copy_from_slice(&number.to_le_bytes());
        store.put(digest, Blob::Bytes(content)).await.unwrap();
    }
    let missing = store.find_missing(&digests).await.unwrap();
    let expected = (0..COUNT)
        .zip(digests)
        .filter(|(number, _)| number % 100 != 0);
    assert!(missing.into_iter().eq(expected.map(|(_, digest)| digest)));
}

pub(super) async fn a_part_of_a_file_is_stored(store: &dyn BlobStore) {
    let whole = content(5, 2 * CHUNK_SIZE);
    for (start, len) in [(0, 10), (10, CHUNK_SIZE + 1), (whole.len() - 1, 1), (17, 0)] {
        let part = whole.slice(start..start + len);
        let digest = SHA256.digest(&part);
        store
            .put(&digest, Blob::File(file(&whole, start, len)))
            .await
            .unwrap();
        expect(store, &digest, Some(&part)).await;
    }
}

pub(super) async fn a_failing_stream_stores_nothing(store: &dyn BlobStore) {
    for len in [0, 1, CHUNK_SIZE + 1, 4 * CHUNK_SIZE] {
        let content = content(6, len + 1);
        let digest = SHA256.digest(&content);
        for arrived in [content.slice(..len), content.clone()] {
            let put = store.put(&digest, stream_of(&arrived, End::Error)).await;
            let same = put
                .as_ref()
                .is_err_and(|error| error.to_string() == broken().to_string());
            assert!(same, "the put returns the stream's error, not {put:?}");
            expect(store, &digest, None).await;
        }
        let put = store.put(&digest, stream_of(&content, End::Complete)).await;
        assert_eq!(put.unwrap(), Put::Stored);
    }
}

pub(super) async fn each_blob_of_a_batch_has_its_own_content_or_error(store: &dyn BlobStore) {
    assert!(store.get_batch(&[]).await.is_empty());
    let (small, large) = (content(7, 100), content(8, CHUNK_SIZE + 1));
    let small_digest = SHA256.digest(&small);
    let large_digest = DigestFunction::Blake3.digest(&large);
    let absent = SHA256.digest(b"absent");
    store
        .put(&small_digest, Blob::Bytes(small.clone()))
        .await
        .unwrap();
    store
        .put(&large_digest, Blob::Bytes(large.clone()))
        .await
        .unwrap();
    let digests = [
        small_digest,
        absent,
        large_digest,
        SHA256.empty(),
        small_digest,
    ];
    let got = store.get_batch(&digests).await;
    let expected = [
        Some(&small),
        None,
        Some(&large),
        Some(&Bytes::new()),
        Some(&small),
    ];
    assert_eq!(got.len(), expected.len());
    for ((got, expected), digest) in got.iter().zip(expected).zip(digests) {
        match expected {
            Some(content) => assert!(got.as_ref().unwrap() == content, "{digest}"),
            None => assert!(
                matches!(got, Err(Error::NotFound(d)) if *d == digest),
                "{got:?}"
            ),
        }
    }
}

pub(super) async fn each_blob_of_a_batch_is_stored_or_refused_by_itself(
    store: &dyn BlobStore,
    location: Location,
) {
    assert!(store.put_batch(Vec::new()).await.is_empty());
    let contents = [
        content(9, 1),
        content(10, 4096),
        content(11, CHUNK_SIZE + 1),
    ];
    let digests = contents
        .each_ref()
        .map(|content| DigestFunction::Blake3.digest(content));
    let wrong = SHA256.digest(b"wrong");
    let put = store
        .put_batch(vec![
            (digests[0], contents[0].clone()),
            (wrong, contents[0].clone()),
            (digests[1], contents[1].clone()),
            (SHA256.empty(), Bytes::new()),
            (wrong, Bytes::from_static(b"wronG")),
            (digests[2], contents[2].clone()),
            (digests[0], contents[0].clone()),
        ])
        .await;
    let stored: Vec<_> = put.iter().map(Result::is_ok).collect();
    assert_eq!(
        stored,
        [true, false, true, true, false, true, true],
        "{put:?}"
    );
    for refused in [&put[1], &put[4]] {
        let mismatch =
            matches!(refused, Err(Error::Mismatch { expected, .. }) if *expected == wrong);
        assert!(mismatch, "{refused:?}");
    }
    for (digest, content) in digests.iter().zip(&contents) {
        expect(store, digest, Some(content)).await;
        assert!(read(store, digest, 1).await.unwrap() == content.slice(1..));
    }
    expect(store, &wrong, None).await;
    let again = store
        .put_batch(vec![(digests[1], contents[1].clone())])
        .await;
    let is_repeated = matches!(again.as_slice(), [Ok(put)] if is_repeated(*put, location));
    assert!(is_repeated, "{again:?}");
}
