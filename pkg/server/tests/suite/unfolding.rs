//! Requests that are small on the wire, and would be large in memory.

use crate::common::*;
use gorego_storage::decoded::MAX_DECODED_RESULT;
use reapi::v2::{
    ActionResult, BatchReadBlobsRequest, BatchUpdateBlobsRequest, Digest, FindMissingBlobsRequest,
    GetActionResultRequest, OutputSymlink, UpdateActionResultRequest, batch_update_blobs_request,
};
use tonic::{Code, Status};

const MANY: usize = 2_000_000;

fn assert_too_much<T: std::fmt::Debug>(outcome: Result<T, Status>) {
    assert_refused(outcome, Code::ResourceExhausted, "bytes of memory");
}

#[tokio::test]
async fn requests_too_large_in_memory_are_refused_undecoded() {
    let server = Server::start().await;
    let mut cas = server.cas().await;
    let requests = vec![batch_update_blobs_request::Request::default(); MANY];
    let batch = BatchUpdateBlobsRequest {
        requests,
        ..Default::default()
    };
    assert_too_much(cas.batch_update_blobs(batch).await);
    let batch = BatchReadBlobsRequest {
        acceptable_compressors: vec![1; 2 * MANY - 100],
        digests: vec![sha256(b"").to_proto()],
        ..Default::default()
    };
    assert!(cas.batch_read_blobs(batch).await.is_ok(), "32 MB of them");
    let batch = BatchReadBlobsRequest {
        digests: vec![Digest::default(); MANY],
        ..Default::default()
    };
    assert_too_much(cas.batch_read_blobs(batch).await);
    let request = GetActionResultRequest {
        action_digest: Some(sha256(b"action").to_proto()),
        inline_output_files: vec![String::new(); MANY],
        ..Default::default()
    };
    assert_too_much(server.actions().await.get_action_result(request).await);
}

#[tokio::test]
async fn the_first_malformed_digest_fails_a_lookup_of_many() {
    let server = Server::start().await;
    let request = FindMissingBlobsRequest {
        blob_digests: vec![Digest::default(); MANY],
        ..Default::default()
    };
    let outcome = server.cas().await.find_missing_blobs(request).await;
    assert_refused(outcome, Code::InvalidArgument, "blob_digests[0]");
}

#[tokio::test]
async fn a_result_too_large_in_memory_is_not_stored() {
    let server = Server::start().await;
    let action = sha256(b"action").to_proto();
    let request = UpdateActionResultRequest {
        action_digest: Some(action.clone()),
        action_result: Some(ActionResult {
            output_symlinks: vec![OutputSymlink::default(); MANY],
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut actions = server.actions().await;
    let limit = format!("more than {MAX_DECODED_RESULT} bytes of memory");
    let outcome = actions.update_action_result(request).await;
    assert_refused(outcome, Code::ResourceExhausted, &limit);
    let request = GetActionResultRequest {
        action_digest: Some(action),
        ..Default::default()
    };
    let outcome = actions.get_action_result(request).await;
    assert_refused(outcome, Code::NotFound, "no result");
}
