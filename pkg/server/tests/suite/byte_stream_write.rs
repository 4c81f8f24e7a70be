//! Uploads through `ByteStream.Write`.

use crate::common::*;
use bytes::Bytes;
use gorego_storage::{Digest, DigestFunction};
use reapi::bytestream::WriteRequest;
use tonic::Code;

#[tokio::test]
async fn a_written_blob_is_stored_whatever_its_size_and_pieces() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    for len in [1, 5000, 300_000, 3_000_000] {
        for (seed, piece) in [(1, 10_000), (2, 100_000), (3, 4_000_000)] {
            let content = noise(len, seed);
            let digest = sha256(&content);
            let name = upload_name("u", &digest);
            let size = write(&mut client, messages(&name, &content, piece)).await;
            assert_eq!(size.unwrap(), size_of(&digest));
            assert_eq!(server.stored(&digest).await.unwrap(), content);
        }
    }
}

#[tokio::test]
async fn content_of_another_digest_is_refused_and_not_stored() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    for len in [10, 600_000] {
        let content = noise(len, 1);
        let digest = sha256(&content);
        let shorter = content.slice(1..);
        let longer = Bytes::from([&content[..], b"x"].concat());
        let other = noise(len, 2);
        for wrong in [shorter, longer, other] {
            for piece in [4, 50_000, 1_000_000] {
                let piece = piece.max(len / 10);
                let name = upload_name("u", &digest);
                let outcome = write(&mut client, messages(&name, &wrong, piece)).await;
                assert_refused(outcome, Code::InvalidArgument, &digest.hex());
                assert_eq!(server.stored(&digest).await, None);
            }
        }
    }
}

#[tokio::test]
async fn names_with_an_instance_a_function_or_metadata_are_accepted() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    let content = noise(100, 1);
    for function in DigestFunction::ALL {
        let digest = function.digest(&content);
        let name = format!("some/instance/uploads/u/blobs/{function}/{digest}/meta/data");
        write(&mut client, messages(&name, &content, 1000))
            .await
            .unwrap();
        assert_eq!(server.stored(&digest).await.unwrap(), content);
    }
}

#[tokio::test]
async fn malformed_names_are_refused_and_quoted() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    let digest = sha256(b"content");
    let hex = digest.hex();
    let names = [
        String::new(),
        "uploads".to_owned(),
        format!("blobs/{digest}"),
        "uploads/u/blobs/a/1".to_owned(),
        format!("uploads/u/blobs/{hex}"),
        format!("uploads/u/blobs/{hex}/-1"),
        format!("uploads/u/blobs/{hex}/99999999999999999999"),
        format!("uploads/u/blobs/{}/7", hex.to_uppercase()),
        format!("uploads/u/blobs/md5/{}/7", "a".repeat(32)),
        format!("uploads/u/compressed-blobs/brotli/{digest}"),
        format!("/uploads/u/blobs/{digest}"),
        format!("operations/uploads/u/blobs/{digest}"),
    ];
    for name in names {
        let message = WriteRequest {
            resource_name: name.clone(),
            finish_write: true,
            ..WriteRequest::default()
        };
        let outcome = write(&mut client, vec![message]).await;
        let quoted = name.chars().take(20).collect::<String>();
        assert_refused(outcome, Code::InvalidArgument, &quoted);
    }
}

#[tokio::test]
async fn later_messages_may_repeat_the_name_and_must_not_change_it() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    let content = noise(100, 1);
    let digest = sha256(&content);
    let name = upload_name("u", &digest);
    let mut changed = messages(&name, &content, 30);
    changed[2].resource_name = upload_name("v", &digest);
    let outcome = write(&mut client, changed).await;
    assert_refused(outcome, Code::InvalidArgument, "resource_name");
    assert_eq!(server.stored(&digest).await, None);

    let mut repeated = messages(&upload_name("w", &digest), &content, 30);
    let name = repeated[0].resource_name.clone();
    repeated[2].resource_name = name;
    write(&mut client, repeated).await.unwrap();
    assert_eq!(server.stored(&digest).await.unwrap(), content);
}

