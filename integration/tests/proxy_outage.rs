//! Tests of outages: builds continue, and pending writes are uploaded afterwards.
#![cfg(test)]

use std::{fs, time::Duration};

use gorego_integration::{
    client::Client,
    content::{blob, digest_of, result_of},
    peer::{Fault, FaultyPeer, Method, Times},
    server::{Server, refusal},
};
use tokio::{net::TcpListener, task::JoinSet};
use tonic::Code;

const MIB: usize = 1024 * 1024;

const DEGRADE: [&str; 2] = [
    "backing_cache.on_outage=degrade",
    "backing_cache.put_retry_count=0",
];

async fn proxy(settings: &[&str]) -> (FaultyPeer, Server, Client) {
    let peer = FaultyPeer::start();
    let server = Server::in_front_of(&peer.grpc_url(), settings);
    let client = Client::connect(server.address()).await;
    (peer, server, client)
}

fn end(peer: &FaultyPeer) {
    peer.inject_everywhere(Times::Always, Fault::Answer(Code::Unavailable));
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_writes_reach_the_backing_cache_after_a_crash() {
    let (peer, server, client) = proxy(&DEGRADE).await;
    end(&peer);
    let (small, large) = (blob(1, 1000), blob(2, 3 * MIB));
    for content in [&small, &large] {
        client.upload_whole(content).await.unwrap();
    }
    client.batch_upload(&[blob(3, 500)]).await.unwrap();
    let digests = [&small, &large, &blob(3, 500)].map(|content| digest_of(content));
    assert_eq!(client.find_missing(digests.to_vec()).await.unwrap(), []);
    let action = digest_of(b"action");
    client
        .put_action(&action, result_of([digest_of(&large)]))
        .await
        .unwrap();
    assert_eq!(
        client.get_action(&action).await.unwrap(),
        result_of([digest_of(&large)])
    );
    let missed = client.download(&digest_of(b"absent")).await.unwrap_err();
    assert_eq!(missed.code(), Code::NotFound, "{missed}");

    let server = server.restart();
    let client = Client::connect(server.address()).await;
    assert_eq!(
        client.get_action(&action).await.unwrap(),
        result_of([digest_of(&large)])
    );
    peer.heal();
    peer.wait_for(|seen| seen.action("", &action).is_some())
        .await;
    for digest in &digests {
        assert!(peer.blob(digest).is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_beyond_journal_max_are_refused_and_not_reported_as_present() {
    let (peer, _server, client) =
        proxy(&[&DEGRADE[..], &["backing_cache.journal_max=3MiB"]].concat()).await;
    end(&peer);
    let (first, second) = (blob(1, 2 * MIB), blob(2, 2 * MIB));
    client.upload_whole(&first).await.unwrap();
    let refused = client.upload_whole(&second).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let digests = vec![digest_of(&first), digest_of(&second)];
    let missing = client.find_missing(digests.clone()).await.unwrap();
    assert_eq!(missing, digests[1..]);
    peer.heal();
    peer.wait_for(|seen| seen.blob(&digests[0]).is_some()).await;
    // The peer has the first blob before the server receives the response.
    let accepted = async { while client.upload_whole(&second).await.is_err() {} };
    let accepted = tokio::time::timeout(Duration::from_mins(1), accepted).await;
    accepted.expect("the outbox has room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_writes_that_are_not_uploaded_are_logged_at_the_start() {
    let (peer, server, client) = proxy(&DEGRADE).await;
    end(&peer);
    let content = blob(1, 1000);
    client.upload_whole(&content).await.unwrap();
    peer.heal();
    let target = format!("backing_cache.target={}", peer.grpc_url());
    let mut server = server;
    for settings in [
        vec![],
        vec![target.as_str(), "backing_cache.read_only=true"],
        vec![target.as_str(), "local_cache.enabled=false"],
    ] {
        server = server.restart_with(&settings);
        server.wait_for_log("stay in the outbox");
    }
    assert_eq!(peer.blob(&digest_of(&content)), None);
    let _server = server.restart_with(&[&target]);
    peer.wait_for(|seen| seen.blob(&digest_of(&content)).is_some())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_acknowledged_before_a_crash_reaches_the_backing_cache() {
    let (peer, mut server, _) = proxy(&DEGRADE).await;
    end(&peer);
    let mut acknowledged = Vec::new();
    let mut seed = 0;
    for enough in [1, 5, 12] {
        let mut uploads = JoinSet::new();
        for _ in 0..24 {
            seed += 1;
            let client = Client::connect(server.address()).await;
            uploads.spawn(async move {
                let (output, action) = (blob(seed, 5000), digest_of(&seed.to_le_bytes()));
                client.upload_whole(&output).await?;
                let result = result_of([digest_of(&output)]);
                client.put_action(&action, result.clone()).await?;
                Ok::<_, tonic::Status>((action, result, output))
            });
        }
        let mut count = 0;
        while let Some(upload) = uploads.join_next().await {
            if let Ok(written) = upload.unwrap() {
                acknowledged.push(written);
                count += 1;
                if count == enough {
                    server.kill();
                }
            }
        }
        server = server.restart();
    }
    let client = Client::connect(server.address()).await;
    for (action, result, output) in &acknowledged {
        assert_eq!(client.get_action(action).await.unwrap(), *result);
        assert!(client.download(&digest_of(output)).await.unwrap() == *output);
    }
    peer.heal();
    for (action, result, output) in &acknowledged {
        peer.wait_for(|seen| seen.action("", action).is_some())
            .await;
        assert_eq!(peer.action("", action).as_ref(), Some(result));
        assert!(peer.blob(&digest_of(output)).is_some());
    }
}

#[test]
fn the_journal_of_an_earlier_version_refuses_the_start() {
    let data = tempfile::tempdir().unwrap();
    let log = data.path().join("journal/log");
    fs::create_dir(log.parent().unwrap()).unwrap();
    let target = ["backing_cache.target=grpc://localhost:1"];
    let degrading = [target[0], DEGRADE[0]];
    for settings in [&[][..], &target, &degrading] {
        fs::write(&log, "\u{ff}records").unwrap();
        let (status, said) = refusal(data.path(), settings);
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(
            said.contains("drain it with the previous version"),
            "{said}"
        );
        assert!(said.contains(log.to_str().unwrap()), "{said}");
        assert_eq!(fs::read_to_string(&log).unwrap(), "\u{ff}records");
    }
    let server = Server::start(&[]);
    let drained = server.data().join("journal/log");
    fs::create_dir(drained.parent().unwrap()).unwrap();
    fs::write(&drained, "").unwrap();
    let _server = server.restart();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_pending_write_does_not_delay_others() {
    let (peer, _server, client) = proxy(&DEGRADE).await;
    end(&peer);
    let (large, small) = (blob(1, 3 * MIB), blob(2, 1000));
    for content in [&large, &small] {
        client.upload_whole(content).await.unwrap();
    }
    peer.heal();
    let never = Fault::Answer(Code::InvalidArgument);
    peer.inject(Method::Write, Times::Always, never);
    let action = digest_of(b"action");
    client
        .put_action(&action, result_of([digest_of(&small)]))
        .await
        .unwrap();
    peer.wait_for(|seen| seen.action("", &action).is_some())
        .await;
    assert!(peer.blob(&digest_of(&small)).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn prefetch_fetches_the_outputs_of_a_hit() {
    let (peer, _server, client) = proxy(&["backing_cache.prefetch=true"]).await;
    let (action, output) = (digest_of(b"action"), blob(1, 3 * MIB));
    peer.put(&output);
    peer.put_action("", &action, result_of([digest_of(&output)]));
    assert_eq!(
        client.get_action(&action).await.unwrap(),
        result_of([digest_of(&output)])
    );
    peer.wait_for(|seen| seen.calls(Method::Read).next().is_some())
        .await;
    // A read joins the running fetch.
    assert!(client.download(&digest_of(&output)).await.unwrap() == output);
    assert_eq!(peer.calls(Method::Read).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_lost_in_an_outage_are_uploaded_again() {
    let (peer, _server, client) = proxy(&["backing_cache.put_retry_count=0"]).await;
    let (again, looked_for) = (blob(1, 3 * MIB), blob(2, 3 * MIB));
    let digests = [&again, &looked_for].map(|content| digest_of(content));
    for content in [&again, &looked_for] {
        client.upload_whole(content).await.unwrap();
    }
    assert_eq!(client.find_missing(digests.to_vec()).await.unwrap(), []);
    end(&peer);
    let absent = vec![digest_of(b"absent")];
    client.find_missing(absent).await.unwrap_err();
    peer.forget_all();
    peer.heal();

    client.upload_whole(&again).await.unwrap();
    assert!(peer.blob(&digests[0]).is_some());
    let missing = client.find_missing(vec![digests[1].clone()]).await;
    assert_eq!(missing.unwrap(), []);
    assert!(peer.blob(&digests[1]).is_some());
}

/// Answers every call with an HTML page.
async fn answer_with_pages(listener: TcpListener, status: u16) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connections.spawn(async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let head = http::Response::builder()
                    .status(status)
                    .header("content-type", "text/html");
                let mut page = respond
                    .send_response(head.body(()).unwrap(), false)
                    .unwrap();
                page.send_data("<p>Sorry".into(), true).unwrap();
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_html_page_of_the_backing_cache_is_quoted_in_the_log() {
    for (status, code) in [(403, Code::PermissionDenied), (502, Code::Unavailable)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = format!("grpc://{}", listener.local_addr().unwrap());
        let mut pages = JoinSet::new();
        pages.spawn(answer_with_pages(listener, status));
        let server = Server::in_front_of(&target, &["backing_cache.put_retry_count=0"]);
        let client = Client::connect(server.address()).await;
        let refused = client.get_action(&digest_of(b"action")).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        let log = server.wait_for_log(&format!("the backing cache answered with HTTP {status}"));
        assert!(log.contains("Sorry"), "{log}");
    }
}
