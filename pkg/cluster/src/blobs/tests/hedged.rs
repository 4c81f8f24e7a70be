//! Nodes that are busy, slow or silent, in front of a backing cache.

use tokio::time::Instant;

use super::{
    near::{Test, test},
    *,
};
use crate::blobs::Owners;

const fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

/// Reads a blob alone and in a batch, from a node and a backing cache with these faults. Passes the nodes to `check`.
async fn each_read(of_node: Fault, of_backing: Fault, check: impl Fn(&Fake, &Fake, Duration)) {
    for (len, is_batch) in [(10, false), (10, true), (LARGE, false)] {
        let Test {
            cluster,
            backing,
            near,
        } = test();
        let (content, [first]) = cluster.content(len, [0]);
        let name = digest(&content);
        first.gets(&content).await;
        backing.gets(&content).await;
        first.fails(of_node);
        backing.fails(of_backing);
        let before = Instant::now();
        let found = if is_batch {
            near.get_batch(&[name]).await.pop().unwrap()
        } else {
            read(&near, &name).await
        };
        assert!(found.unwrap() == content);
        check(&first, &backing, before.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_begins_in_time_is_the_only_one_that_is_asked() {
    let busy = Fault::Busy(ms(19), ms(1));
    each_read(busy, Fault::None, |_, backing, _| {
        assert_eq!(backing.reads(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_read_of_the_backing_cache_is_cancelled_once_a_node_begins() {
    let (node, backing) = (Fault::Busy(ms(30), ms(0)), Fault::Busy(ms(11), ms(1)));
    each_read(node, backing, |node, backing, _| {
        assert_eq!((node.cancelled(), backing.cancelled()), (0, 1));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_read_of_a_node_is_cancelled_once_the_backing_cache_begins() {
    let (node, backing) = (Fault::Busy(ms(30), ms(1)), Fault::Busy(ms(9), ms(500)));
    each_read(node, backing, |node, backing, _| {
        assert_eq!((node.cancelled(), backing.cancelled()), (1, 0));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_begins_and_stalls_is_replaced_by_the_backing_cache() {
    let stalled = Fault::Busy(ms(1), Duration::MAX);
    each_read(stalled, Fault::None, |node, _, took| {
        assert_eq!(node.cancelled(), 1);
        assert!(took < ms(300), "{took:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_ends_as_it_begins_may_lack_the_blob() {
    let cases = [
        // The node lacks the blob.
        (Fault::Busy(ms(30), ms(0)), Fault::Slow(ms(100)), false),
        // The backing cache lacks it.
        (Fault::Busy(ms(50), ms(0)), Fault::Busy(ms(5), ms(0)), true),
    ];
    for (of_node, of_backing, node_has_it) in cases {
        for is_batch in [false, true] {
            let test = test();
            let (content, [first]) = test.cluster.content(10, [0]);
            let name = digest(&content);
            if node_has_it {
                first.gets(&content).await;
            } else {
                test.backing.gets(&content).await;
            }
            first.fails(of_node);
            test.backing.fails(of_backing);
            let found = if is_batch {
                test.near.get_batch(&[name]).await.pop().unwrap()
            } else {
                read(&test.near, &name).await
            };
            assert!(found.unwrap() == content);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_backing_cache_that_begins_and_stalls_is_replaced_by_the_node() {
    let (node, backing) = (Fault::Slow(ms(100)), Fault::Busy(ms(5), Duration::MAX));
    each_read(node, backing, |_, backing, took| {
        assert_eq!(backing.cancelled(), 1);
        assert!(took < ms(5000), "{took:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_node_is_asked_again_for_what_the_backing_cache_turns_out_to_lack() {
    for len in [10, LARGE] {
        let test = test();
        let (content, [first]) = test.cluster.content(len, [0]);
        first.gets(&content).await;
        first.fails(Fault::Busy(ms(50), ms(0)));
        test.backing.fails(Fault::Busy(ms(1), ms(1)));
        assert!(read(&test.near, &digest(&content)).await.unwrap() == content);
        assert_eq!((first.reads(), first.cancelled()), (2, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_stalls_at_one_place_is_read_from_the_next_one() {
    let test = test();
    let (content, [first]) = test.cluster.content(LARGE, [0]);
    first.gets(&content).await;
    test.backing.gets(&content).await;
    first.fails(Fault::Pauses(Duration::MAX));
    assert!(read(&test.near, &digest(&content)).await.unwrap() == content);

    let owners = Owners::new(
        Arc::clone(&test.cluster.peers),
        Arc::<MemoryStore>::default(),
        2,
    );
    let (content, [first, second]) = test.cluster.content(LARGE, [0, 1]);
    first.gets(&content).await;
    first.fails(Fault::Pauses(Duration::from_mins(1)));
    let before = Instant::now();
    assert!(read(&owners, &digest(&content)).await.unwrap() == content);
    assert!(
        before.elapsed() >= Duration::from_mins(1),
        "no other has it"
    );
    second.gets(&content).await;
    let before = Instant::now();
    assert!(read(&owners, &digest(&content)).await.unwrap() == content);
    assert!(before.elapsed() < Duration::from_mins(1));
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_arrives_slowly_is_not_read_from_another_place() {
    let test = test();
    let (content, [first]) = test.cluster.content(LARGE, [0]);
    first.gets(&content).await;
    test.backing.gets(&content).await;
    first.fails(Fault::Trickles);
    assert!(read(&test.near, &digest(&content)).await.unwrap() == content);
    assert_eq!(test.backing.reads(), 0);
}
