use std::{fs, sync::atomic::Ordering::Relaxed};

use gorego_storage::{
    ActionCacheExt as _, BlobFile, BlobStoreExt as _, CHUNK_SIZE, DigestFunction, Error, Lookups,
    MemoryStore,
};
use gorego_storage_conformance as conformance;

use super::*;

fn digest(content: &[u8]) -> Digest {
    DigestFunction::Sha256.digest(content)
}

/// A metered store in memory, and its counts.
fn metered() -> (Metered<MemoryStore>, Counts) {
    let counts = Counts {
        answering: Some(Arc::default()),
        calls: Some(Arc::default()),
        ..Counts::default()
    };
    (Metered::new(Arc::default(), counts.clone()), counts)
}

/// Returns the metered store as a store of blobs.
fn blobs_of(store: &Metered<MemoryStore>) -> &dyn BlobStore {
    store
}

/// Returns the hits, misses, incomplete results, misses in outages, and errors.
fn outcomes(lookups: &Lookups) -> [u64; 5] {
    let Lookups {
        hits,
        misses,
        incomplete,
        outage,
        errors,
    } = lookups;
    [hits, misses, incomplete, outage, errors].map(|total| total.load(Relaxed))
}

fn bytes(traffic: &Traffic) -> [u64; 2] {
    [&traffic.read, &traffic.written].map(|total| total.load(Relaxed))
}

#[tokio::test]
async fn a_metered_store_behaves_like_the_store() {
    let make = async || Arc::new(metered().0);
    conformance::blob_store(make).await;
    conformance::action_cache(make).await;
}

#[tokio::test]
async fn each_way_to_read_and_write_a_blob_counts_its_bytes() {
    let (store, counts) = metered();
    let contents = ["one", "four", "eleven"].map(Bytes::from);
    let digests = contents.each_ref().map(|content| digest(content));
    let [one, two, three] = contents.clone();
    let put = Blob::Bytes(one.clone());
    blobs_of(&store).put(&digests[0], put).await.unwrap();
    let put = Blob::stream(futures::stream::iter([Ok(two)]));
    blobs_of(&store).put(&digests[1], put).await.unwrap();
    store.put_batch(vec![(digests[2], three)]).await;
    assert_eq!(bytes(&counts.traffic), [0, 13]);
    store.put_batch(vec![(digests[0], one)]).await;
    let all = store.get_batch(&digests).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(bytes(&counts.traffic)[0], 13);
    blobs_of(&store).get(&digests[2], 4).await.unwrap();
    assert_eq!(bytes(&counts.traffic)[0], 15);
}

#[tokio::test]
async fn a_read_or_an_upload_that_ends_early_counts_what_passed() {
    let traffic = Arc::default();
    let pieces = || [Ok(Bytes::from_static(b"half")), Ok(Bytes::from("other"))];
    let stream = Blob::stream(futures::stream::iter(pieces()));
    let mut chunks = counted_read(stream, &traffic).into_chunks();
    chunks.next().await.unwrap().unwrap();
    drop(chunks);
    assert_eq!(bytes(&traffic), [4, 0]);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), vec![7; 3 * CHUNK_SIZE]).unwrap();
    let file = Blob::File(BlobFile {
        file: Arc::new(fs::File::open(file.path()).unwrap()),
        path: file.path().to_owned(),
        offset: 0,
        len: 3 * CHUNK_SIZE as u64,
        guard: None,
    });
    let file = counted_read(file, &traffic);
    assert!(matches!(file, Blob::File(_)), "a file stays one");
    let mut chunks = file.into_chunks();
    chunks.next().await.unwrap().unwrap();
    drop(chunks);
    assert_eq!(bytes(&traffic), [4 + CHUNK_SIZE as u64, 0]);
    let cut_off = [
        Ok(Bytes::from_static(b"half")),
        Err(Error::Unavailable("cut off".to_owned())),
    ];
    let (store, counts) = metered();
    let put = Blob::stream(futures::stream::iter(cut_off));
    blobs_of(&store)
        .put(&digest(b"half of it"), put)
        .await
        .unwrap_err();
    assert_eq!(bytes(&counts.traffic), [0, 4]);
}

