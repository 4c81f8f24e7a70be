//! Blobs and results at their owners.

use std::slice::from_ref;

use gorego_storage::{ActionCacheExt as _, BlobStoreExt as _};
use reapi::v2::ExecutedActionMetadata;
use tokio::time::Instant;

use super::*;
use crate::blobs::{LatestResults, Owners};

fn owners(cluster: &Cluster) -> (Owners, Arc<MemoryStore>) {
    let local = Arc::<MemoryStore>::default();
    let owners = Owners::new(Arc::clone(&cluster.peers), Arc::clone(&local) as _, 2);
    (owners, local)
}

async fn put(owners: &Owners, content: &Bytes) {
    let blob = Blob::Bytes(content.clone());
    let put = BlobStore::put(owners, &digest(content), blob).await;
    put.unwrap();
}

/// Returns the positions of the nodes that have the digest, in its order.
async fn places(cluster: &Cluster, digest: &Digest) -> Vec<usize> {
    let mut places = Vec::new();
    for (place, node) in cluster.order(digest).into_iter().enumerate() {
        if let Some(node) = node
            && node.has(digest).await
        {
            places.push(place);
        }
    }
    places
}

#[tokio::test]
async fn a_blob_is_at_two_owners_of_which_this_node_may_be_one() {
    let cluster = Cluster::new(3);
    let (owners, _) = owners(&cluster);
    let (others, _) = cluster.content(10, [0, 1]);
    let (own, _) = cluster.content(10, [1, 2, 3]);
    put(&owners, &others).await;
    put(&owners, &own).await;
    assert_eq!(places(&cluster, &digest(&others)).await, [0, 1]);
    assert_eq!(places(&cluster, &digest(&own)).await, [1]);
}

#[tokio::test]
async fn an_owner_that_fails_is_replaced_by_the_next_node() {
    let cluster = Cluster::new(4);
    let (owners, _) = owners(&cluster);
    for len in [10, LARGE] {
        let (content, [first, ..]) = cluster.content(len, [0, 1, 2]);
        first.fails(Fault::Down);
        put(&owners, &content).await;
        first.fails(Fault::None);
        assert_eq!(places(&cluster, &digest(&content)).await, [1, 2]);
        assert!(owners.contains(&digest(&content)).await.unwrap());
    }
}

#[tokio::test]
async fn a_write_succeeds_while_no_other_node_answers() {
    for cluster in [Cluster::new(0), Cluster::new(2)] {
        cluster
            .fakes
            .values()
            .for_each(|node| node.fails(Fault::Down));
        let (owners, _) = owners(&cluster);
        let content = Bytes::from_static(b"content");
        put(&owners, &content).await;
        let name = digest(&content);
        let result = ActionResult::default();
        ActionCache::put(&owners, "", &name, result).await.unwrap();
        assert_eq!(owners.find("", &name).await.unwrap(), None);
        let missing = owners.find_missing(&[name]).await.unwrap();
        assert_eq!(missing, [name]);
        let read = read(&owners, &name).await;
        assert!(matches!(read, Err(Error::NotFound(_))), "{read:?}");
    }
}

#[tokio::test]
async fn a_lookup_finds_blobs_here_at_owners_and_at_a_former_owner() {
    let cluster = Cluster::new(4);
    let (owners, local) = owners(&cluster);
    let (here, _) = cluster.content(10, [1, 2]);
    let (there, [second]) = cluster.content(11, [1]);
    let (former, [third]) = cluster.content(12, [2]);
    let (elsewhere, [fourth]) = cluster.content(13, [3]);
    let blob = Blob::Bytes(here.clone());
    BlobStore::put(&*local, &digest(&here), blob).await.unwrap();
    second.gets(&there).await;
    third.gets(&former).await;
    fourth.gets(&elsewhere).await;
    let is_here = cluster.order(&digest(&here))[0].is_none();
    let all = [&here, &there, &former, &elsewhere, &elsewhere].map(digest);
    let missing = owners.find_missing(&all).await.unwrap();
    let expected: &[Digest] = if is_here {
        &all[3..4]
    } else {
        &[all[0], all[3]]
    };
    assert_eq!(missing, expected);
}