#[tokio::test]
async fn offsets_of_an_upload_must_continue() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    let content = noise(100, 1);
    let digest = sha256(&content);
    for wrong in [-1, 0, 59, 61, i64::MAX] {
        let mut jumping = messages(&upload_name("u", &digest), &content, 30);
        jumping[2].write_offset = wrong;
        let outcome = write(&mut client, jumping).await;
        assert_refused(outcome, Code::InvalidArgument, "write_offset");
    }
    for wrong in [-1, 101, i64::MIN] {
        let mut jumping = messages(&upload_name("u", &digest), &content, 30);
        jumping[0].write_offset = wrong;
        let outcome = write(&mut client, jumping).await;
        assert_refused(outcome, Code::InvalidArgument, "write_offset");
    }
    assert_eq!(server.stored(&digest).await, None);
}

#[tokio::test]
async fn an_upload_without_a_message_is_refused() {
    let server = Server::start().await;
    let outcome = write(&mut server.bytes().await, Vec::new()).await;
    assert_refused(outcome, Code::InvalidArgument, "no message");
}

#[tokio::test]
async fn an_upload_of_a_stored_blob_is_answered_without_reading_it() {
    let server = Server::start().await;
    let content = noise(1_000_000, 1);
    let digest = server.has(&content).await;
    let names = [
        (upload_name("u", &digest), size_of(&digest)),
        (compressed_upload_name("u", &digest), -1),
    ];
    for (name, expected) in names {
        let mut upload = OpenUpload::start(server.bytes().await);
        upload.send(messages(&name, &content, 1000).swap_remove(0));
        // The request is never ended: only an answer at once gets here.
        assert_eq!(upload.answer().await.unwrap(), expected);
    }
}

#[tokio::test]
async fn an_upload_of_a_blob_stored_meanwhile_is_answered_early() {
    let server = Server::start().await;
    let content = noise(1_000_000, 1);
    let digest = sha256(&content);
    let mut slow = OpenUpload::start(server.bytes().await);
    let mut slow_messages = messages(&upload_name("slow", &digest), &content, 300_000).into_iter();
    slow.send(slow_messages.next().unwrap());

    let fast = messages(&upload_name("fast", &digest), &content, 300_000);
    write(&mut server.bytes().await, fast).await.unwrap();

    slow.send(slow_messages.next().unwrap());
    assert_eq!(slow.answer().await.unwrap(), size_of(&digest));
}

#[tokio::test]
async fn an_upload_of_the_empty_blob_succeeds_at_once_in_every_function() {
    let server = Server::start().await;
    for function in DigestFunction::ALL {
        let digest = function.empty();
        let plain = format!("uploads/u/blobs/{function}/{digest}");
        let compressed = format!("uploads/u/compressed-blobs/zstd/{function}/{digest}");
        for (name, content, expected) in [
            (&plain, Bytes::new(), 0),
            (&compressed, Bytes::new(), -1),
            (&compressed, zstd(b""), -1),
        ] {
            let mut client = server.bytes().await;
            let size = write(&mut client, messages(name, &content, 2)).await;
            assert_eq!(size.unwrap(), expected);
            let mut open = OpenUpload::start(client);
            open.send(WriteRequest {
                resource_name: name.clone(),
                data: content,
                ..WriteRequest::default()
            });
            assert_eq!(open.answer().await.unwrap(), expected);
        }
        let content = messages(&plain, &noise(5, 1), 2);
        let outcome = write(&mut server.bytes().await, content).await;
        assert_refused(outcome, Code::InvalidArgument, "empty");
    }
}

#[tokio::test]
async fn a_digest_of_size_0_that_is_not_the_empty_blobs_is_refused() {
    let server = Server::start().await;
    let name = format!("uploads/u/blobs/{}/0", sha256(b"not empty").hex());
    let outcome = write(&mut server.bytes().await, messages(&name, &Bytes::new(), 1)).await;
    assert_refused(outcome, Code::InvalidArgument, "");
}

#[tokio::test]
async fn a_blob_larger_than_advertised_is_refused() {
    let server =
        Server::limited(|options| options.limits.max_blob_size = 1000.try_into().ok()).await;
    let mut client = server.bytes().await;
    let largest = noise(1000, 1);
    let digest = sha256(&largest);
    write(
        &mut client,
        messages(&upload_name("u", &digest), &largest, 1000),
    )
    .await
    .unwrap();
    let larger = noise(1001, 1);
    let name = upload_name("u", &sha256(&larger));
    let outcome = write(&mut client, messages(&name, &larger, 1000)).await;
    assert_refused(outcome, Code::InvalidArgument, "1000 bytes");
}

fn size_of(digest: &Digest) -> i64 {
    digest.to_proto().size_bytes
}
