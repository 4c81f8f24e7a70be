//! Blobs of other nodes in front of a backing cache.

use tokio::time::Instant;

use super::*;
use crate::blobs::{Near, NearOptions};

const OPTIONS: NearOptions = NearOptions {
    peer_reads: true,
    read_only: false,
};

pub(super) struct Test {
    pub(super) cluster: Cluster,
    pub(super) backing: Arc<Fake>,
    pub(super) near: Near,
}

pub(super) fn test() -> Test {
    let (cluster, backing) = (Cluster::new(4), Arc::<Fake>::default());
    let near = Near::new(
        Arc::clone(&cluster.peers),
        Arc::clone(&backing) as _,
        OPTIONS,
    );
    Test {
        cluster,
        backing,
        near,
    }
}

#[tokio::test]
async fn writes_and_lookups_go_to_the_backing_cache_only() {
    let test = test();
    let (content, [first]) = test.cluster.content(10, [0]);
    let (blob, name) = (Blob::Bytes(content.clone()), digest(&content));
    first.gets(&content).await;
    assert_eq!(test.near.find_missing(&[name]).await.unwrap(), [name]);
    test.near.put(&name, blob).await.unwrap();
    assert!(test.backing.has(&name).await);
    assert_eq!(test.near.find_missing(&[name]).await.unwrap(), []);
}

#[tokio::test]
async fn a_call_finds_blobs_at_the_node_that_it_is_near_to_if_the_backing_cache_cannot_have_them() {
    let test = test();
    let (content, [first]) = test.cluster.content(10, [0]);
    let (name, missing) = (digest(&content), DigestFunction::Sha256.digest(b"missing"));
    first.gets(&content).await;
    let call = test.cluster.near_to(&first);
    let find = async |near: &Near, digests: &[Digest]| {
        let found = near.find_missing(digests).await;
        found.map_err(|error| matches!(error, Error::Unavailable(_)))
    };
    let (peers, backing) = (&test.cluster.peers, &test.backing);
    let options = NearOptions {
        read_only: true,
        ..OPTIONS
    };
    let read_only = Near::new(Arc::clone(peers), Arc::clone(backing) as _, options);
    let found = async {
        assert_eq!(find(&test.near, &[name]).await, Ok(vec![name]));
        assert_eq!(find(&read_only, &[name, missing]).await, Ok(vec![missing]));
        test.backing.fails(Fault::Down);
        assert_eq!(find(&test.near, &[name]).await, Ok(vec![]));
        assert_eq!(find(&test.near, &[name, missing]).await, Err(true));
    };
    call.scope(found).await;
    assert_eq!(find(&test.near, &[name]).await, Err(true));
}

#[tokio::test]
async fn a_blob_that_a_node_has_is_not_read_from_the_backing_cache() {
    for len in [10, LARGE] {
        let test = test();
        let (content, [second]) = test.cluster.content(len, [1]);
        second.gets(&content).await;
        test.backing.gets(&content).await;
        assert!(read(&test.near, &digest(&content)).await.unwrap() == content);
        let batch = test.near.get_batch(&[digest(&content)]).await;
        assert!(*batch[0].as_ref().unwrap() == content);
        assert_eq!(test.backing.reads(), 0);
    }
}

#[tokio::test]
async fn without_peer_reads_only_calls_near_to_a_node_read_from_it() {
    let test = test();
    let options = NearOptions {
        peer_reads: false,
        ..OPTIONS
    };
    let (peers, backing) = (&test.cluster.peers, &test.backing);
    let near = Near::new(Arc::clone(peers), Arc::clone(backing) as _, options);
    for len in [10, LARGE] {
        let (content, [first]) = test.cluster.content(len, [0]);
        first.gets(&content).await;
        let missing = read(&near, &digest(&content)).await;
        assert!(matches!(missing, Err(Error::NotFound(_))));
        let call = test.cluster.near_to(&first);
        let read = call.scope(async { read(&near, &digest(&content)).await });
        assert!(read.await.unwrap() == content);
    }
}

