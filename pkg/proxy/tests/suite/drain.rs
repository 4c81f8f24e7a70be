//! The drain of pending writes, which replaces no newer result of the backing cache.

use std::time::Duration;

use crate::common::{
    self, content,
    outage::{
        action, backing_has, backing_put, backing_result, degrading, down, left, name, put,
        put_result, replayed, result,
    },
    sha256,
};
use bytes::Bytes;
use gorego_storage::{
    ActionCache, ActionCacheExt, Blob, BlobStore, BlobStoreExt as _, DigestFunction, Error,
};
use reapi::v2::{ActionResult, Directory, OutputDirectory, Tree};
use tokio::time::sleep;
use tonic::Code;

#[tokio::test(start_paused = true)]
async fn a_rejected_write_delays_no_other() {
    let code = Code::InvalidArgument;
    let proxy = down().await;
    let bad = put(&proxy, &content(1, 10)).await;
    put_result(&proxy, &sha256(&content(7, 10)), ActionResult::default()).await;
    let good = put(&proxy, &content(2, 10)).await;
    put_result(&proxy, &action(), result(&good, 0, None)).await;
    let refused = vec![(bad, code), (sha256(&content(7, 10)), code)];
    proxy.backing.script(|script| script.refused = refused);
    replayed(&proxy).await;
    assert!(backing_has(&proxy, &good).await);
    assert!(!backing_has(&proxy, &bad).await);
    assert!(backing_result(&proxy).await.is_some());
    assert!(proxy.local.contains(&bad).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_blob_of_an_unsupported_function_delays_no_other() {
    let proxy = down().await;
    let content = content(1, 10);
    let lacking = DigestFunction::Blake3.digest(&content);
    let put_lacking = proxy
        .store
        .put(&lacking, Blob::Bytes(content.clone()))
        .await;
    put_lacking.unwrap();
    let good = put(&proxy, &content).await;
    let lacks = Some(DigestFunction::Blake3);
    proxy.backing.script(|script| script.lacks = lacks);
    replayed(&proxy).await;
    assert!(backing_has(&proxy, &good).await);
}

#[tokio::test(start_paused = true)]
async fn a_result_stays_pending_until_its_outputs_are_uploaded_and_readable() {
    for (code, is_there) in [(Code::ResourceExhausted, false), (Code::Unavailable, true)] {
        let proxy = down().await;
        let tree = Tree {
            root: Some(Directory::default()),
            children: vec![Directory::default()],
        };
        let tree = Bytes::from(prost::Message::encode_to_vec(&tree));
        let tree = if is_there {
            proxy.backing.has(&content(1, 10)).await;
            proxy.backing.has(&tree).await
        } else {
            put(&proxy, &tree).await
        };
        let output = put(&proxy, &content(1, 10)).await;
        let mut ours = result(&output, 0, None);
        ours.output_directories.push(OutputDirectory {
            tree_digest: Some(tree.to_proto()),
            ..OutputDirectory::default()
        });
        put_result(&proxy, &action(), ours).await;
        proxy.backing.script(|script| {
            script.refused = vec![(tree, code)];
            script.down = false;
        });
        sleep(Duration::from_mins(10)).await;
        assert_eq!(backing_result(&proxy).await, None);
        proxy.backing.script(|script| script.refused.clear());
        left(&proxy, 0).await;
        assert!(backing_result(&proxy).await.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn the_later_of_two_pending_results_is_uploaded() {
    let proxy = down().await;
    let output = put(&proxy, &content(1, 10)).await;
    for code in [1, 2] {
        put_result(&proxy, &action(), result(&output, code, None)).await;
    }
    assert_eq!(proxy.outbox.depth().borrow().entries, 2);
    replayed(&proxy).await;
    assert_eq!(backing_result(&proxy).await.unwrap().exit_code, 2);
}

#[tokio::test(start_paused = true)]
async fn a_pending_result_replaces_the_results_that_preceded_it() {
    let proxy = down().await;
    let output = put(&proxy, &content(1, 10)).await;
    put_result(&proxy, &action(), result(&output, 1, None)).await;
    replayed(&proxy).await;
    assert_eq!(backing_result(&proxy).await.unwrap().exit_code, 1);
    proxy.backing.script(|script| script.down = true);
    for code in [2, 3] {
        put_result(&proxy, &action(), result(&output, code, None)).await;
    }
    let proxy = proxy.restart(degrading()).await;
    replayed(&proxy).await;
    assert_eq!(backing_result(&proxy).await.unwrap().exit_code, 3);
}

#[tokio::test(start_paused = true)]
async fn a_newer_result_stored_while_outputs_are_uploaded_stays() {
    let proxy = down().await;
    // The local tier had it before the outage, so that no client uploads it.
    let content = content(1, 10);
    let output = sha256(&content);
    let here = BlobStore::put(&*proxy.local, &output, Blob::Bytes(content)).await;
    here.unwrap();
    put_result(&proxy, &action(), result(&output, 1, Some(1))).await;
    let newer = (output, result(&output, 2, Some(2)));
    proxy.backing.script(|script| script.newer = Some(newer));
    replayed(&proxy).await;
    assert_eq!(backing_result(&proxy).await.unwrap().exit_code, 2);
}

#[tokio::test(start_paused = true)]
async fn a_newer_result_that_replaces_an_incomplete_one_meanwhile_stays() {
    let proxy = down().await;
    let output = put(&proxy, &content(1, 10)).await;
    put_result(&proxy, &action(), result(&output, 1, Some(1))).await;
    let gone = sha256(&content(2, 10));
    backing_put(&proxy, &result(&gone, 3, None)).await;
    let newer = (gone, result(&output, 2, Some(2)));
    proxy.backing.script(|script| script.newer = Some(newer));
    replayed(&proxy).await;
    assert_eq!(backing_result(&proxy).await.unwrap().exit_code, 2);
}

#[tokio::test(start_paused = true)]
async fn a_result_uploaded_at_once_replaces_a_pending_one() {
    for ended in [Some(2), Some(0), None] {
        // At any stage of the drain.
        for millis in (250..8000).step_by(1000) {
            let proxy = down().await;
            let output = put(&proxy, &content(1, 10)).await;
            put_result(&proxy, &action(), result(&output, 1, Some(1))).await;
            let proxy = proxy.restart(common::options()).await;
            proxy.backing.script(|script| {
                script.down = false;
                script.latency = Duration::from_secs(1);
            });
            sleep(Duration::from_millis(millis)).await;
            put_result(&proxy, &action(), result(&output, 2, ended)).await;
            left(&proxy, 0).await;
            sleep(Duration::from_secs(10)).await;
            let stays = backing_result(&proxy).await.unwrap().exit_code;
            assert_eq!(stays, 2, "after {millis} ms, ended {ended:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_result_leaves_the_pending_one() {
    let proxy = down().await;
    let output = put(&proxy, &content(1, 10)).await;
    put_result(&proxy, &action(), result(&output, 1, Some(1))).await;
    let proxy = proxy.restart(common::options()).await;
    let newer = result(&output, 2, Some(2));
    let put = proxy.actions().put("", &action(), newer).await;
    assert!(matches!(put, Err(Error::Unavailable(_))), "{put:?}");
    replayed(&proxy).await;
    assert_eq!(backing_result(&proxy).await.unwrap().exit_code, 1);
}

#[tokio::test(start_paused = true)]
async fn a_result_of_unknown_age_is_replaced_only_if_incomplete() {
    for complete in [true, false] {
        let proxy = down().await;
        let output = put(&proxy, &content(1, 10)).await;
        put_result(&proxy, &action(), result(&output, 1, None)).await;
        let theirs = content(2, 10);
        if complete {
            proxy.backing.has(&theirs).await;
        }
        backing_put(&proxy, &result(&sha256(&theirs), 2, None)).await;
        replayed(&proxy).await;
        let stays = backing_result(&proxy).await.unwrap().exit_code == 2;
        assert_eq!(stays, complete);
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_continues_after_a_restart() {
    let proxy = down().await;
    let first = put(&proxy, &content(1, 10)).await;
    let second = put(&proxy, &content(2, 10)).await;
    put_result(&proxy, &action(), result(&second, 0, None)).await;
    let refused = vec![(second, Code::Unavailable)];
    proxy.backing.script(|script| {
        script.refused = refused;
        script.down = false;
    });
    left(&proxy, 2).await;
    assert!(backing_has(&proxy, &first).await);
    // Its output is uploaded first.
    assert_eq!(backing_result(&proxy).await, None);
    let proxy = proxy.restart(degrading()).await;
    assert_eq!(proxy.outbox.depth().borrow().entries, 2);
    proxy.backing.script(|script| script.refused.clear());
    replayed(&proxy).await;
    assert!(backing_has(&proxy, &second).await);
    assert!(backing_result(&proxy).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_while_new_results_arrive() {
    let proxy = down().await;
    let output = put(&proxy, &content(1, 10)).await;
    let large = ActionResult {
        stdout_raw: content(2, 10_000),
        ..result(&output, 0, None)
    };
    for number in 0..20 {
        put_result(&proxy, &name(number), large.clone()).await;
    }
    proxy.backing.script(|script| {
        script.down = false;
        script.latency = Duration::from_millis(50);
    });
    for number in 20..500 {
        sleep(Duration::from_millis(20)).await;
        put_result(&proxy, &name(number), large.clone()).await;
    }
    left(&proxy, 0).await;
    for number in 0..500 {
        let there = ActionCacheExt::find(&proxy.backing.memory, "", &name(number)).await;
        assert!(there.unwrap().is_some());
    }
}