#[tokio::test]
async fn the_node_that_a_call_is_near_to_is_asked_first() {
    let cluster = Cluster::new(4);
    let (owners, _) = owners(&cluster);
    let (content, [first, fourth]) = cluster.content(10, [0, 4]);
    first.gets(&content).await;
    fourth.gets(&content).await;
    let call = cluster.near_to(&fourth);
    let read = call.scope(async { read(&owners, &digest(&content)).await });
    assert_eq!(read.await.unwrap(), content);
    assert_eq!((fourth.reads(), first.reads()), (1, 0));
    first.fails(Fault::Down);
    let found = call.scope(async { owners.contains(&digest(&content)).await });
    assert!(found.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_silent_owner_delays_the_first_lookup_most_and_has_nothing() {
    let cluster = Cluster::new(4);
    let (owners, _) = owners(&cluster);
    let (content, [first, second]) = cluster.content(10, [0, 1]);
    put(&owners, &content).await;
    first.fails(Fault::Silent);
    let before = Instant::now();
    assert!(owners.contains(&digest(&content)).await.unwrap());
    assert_eq!(before.elapsed(), Duration::from_secs(1));
    assert!(owners.contains(&digest(&content)).await.unwrap());
    assert_eq!(before.elapsed(), Duration::from_millis(1200));
    second.fails(Fault::Silent);
    assert!(!owners.contains(&digest(&content)).await.unwrap());
    let found = owners.find("", &digest(&content)).await;
    assert_eq!(found.unwrap(), None);
    assert_eq!(before.elapsed(), Duration::from_millis(2400));
}

#[tokio::test]
async fn corrupt_and_truncated_blobs_are_read_from_the_next_owner() {
    for len in [1000, LARGE] {
        for fault in [
            Fault::Down,
            Fault::Corrupt,
            Fault::Truncated(0),
            Fault::Truncated(500),
        ] {
            let cluster = Cluster::new(4);
            let (owners, _) = owners(&cluster);
            let (content, [first, _]) = cluster.content(len, [0, 1]);
            put(&owners, &content).await;
            first.fails(fault);
            let read = read(&owners, &digest(&content)).await.unwrap();
            assert!(read == content, "{fault:?}");
        }
    }
}

#[tokio::test]
async fn a_corrupt_blob_is_not_read_from_its_node_again() {
    let cluster = Cluster::new(4);
    let (owners, _) = owners(&cluster);
    let (content, [first, second]) = cluster.content(10, [0, 1]);
    put(&owners, &content).await;
    first.fails(Fault::Corrupt);
    for _ in 0..3 {
        let found = owners.get_batch(from_ref(&digest(&content))).await;
        assert_eq!(found[0].as_ref().unwrap(), &content);
    }
    assert_eq!((first.reads(), second.reads()), (1, 3));
}

#[tokio::test]
async fn a_read_that_turns_out_to_be_corrupt_fails_once() {
    let cluster = Cluster::new(4);
    let (owners, _) = owners(&cluster);
    let (content, [first, _]) = cluster.content(LARGE, [0, 1]);
    put(&owners, &content).await;
    first.fails(Fault::CorruptAtEnd);
    let failed = read(&owners, &digest(&content)).await;
    assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
    assert!(read(&owners, &digest(&content)).await.unwrap() == content);
}

#[tokio::test]
async fn a_read_from_an_offset_continues_at_the_next_owner() {
    let cluster = Cluster::new(4);
    let (owners, _) = owners(&cluster);
    let (content, [first, _]) = cluster.content(LARGE, [0, 1]);
    put(&owners, &content).await;
    first.fails(Fault::Truncated(500));
    let blob = BlobStore::get(&owners, &digest(&content), 100).await;
    let rest = blob.unwrap().into_bytes().await.unwrap();
    assert!(rest == content.slice(100..));
}

fn result(completed: i64) -> ActionResult {
    let mut metadata = ExecutedActionMetadata::default();
    let time = &mut metadata.execution_completed_timestamp;
    time.get_or_insert_default().seconds = completed;
    ActionResult {
        execution_metadata: Some(metadata),
        ..ActionResult::default()
    }
}

#[tokio::test]
async fn of_two_results_that_of_the_later_action_stays_at_an_owner() {
    let stored = Arc::<MemoryStore>::default();
    let owner = LatestResults::new(Arc::clone(&stored) as _);
    let action = DigestFunction::Sha256.digest(b"action");
    for (completed, stays) in [(2, 2), (1, 2), (3, 3), (3, 3)] {
        let put = owner.put("i", &action, result(completed)).await;
        put.unwrap();
        let found = owner.find("i", &action).await.unwrap().unwrap();
        assert_eq!(found, result(stays));
    }
    // Without a time, or after one in the future, the last one stays.
    for other in [result(i64::MAX), result(3), ActionResult::default()] {
        owner.put("i", &action, other.clone()).await.unwrap();
        assert_eq!(owner.find("i", &action).await.unwrap(), Some(other));
    }
}

#[tokio::test]
async fn a_result_is_found_while_one_owner_is_lost() {
    let cluster = Cluster::new(4);
    let (owners, _) = owners(&cluster);
    let (action, [first, second]) = cluster.content(10, [0, 1]);
    let action = digest(&action);
    let put = ActionCache::put(&owners, "i", &action, result(1)).await;
    put.unwrap();
    for lost in [first, second] {
        lost.fails(Fault::Down);
        let found = owners.find("i", &action).await.unwrap();
        assert_eq!(found, Some(result(1)));
        lost.fails(Fault::None);
    }
    assert_eq!(owners.find("j", &action).await.unwrap(), None);
}

#[tokio::test]
async fn the_loss_of_a_node_is_an_outage() {
    let cluster = Cluster::new(2);
    let (owners, _) = owners(&cluster);
    assert_eq!(owners.outages(), 0);
    cluster.set([member(1, 1), member(2, 1), member(0, 7)]);
    assert_eq!(owners.outages(), 0, "nothing changed");
    cluster.set([member(2, 1)]);
    assert_eq!(owners.outages(), 1);
    cluster.set([member(2, 2), member(1, 1)]);
    assert_eq!(owners.outages(), 2, "it started again");
    assert_eq!(cluster.order(&digest(&Bytes::new())).len(), 3);
}
