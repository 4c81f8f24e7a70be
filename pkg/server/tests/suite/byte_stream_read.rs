//! Downloads through `ByteStream.Read`.

use crate::common::*;
use bytes::Bytes;
use gorego_storage::DigestFunction;
use tonic::Code;

#[tokio::test]
async fn a_blob_is_read_from_any_offset_up_to_any_limit() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    for len in [1, 4096, 20_000, 300_000, 3_000_000] {
        let content = noise(len, 1);
        let name = format!("blobs/{}", server.has(&content).await);
        for offset in [0, 1, len / 2, len - 1, len] {
            for limit in [0, 1, len / 3, len, len * 2] {
                let end = if limit == 0 {
                    len
                } else {
                    len.min(offset + limit)
                };
                let (from, at_most) = (offset.try_into().unwrap(), limit.try_into().unwrap());
                let found = read(&mut client, &name, from, at_most).await.unwrap();
                assert!(
                    found == content[offset..end],
                    "{len} bytes, from {offset}, at most {limit}: {} bytes",
                    found.len()
                );
            }
        }
    }
}

#[tokio::test]
async fn an_offset_outside_the_blob_is_out_of_range() {
    let server = Server::start().await;
    let name = format!("blobs/{}", server.has(b"content").await);
    let mut client = server.bytes().await;
    for offset in [8, i64::MAX, -1, i64::MIN] {
        let outcome = read(&mut client, &name, offset, 0).await;
        assert_refused(outcome, Code::OutOfRange, &offset.to_string());
    }
}

#[tokio::test]
async fn a_negative_limit_is_refused() {
    let server = Server::start().await;
    let name = format!("blobs/{}", server.has(b"content").await);
    let outcome = read(&mut server.bytes().await, &name, 0, -1).await;
    assert_refused(outcome, Code::InvalidArgument, "read_limit");
}

#[tokio::test]
async fn a_read_of_a_missing_blob_is_not_found() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    let digest = sha256(b"absent");
    for kind in ["blobs", "compressed-blobs/zstd"] {
        let outcome = read(&mut client, &format!("{kind}/{digest}"), 0, 0).await;
        assert_refused(outcome, Code::NotFound, &digest.hex());
    }
}

#[tokio::test]
async fn the_empty_blob_is_read_in_every_function_without_being_stored() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    for function in DigestFunction::ALL {
        let name = format!("blobs/{function}/{}", function.empty());
        assert_eq!(read(&mut client, &name, 0, 0).await.unwrap(), Bytes::new());
    }
}

#[tokio::test]
async fn names_with_an_instance_or_a_function_are_accepted() {
    let server = Server::start().await;
    let digest = server.has(b"content").await;
    let mut client = server.bytes().await;
    for name in [
        format!("some/instance/blobs/{digest}"),
        format!("blobs/sha256/{digest}"),
    ] {
        assert_eq!(read(&mut client, &name, 0, 0).await.unwrap(), b"content");
    }
}

#[tokio::test]
async fn malformed_names_are_refused_and_quoted() {
    let server = Server::start().await;
    let digest = server.has(b"content").await;
    let mut client = server.bytes().await;
    for name in [
        String::new(),
        "blobs/a/1".to_owned(),
        format!("uploads/u/blobs/{digest}"),
        format!("blobs/{digest}/more"),
        format!("blobs/{}/7", digest.hex().to_uppercase()),
        format!("compressed-blobs/brotli/{digest}"),
    ] {
        let outcome = read(&mut client, &name, 0, 0).await;
        let quoted = name.chars().take(20).collect::<String>();
        assert_refused(outcome, Code::InvalidArgument, &quoted);
    }
}
