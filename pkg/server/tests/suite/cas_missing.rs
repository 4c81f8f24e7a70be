//! `FindMissingBlobs`.

use crate::common::*;
use gorego_storage::{Digest, DigestFunction};
use reapi::v2::{FindMissingBlobsRequest, digest_function};
use tonic::Code;

#[tokio::test]
async fn missing_blobs_are_returned_once_and_the_empty_blob_never() {
    let server = Server::start().await;
    let here = server.has(b"here").await;
    let absent = [sha256(b"absent"), sha256(b"absent too")];
    let asked = [absent[0], here, sha256(b""), absent[1], absent[0], here];
    let expected: Vec<_> = absent.iter().map(Digest::hex).collect();
    assert_eq!(missing(&server, &asked).await, expected);
}

#[tokio::test]
async fn a_lookup_may_have_a_hundred_thousand_digests() {
    let server = Server::start().await;
    let asked: Vec<_> = (0_u32..100_000)
        .map(|number| sha256(&number.to_le_bytes()))
        .collect();
    server.has(&7_u32.to_le_bytes()).await;
    assert_eq!(missing(&server, &asked).await.len(), 99_999);
}

#[tokio::test]
async fn digests_of_every_function_are_found() {
    let server = Server::start().await;
    for function in DigestFunction::ALL {
        let digest = function.digest(b"absent");
        for named in [false, true] {
            let request = FindMissingBlobsRequest {
                blob_digests: vec![digest.to_proto(), function.empty().to_proto()],
                digest_function: if named { function.to_proto().into() } else { 0 },
                ..FindMissingBlobsRequest::default()
            };
            let answer = server.cas().await.find_missing_blobs(request).await;
            let missing = answer.unwrap().into_inner().missing_blob_digests;
            assert_eq!(missing, [digest.to_proto()], "{function}");
        }
    }
}

#[tokio::test]
async fn an_unsupported_digest_function_is_refused_naming_the_supported_ones() {
    let server = Server::start().await;
    for function in [digest_function::Value::Md5 as i32, 99, -1] {
        let request = FindMissingBlobsRequest {
            blob_digests: vec![sha256(b"x").to_proto()],
            digest_function: function,
            ..FindMissingBlobsRequest::default()
        };
        let outcome = server.cas().await.find_missing_blobs(request).await;
        assert_refused(outcome, Code::InvalidArgument, "sha256, blake3");
    }
}

#[tokio::test]
async fn instance_names_with_reserved_segments_are_refused() {
    let server = Server::start().await;
    for name in ["blobs", "a/uploads/b", "/a", "a//b", "operations"] {
        let request = FindMissingBlobsRequest {
            instance_name: name.to_owned(),
            ..FindMissingBlobsRequest::default()
        };
        let outcome = server.cas().await.find_missing_blobs(request).await;
        assert_refused(outcome, Code::InvalidArgument, "instance_name");
    }
}
