//! Tests of executors in front of a backing cache.
#![cfg(test)]

use std::slice;

use gorego_integration::{
    content::blob,
    executor::{Details, Executor, Gate, ON, TestAction, outcome, request, succeeded, wait_until},
    peer::{Fault, FaultyPeer, Method, Times},
    server::Server,
};
use reapi::v2::execution_stage::Value;
use tonic::Code;

async fn start(settings: &[&str]) -> (FaultyPeer, Server, Executor) {
    let peer = FaultyPeer::start();
    let settings = [&ON[..], &["backing_cache.put_retry_count=0"], settings].concat();
    let server = Server::in_front_of(&peer.grpc_url(), &settings);
    let executor = Executor::connect(server.address()).await;
    (peer, server, executor)
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_come_from_the_backing_cache_and_outputs_and_results_arrive_there() {
    let (peer, _server, executor) = start(&[]).await;
    let action = TestAction::script("cat dir/input >out; echo log; echo error >&2")
        .input("dir/input", "only in the backing cache")
        .output("out");
    let (digest, blobs) = action.blobs();
    for blob in &blobs {
        peer.put(blob);
    }
    let mut messages = executor.begin(request(&digest)).await.unwrap();
    let result = succeeded(messages.response().await);
    assert_eq!(
        executor.file(&result, "out").await,
        "only in the backing cache"
    );
    peer.wait_for(|seen| seen.action("", &digest).is_some())
        .await;
    assert_eq!(
        peer.action("", &digest).unwrap().output_files,
        result.output_files
    );
    let logs =
        [&result.stdout_digest, &result.stderr_digest].map(|digest| digest.as_ref().unwrap());
    for output in logs
        .into_iter()
        .chain(result.output_files[0].digest.as_ref())
    {
        assert!(peer.blob(output).is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_in_the_backing_cache_is_a_hit() {
    let (peer, server, executor) = start(&[]).await;
    let gate = Gate::new();
    let action = TestAction::script(&gate.report());
    let digest = executor.upload(&action).await;
    let mut messages = executor.begin(request(&digest)).await.unwrap();
    succeeded(messages.response().await);
    peer.wait_for(|seen| seen.action("", &digest).is_some())
        .await;
    drop(server);
    let server = Server::in_front_of(&peer.grpc_url(), &ON);
    let executor = Executor::connect(server.address()).await;
    let mut messages = executor.begin(request(&digest)).await.unwrap();
    assert!(messages.response().await.cached_result);
    assert_eq!(gate.starts(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_missing_in_both_tiers_is_a_violation() {
    let (peer, _server, executor) = start(&[]).await;
    let action = TestAction::script("cat input").input("input", "absent");
    let (digest, blobs) = action.blobs();
    let mut absent = None;
    for blob in &blobs {
        if blob == "absent" {
            absent = Some(blob);
        } else {
            peer.put(blob);
        }
    }
    let refused = executor.begin(request(&digest)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(Details::of(&refused).missing.len(), 1);
    executor
        .client
        .batch_upload(slice::from_ref(absent.unwrap()))
        .await
        .unwrap();
    let mut messages = executor.begin(request(&digest)).await.unwrap();
    succeeded(messages.response().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_at_execute_is_unavailable_with_a_delay() {
    let (peer, _server, executor) = start(&[]).await;
    let action = TestAction::script("true").input("input", "content");
    let (digest, blobs) = action.blobs();
    for blob in &blobs {
        peer.put(blob);
    }
    peer.inject_everywhere(Times::Always, Fault::Answer(Code::Unavailable));
    let refused = executor.begin(request(&digest)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(Details::of(&refused).retry);
    peer.heal();
    // The server may wait before it calls the backing cache again.
    loop {
        match executor.begin(request(&digest)).await {
            Ok(mut messages) => break drop(succeeded(messages.response().await)),
            Err(refused) => assert_eq!(refused.code(), Code::Unavailable, "{refused}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_while_an_action_is_queued_does_not_fail_it() {
    let (peer, _server, executor) = start(&[
        "execution.concurrency=1",
        "backing_cache.existence_ttl=0",
        "local_cache.lease=1s",
    ])
    .await;
    let mut gate = Gate::new();
    let mut running = executor.start(&TestAction::script(&gate.pass())).await;
    gate.wait_for_starts(1);
    let action = TestAction::script("cat input").input("input", "content");
    let mut queued = executor.start(&action).await;
    queued.reach(Value::Queued).await;
    let renewals = || peer.calls(Method::FindMissingBlobs).len();
    peer.inject_everywhere(Times::Always, Fault::Answer(Code::Unavailable));
    let before = renewals();
    wait_until("a renewal of leases in the outage", || renewals() > before);
    peer.heal();
    gate.open();
    succeeded(running.response().await);
    let result = succeeded(queued.response().await);
    assert_eq!(executor.stdout(&result).await, "content");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_during_an_action_is_retried_then_internal_without_a_delay() {
    let (peer, _server, executor) = start(&["execution.max_retries=1"]).await;
    let mut gate = Gate::new();
    let action = TestAction::script(&format!("{}; echo 1 >out", gate.pass())).output("out");
    let digest = executor.upload(&action).await;
    let mut messages = executor.begin(request(&digest)).await.unwrap();
    gate.wait_for_starts(1);
    for method in [
        Method::FindMissingBlobs,
        Method::Write,
        Method::BatchUpdateBlobs,
    ] {
        peer.inject(method, Times::Always, Fault::Answer(Code::Unavailable));
    }
    gate.open();
    gate.open();
    let response = messages.response().await;
    let (code, message) = outcome(&response);
    assert_eq!(code, Code::Internal, "{message}");
    assert!(!Details::of_response(&response.status.unwrap()).retry);
    assert_eq!(gate.starts(), 2);
    assert!(peer.action("", &digest).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_while_inputs_are_fetched_is_retried_then_internal_without_a_delay() {
    let (peer, _server, executor) = start(&["execution.max_retries=1"]).await;
    let gate = Gate::new();
    let absent = blob(1, 100_000);
    let action = TestAction::script(&gate.report()).input("input", absent.clone());
    let (digest, mut blobs) = action.blobs();
    blobs.retain(|blob| *blob != absent);
    executor.client.batch_upload(&blobs).await.unwrap();
    peer.put(&absent);
    for method in [Method::Read, Method::BatchReadBlobs] {
        peer.inject(method, Times::Always, Fault::Answer(Code::Unavailable));
    }
    let mut messages = executor.begin(request(&digest)).await.unwrap();
    let response = messages.response().await;
    let (code, message) = outcome(&response);
    assert_eq!(code, Code::Internal, "{message}");
    assert!(!Details::of_response(&response.status.unwrap()).retry);
    assert_eq!(gate.starts(), 0);
    peer.heal();
    // The server may wait before it calls the backing cache again.
    loop {
        match executor.begin(request(&digest)).await {
            Ok(mut messages) => {
                let response = messages.response().await;
                if outcome(&response).0 == Code::Ok {
                    break;
                }
                assert_eq!(outcome(&response).0, Code::Internal, "{response:?}");
            }
            Err(refused) => assert_eq!(refused.code(), Code::Unavailable, "{refused}"),
        }
    }
    assert_eq!(gate.starts(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_while_the_result_is_stored_does_not_fail_the_action() {
    let (peer, server, executor) = start(&[]).await;
    peer.inject(
        Method::UpdateActionResult,
        Times::Always,
        Fault::Answer(Code::Unavailable),
    );
    let action = TestAction::script("echo content >out").output("out");
    let digest = executor.upload(&action).await;
    let mut messages = executor.begin(request(&digest)).await.unwrap();
    let result = succeeded(messages.response().await);
    assert_eq!(executor.file(&result, "out").await, "content\n");
    let output = result.output_files[0].digest.as_ref().unwrap();
    assert!(peer.blob(output).is_some());
    assert!(peer.action("", &digest).is_none());
    server.wait_for_log(&digest.hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_and_results_of_an_outage_reach_the_backing_cache_after_it() {
    let (peer, _server, executor) = start(&["backing_cache.on_outage=degrade"]).await;
    let mut gate = Gate::new();
    let action = TestAction::script(&format!("{}; echo 1 >out", gate.pass())).output("out");
    let digest = executor.upload(&action).await;
    let mut messages = executor.begin(request(&digest)).await.unwrap();
    gate.wait_for_starts(1);
    peer.inject_everywhere(Times::Always, Fault::Answer(Code::Unavailable));
    gate.open();
    let result = succeeded(messages.response().await);
    assert!(peer.action("", &digest).is_none());
    peer.heal();
    peer.wait_for(|seen| seen.action("", &digest).is_some())
        .await;
    let output = result.output_files[0].digest.as_ref().unwrap();
    assert!(peer.blob(output).is_some());
}