#[tokio::test]
async fn a_blob_that_no_node_has_intact_is_read_from_the_backing_cache() {
    for len in [1000, LARGE] {
        for fault in [
            Fault::None,
            Fault::Down,
            Fault::Corrupt,
            Fault::Truncated(0),
            Fault::Truncated(500),
        ] {
            let test = test();
            let (content, [first]) = test.cluster.content(len, [0]);
            first.fails(fault);
            if fault != Fault::None {
                first.gets(&content).await;
            }
            test.backing.gets(&content).await;
            let read = read(&test.near, &digest(&content)).await.unwrap();
            assert!(read == content, "{fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_delays_a_read_for_20_ms() {
    for len in [10, LARGE] {
        let test = test();
        let (content, [first]) = test.cluster.content(len, [0]);
        first.fails(Fault::Silent);
        test.backing.gets(&content).await;
        let before = Instant::now();
        assert!(read(&test.near, &digest(&content)).await.unwrap() == content);
        assert_eq!(before.elapsed(), Duration::from_millis(20));
        let batch = test.near.get_batch(&[digest(&content)]).await;
        assert!(*batch[0].as_ref().unwrap() == content);
    }
}

#[tokio::test]
async fn a_batch_is_completed_by_the_backing_cache() {
    let test = test();
    let (one, [first]) = test.cluster.content(10, [0]);
    let (two, _) = test.cluster.content(20, [0]);
    first.gets(&one).await;
    test.backing.gets(&two).await;
    let missing = DigestFunction::Sha256.digest(b"missing");
    let batch = [digest(&two), missing, digest(&one)];
    let found = test.near.get_batch(&batch).await;
    assert_eq!(found[0].as_ref().unwrap(), &two);
    assert!(matches!(&found[1], Err(Error::NotFound(digest)) if *digest == missing));
    assert_eq!(found[2].as_ref().unwrap(), &one);
}

#[tokio::test(start_paused = true)]
async fn a_slow_node_is_better_than_a_backing_cache_that_fails() {
    for len in [10, LARGE] {
        let test = test();
        let (content, [first]) = test.cluster.content(len, [0]);
        first.gets(&content).await;
        first.fails(Fault::Slow(Duration::from_secs(1)));
        test.backing.fails(Fault::Down);
        assert!(read(&test.near, &digest(&content)).await.unwrap() == content);
        let batch = test.near.get_batch(&[digest(&content)]).await;
        assert!(*batch[0].as_ref().unwrap() == content);
    }
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_no_node_has_is_read_at_most_20_ms_later() {
    let of_backing = Duration::from_millis(2);
    for (trip, more) in [(1, 4), (4, 16), (10, 20), (1000, 20)] {
        for len in [10, LARGE] {
            let test = test();
            let (content, [_, _, _, last]) = test.cluster.content(len, [0, 1, 2, 3]);
            for node in test.cluster.fakes.values() {
                node.fails(Fault::Slow(Duration::from_millis(trip)));
            }
            test.backing.fails(Fault::Slow(of_backing));
            test.backing.gets(&content).await;
            let before = Instant::now();
            let read = async { read(&test.near, &digest(&content)).await.unwrap() };
            let found = test.cluster.near_to(&last).scope(read).await;
            let expected = of_backing + Duration::from_millis(more);
            assert!(found == content);
            assert_eq!(before.elapsed(), expected, "{trip} ms, {len} bytes");
        }
    }
}

#[tokio::test]
async fn nodes_that_have_nothing_are_asked_rarely_until_they_have_a_blob() {
    let test = test();
    let asked = || {
        let nodes = test.cluster.fakes.values();
        nodes.map(|node| node.reads()).sum::<u64>()
    };
    let content = |number: u32| Bytes::copy_from_slice(&number.to_le_bytes());
    for number in 0..1024 {
        test.backing.gets(&content(number)).await;
    }
    let all: Vec<_> = (0..1024).map(|number| digest(&content(number))).collect();
    test.near.get_batch(&all).await;
    let before = asked();
    for (number, name) in (0..32).zip(&all) {
        assert_eq!(read(&test.near, name).await.unwrap(), content(number));
    }
    // Up to three nodes are asked for each of two reads.
    assert!((4..=6).contains(&(asked() - before)));

    // The backing cache lacks these blobs.
    for len in [10, LARGE] {
        let (content, [first]) = test.cluster.content(len, [0]);
        first.gets(&content).await;
        let batch = test.near.get_batch(&[digest(&content)]).await;
        assert!(*batch[0].as_ref().unwrap() == content);
        assert!(read(&test.near, &digest(&content)).await.unwrap() == content);
        test.near.get_batch(&all).await;
        assert!(read(&test.near, &digest(&content)).await.unwrap() == content);
    }
}

#[tokio::test]
async fn blobs_at_the_node_that_calls_are_near_to_do_not_count_for_the_others() {
    let test = test();
    let content = |number: u32| Bytes::copy_from_slice(&number.to_le_bytes());
    let (_, [hinted]) = test.cluster.content(10, [3]);
    for number in 0..1100 {
        test.backing.gets(&content(number)).await;
        hinted.gets(&content(number)).await;
    }
    let others = || {
        let nodes = test.cluster.fakes.values();
        let others = nodes.filter(|node| !Arc::ptr_eq(node, &hinted));
        others.map(|node| node.reads()).sum::<u64>()
    };
    // Blobs that no other node has.
    for number in 2000..3100 {
        test.backing.gets(&content(number)).await;
        read(&test.near, &digest(&content(number))).await.unwrap();
    }
    let call = test.cluster.near_to(&hinted);
    let before = others();
    for number in 0..1000 {
        let read = async { read(&test.near, &digest(&content(number))).await };
        assert_eq!(call.scope(read).await.unwrap(), content(number));
    }
    assert_eq!(others(), before);
    for number in 2000..2032 {
        read(&test.near, &digest(&content(number))).await.unwrap();
    }
    assert!(others() - before <= 6);
}