#[tokio::test]
async fn each_blob_of_a_batch_counts_as_one_lookup_of_both_tiers() {
    let (store, counts) = metered();
    let (known, unknown) = (digest(b"known"), digest(b"unknown"));
    let blob = Blob::Bytes(Bytes::from_static(b"known"));
    blobs_of(&store).put(&known, blob).await.unwrap();
    // As the server does: what was fetched is read then.
    let fetched = store.fetch_batch(&[known, unknown]).await;
    let found: Vec<_> = fetched.into_iter().flatten().collect();
    store.get_batch(&found).await;
    blobs_of(&store).get(&known, 0).await.unwrap();
    blobs_of(&store).get(&unknown, 0).await.unwrap_err();
    assert!(matches!(
        blobs_of(&store).get(&known, 9).await,
        Err(Error::OffsetPastEnd { .. })
    ));
    // This store in memory has nothing slower to fetch from, so that the batch found the miss.
    for tier in counts.tiers() {
        assert_eq!(outcomes(&tier.blobs), [2, 2, 0, 0, 0]);
    }
}

#[tokio::test]
async fn results_count_as_hits_and_misses_and_presence_by_blob() {
    let (store, counts) = metered();
    let action = digest(b"action");
    assert_eq!(store.find("", &action).await.unwrap(), None);
    let result = ActionResult::default();
    ActionCache::put(&store, "", &action, result).await.unwrap();
    store.find("", &action).await.unwrap().unwrap();
    assert_eq!(outcomes(&counts.traffic.results), [1, 1, 0, 0, 0]);
    assert!(!store.contains(&action).await.unwrap());
    let presence = [&counts.traffic.present, &counts.traffic.missing];
    assert_eq!(presence.map(|total| total.load(Relaxed)), [0, 1]);
}

#[tokio::test]
async fn a_blob_of_unnamed_digest_function_counts_once_as_present_or_missing() {
    let (store, counts) = metered();
    let content = Bytes::from_static(b"known");
    let put = Blob::Bytes(content.clone());
    blobs_of(&store).put(&digest(&content), put).await.unwrap();
    let unnamed = |digest: Digest| {
        let size = digest.size().try_into().unwrap();
        Digest::parse(None, &digest.hex(), size).unwrap()
    };
    let (known, unknown) = (unnamed(digest(&content)), unnamed(digest(b"unknown")));
    // As the server does: what is missing under the first function is looked up under the second.
    let missing = store.find_missing(&[known, unknown]).await.unwrap();
    assert_eq!(missing, [unknown]);
    let second = unknown.other().unwrap();
    assert_eq!(store.find_missing(&[second]).await.unwrap(), [second]);
    let presence = [&counts.traffic.present, &counts.traffic.missing];
    assert_eq!(presence.map(|total| total.load(Relaxed)), [1, 1]);
}

#[tokio::test]
async fn misses_are_no_failures_of_the_backing_cache() {
    let (store, counts) = metered();
    let calls = counts.calls.unwrap();
    let count = |operation| {
        let counts = calls.of(operation).unwrap();
        [&counts.ok, &counts.errors].map(|total| total.load(Relaxed))
    };
    let unknown = digest(b"unknown");
    blobs_of(&store).get(&unknown, 0).await.unwrap_err();
    store.get_batch(&[unknown]).await;
    store.find("", &unknown).await.unwrap();
    let put = Blob::Bytes(Bytes::from_static(b"another"));
    blobs_of(&store).put(&unknown, put).await.unwrap_err();
    for (operation, counted) in [
        (Operation::Read, [1, 0]),
        (Operation::ReadBatch, [1, 0]),
        (Operation::GetResult, [1, 0]),
        (Operation::Write, [0, 1]),
        (Operation::PutResult, [0, 0]),
    ] {
        assert_eq!(count(operation), counted, "{operation:?}");
    }
}
