//! Tests of the real backing caches that other tests rely on.
#![cfg(test)]

use gorego_integration::{
    backing::Backing,
    client::Client,
    content::{blob, digest_of, uuid},
    executor::{Executor, TestAction},
    link::Link,
    shell::{Caller, name},
};
use reapi::v2::ActionResult;

const LARGE: usize = 3 * 1024 * 1024;

/// Stores blobs by all methods and an action result, and reads them back.
async fn assert_serves(backing: &Backing) {
    let client = Client::connect(backing.address()).await;
    let (small, large) = (blob(1, 1000), blob(2, LARGE));
    let digests = vec![digest_of(&small), digest_of(&large)];
    assert_eq!(client.find_missing(digests.clone()).await.unwrap(), digests);
    client
        .batch_upload(std::slice::from_ref(&small))
        .await
        .unwrap();
    let name = uuid(&mut fastrand::Rng::with_seed(1));
    client.upload(&name, &large).await.unwrap();
    let result = ActionResult {
        exit_code: 7,
        ..ActionResult::default()
    };
    client.put_action(&digests[0], result).await.unwrap();
    assert_holds(backing).await;
}

async fn assert_holds(backing: &Backing) {
    let client = Client::connect(backing.address()).await;
    for content in [blob(1, 1000), blob(2, LARGE)] {
        let digest = digest_of(&content);
        assert!(client.download(&digest).await.unwrap() == content);
    }
    let action = digest_of(&blob(1, 1000));
    assert_eq!(client.get_action(&action).await.unwrap().exit_code, 7);
}

/// Checks that the content survives a crash and an orderly restart at the same address.
async fn assert_survives_restarts(mut backing: Backing) {
    let address = backing.address();
    assert_serves(&backing).await;
    backing.stop();
    backing.restart();
    assert_holds(&backing).await;
    backing.restart();
    assert_eq!(backing.address(), address);
    assert_holds(&backing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bazel_remote_keeps_its_content_across_restarts() {
    assert_survives_restarts(Backing::bazel_remote()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn casd_keeps_its_content_across_restarts() {
    assert_survives_restarts(Backing::casd()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gorego_keeps_its_content_across_restarts() {
    assert_survives_restarts(Backing::gorego(&[])).await;
}

#[tokio::test]
async fn a_link_counts_the_bytes_of_transfers() {
    let backing = Backing::gorego(&[]);
    let link = Link::to(backing.address());
    let client = Client::connect(link.address()).await;
    let content = blob(3, LARGE);
    let name = uuid(&mut fastrand::Rng::with_seed(2));
    client.upload(&name, &content).await.unwrap();
    let sent = u64::try_from(LARGE).unwrap();
    let counts = link.wait_for(|counts| counts.up > sent).await;
    assert_eq!(counts.connections, 1);
    assert!(counts.up < sent + sent / 10, "{counts:?}");
    link.down();
    assert!(client.download(&digest_of(&content)).await.is_err());
    link.restore();
    assert!(client.download(&digest_of(&content)).await.unwrap() == content);
}

/// Runs an action from the blobs of a cache with `gorego shell`. A cache that tells sizes apart finds it by its hash, too.
async fn assert_stages(backing: &Backing, tells_sizes: bool) {
    let executor = Executor::connect(backing.address()).await;
    let action = TestAction::script("cat in/small; wc -c <in/large; echo out >out")
        .input("in/small", "content\n")
        .input("in/large", blob(4, LARGE))
        .output("out");
    let digest = executor.upload(&action).await;
    let caller = Caller::new(&backing.grpc_url());
    let names = [Some(name(&digest)), tells_sizes.then_some(digest.hash)];
    for action in names.into_iter().flatten() {
        let (code, stdout, stderr) = caller.run(&action, &["--run"]);
        assert_eq!(
            (code, stdout),
            (0, format!("content\n{LARGE}\n")),
            "{stderr}"
        );
        let out = name(&digest_of(b"out\n"));
        assert!(stderr.contains(&format!("output out: {out}")), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gorego_shell_runs_actions_from_bazel_remote() {
    assert_stages(&Backing::bazel_remote(), true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gorego_shell_runs_actions_from_casd() {
    assert_stages(&Backing::casd(), false).await;
}
