//! Tests with a faulty backing cache: clients get correct content or an error.
#![cfg(test)]

use gorego_integration::{
    client::Client,
    content::{blob, digest_of, result_of},
    peer::{Fault, FaultyPeer, Method, Times},
    server::Server,
};
use tonic::Code;

const MIB: usize = 1024 * 1024;

async fn proxy(settings: &[&str]) -> (FaultyPeer, Server, Client) {
    let peer = FaultyPeer::start();
    let server = Server::in_front_of(&peer.grpc_url(), settings);
    let client = Client::connect(server.address()).await;
    (peer, server, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_blobs_of_the_backing_cache_are_never_served() {
    for (size, method) in [(1000, Method::BatchReadBlobs), (3 * MIB, Method::Read)] {
        for fault in [Fault::Corrupt(500), Fault::Truncate(500), Fault::Extend(5)] {
            let (peer, _server, client) = proxy(&["backing_cache.put_retry_count=0"]).await;
            let content = blob(1, size);
            let digest = peer.put(&content);
            peer.inject(method, Times::Always, fault);
            let refused = client.download(&digest).await;
            let refused = refused.map(|_| ()).map_err(|status| status.code());
            assert_eq!(refused, Err(Code::DataLoss), "{fault:?}");
            peer.heal();
            assert!(
                client.download(&digest).await.unwrap() == content,
                "{fault:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_fetch_resumes_at_its_offset() {
    let (peer, _server, client) = proxy(&[]).await;
    let content = blob(1, 10 * MIB);
    let digest = peer.put(&content);
    let broken = Fault::BreakAfter(4 * MIB, Code::Unavailable);
    peer.inject(Method::Read, Times::Next(2), broken);
    assert!(client.download(&digest).await.unwrap() == content);
    let sent = peer.bytes_read();
    assert!(sent < 11 * MIB as u64, "{sent} bytes for 10 MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_write_through_resumes_and_reaches_both_tiers() {
    let (peer, _server, client) = proxy(&[]).await;
    let content = blob(1, 10 * MIB);
    let broken = Fault::BreakAfter(4 * MIB, Code::Unavailable);
    peer.inject(Method::Write, Times::Next(2), broken);
    client.upload_whole(&content).await.unwrap();
    assert!(
        peer.blob(&digest_of(&content))
            .is_some_and(|there| there == content)
    );
    assert!(client.download(&digest_of(&content)).await.unwrap() == content);
    assert!(peer.calls(Method::Read).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_backing_cache_fails_writes_and_they_are_not_stored_locally() {
    let (peer, _server, client) = proxy(&["backing_cache.put_retry_count=1"]).await;
    let full = Fault::Answer(Code::ResourceExhausted);
    peer.inject(Method::Write, Times::Always, full);
    peer.inject(Method::BatchUpdateBlobs, Times::Always, full);
    for size in [1000, 3 * MIB] {
        let content = blob(1, size);
        let refused = client.upload_whole(&content).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        let digest = vec![digest_of(&content)];
        assert_eq!(client.find_missing(digest.clone()).await.unwrap(), digest);
    }
    peer.heal();
    for size in [1000, 3 * MIB] {
        client.upload_whole(&blob(1, size)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_backing_cache_is_passed_on() {
    let (peer, _server, client) = proxy(&["backing_cache.headers=x-api-key=wrong"]).await;
    peer.inject(
        Method::Write,
        Times::Always,
        Fault::Answer(Code::PermissionDenied),
    );
    let refused = client.upload_whole(&blob(1, 3 * MIB)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let calls = peer.calls(Method::Write);
    assert_eq!(calls[0].header("x-api-key"), Some("wrong"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_whose_outputs_are_in_neither_tier_is_a_miss() {
    let (peer, _server, client) = proxy(&[]).await;
    let (action, output) = (digest_of(b"action"), blob(1, 1000));
    peer.put_action("", &action, result_of([digest_of(&output)]));
    let missed = client.get_action(&action).await.unwrap_err();
    assert_eq!(missed.code(), Code::NotFound);
    peer.put(&output);
    assert_eq!(
        client.get_action(&action).await.unwrap(),
        result_of([digest_of(&output)])
    );
    // The blob has been read and is local, so a loss in the backing cache does not matter.
    assert!(client.download(&digest_of(&output)).await.unwrap() == output);
    peer.forget_all();
    assert_eq!(
        client.get_action(&action).await.unwrap(),
        result_of([digest_of(&output)])
    );
    assert!(client.download(&digest_of(&output)).await.unwrap() == output);
}

#[tokio::test(flavor = "multi_thread")]
async fn local_blobs_are_served_while_the_backing_cache_is_down() {
    let (peer, _server, client) = proxy(&["backing_cache.put_retry_count=0"]).await;
    let (action, output, absent) = (digest_of(b"action"), blob(1, 1000), blob(2, 1000));
    client.upload_whole(&output).await.unwrap();
    client
        .put_action(&action, result_of([digest_of(&output)]))
        .await
        .unwrap();
    peer.inject_everywhere(Times::Always, Fault::Answer(Code::Unavailable));
    assert_eq!(
        client.get_action(&action).await.unwrap(),
        result_of([digest_of(&output)])
    );
    assert!(client.download(&digest_of(&output)).await.unwrap() == output);
    let missed = client.download(&digest_of(&absent)).await.unwrap_err();
    assert_eq!(missed.code(), Code::Unavailable, "{missed}");
    let refused = client.upload_whole(&absent).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let unknown = client.get_action(&digest_of(b"other")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unavailable, "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn local_blobs_are_uploaded_to_the_backing_cache_before_they_count_as_present() {
    let (peer, _server, client) = proxy(&["backing_cache.existence_ttl=0"]).await;
    let contents = [blob(1, 1000), blob(2, 3 * MIB)];
    for content in &contents {
        client.upload_whole(content).await.unwrap();
    }
    peer.forget_all();
    let digests: Vec<_> = contents.iter().map(|content| digest_of(content)).collect();
    assert_eq!(client.find_missing(digests.clone()).await.unwrap(), []);
    for (digest, content) in digests.iter().zip(&contents) {
        assert!(peer.blob(digest).is_some_and(|there| there == *content));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_known_to_be_in_the_backing_cache_are_not_looked_up_again() {
    let (peer, _server, client) = proxy(&[]).await;
    let digests: Vec<_> = (0..1000).map(|seed| peer.put(&blob(seed, 10))).collect();
    for _ in 0..3 {
        assert_eq!(client.find_missing(digests.clone()).await.unwrap(), []);
    }
    let asked: usize = peer
        .calls(Method::FindMissingBlobs)
        .iter()
        .map(|call| call.digests)
        .sum();
    assert_eq!(asked, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_local_tier_requests_pass_to_the_backing_cache() {
    let (peer, server, client) = proxy(&["local_cache.enabled=false"]).await;
    let content = blob(1, 3 * MIB);
    let digest = digest_of(&content);
    let mut upload = client.begin_upload("a-b", &digest);
    upload.send(&content.slice(..MIB)).await;
    client.wait_until_committed("a-b", &digest, MIB).await;
    drop(upload);
    let mut rest = client.begin_upload("a-b", &digest).from_offset(MIB);
    rest.send_last(&content.slice(MIB..)).await;
    rest.response().await.unwrap();
    assert!(peer.blob(&digest).is_some_and(|there| there == content));
    assert!(client.download(&digest).await.unwrap() == content);
    client
        .put_action(&digest, result_of([digest_of(&content)]))
        .await
        .unwrap();
    assert_eq!(
        client.get_action(&digest).await.unwrap(),
        result_of([digest_of(&content)])
    );
    assert!(!server.data().join("cas").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_stay_local_if_the_backing_cache_is_read_only() {
    let (peer, _server, client) = proxy(&["backing_cache.read_only=true"]).await;
    let (here, there) = (blob(1, 3 * MIB), blob(2, 3 * MIB));
    client.upload_whole(&here).await.unwrap();
    let action = digest_of(b"action");
    client
        .put_action(&action, result_of([digest_of(&here)]))
        .await
        .unwrap();
    assert_eq!(
        client.get_action(&action).await.unwrap(),
        result_of([digest_of(&here)])
    );
    assert_eq!(peer.bytes_written(), 0);
    assert!(peer.calls(Method::UpdateActionResult).is_empty());
    peer.put(&there);
    let digests = vec![digest_of(&here), digest_of(&there)];
    assert_eq!(client.find_missing(digests).await.unwrap(), []);
    assert!(client.download(&digest_of(&there)).await.unwrap() == there);
}
