//! Interrupted and resumed uploads: `ByteStream.Write` and `QueryWriteStatus`.

use crate::common::*;
use bytes::Bytes;
use gorego_storage::Digest;
use tonic::Code;

/// Uploads a part, and breaks off once `taken` uncompressed bytes have reached the store.
async fn break_off(server: &Server, name: &str, part: &Bytes, taken: u64) {
    let upload = OpenUpload::start(server.bytes().await);
    for mut message in messages(name, part, 100_000) {
        message.finish_write = false;
        upload.send(message);
    }
    server.has_taken(taken).await;
}

/// Waits until the server has bytes of an upload, and returns their number.
async fn kept(server: &Server, name: &str) -> usize {
    let mut client = server.bytes().await;
    let wait = async {
        loop {
            let status = query(&mut client, name).await.unwrap();
            assert!(!status.complete);
            if status.committed_size > 0 {
                return status.committed_size.try_into().unwrap();
            }
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap()
}

#[tokio::test]
async fn an_interrupted_upload_is_invisible_and_resumes_at_its_offset() {
    let server = Server::start().await;
    let content = noise(1_000_000, 1);
    let digest = sha256(&content);
    let name = upload_name("u", &digest);
    break_off(&server, &name, &content.slice(..400_000), 400_000).await;
    let committed = kept(&server, &name).await;
    assert_eq!(committed, 400_000);
    assert_eq!(server.stored(&digest).await, None);

    let rest = messages_from(&name, committed, &content.slice(committed..), 100_000);
    let mut client = server.bytes().await;
    assert_eq!(write(&mut client, rest).await.unwrap(), size_of(&digest));
    assert_eq!(server.stored(&digest).await.unwrap(), content);
    let status = query(&mut client, &name).await.unwrap();
    assert_eq!(
        (status.committed_size, status.complete),
        (size_of(&digest), true)
    );
}

#[tokio::test]
async fn a_compressed_upload_resumes_at_an_uncompressed_offset() {
    let server = Server::start().await;
    let content = noise(1_000_000, 1);
    let digest = sha256(&content);
    let name = compressed_upload_name("u", &digest);
    break_off(&server, &name, &zstd(&content).slice(..600_000), 500_000).await;
    let committed = kept(&server, &name).await;
    assert!((500_000..=600_000).contains(&committed), "{committed}");

    let rest = zstd(&content.slice(committed..));
    let mut client = server.bytes().await;
    let end = write(&mut client, messages_from(&name, committed, &rest, 100_000)).await;
    assert_eq!(end.unwrap(), i64::try_from(committed + rest.len()).unwrap());
    assert_eq!(server.stored(&digest).await.unwrap(), content);
}

#[tokio::test]
async fn an_upload_without_finish_write_fails_and_stays_resumable() {
    let server = Server::start().await;
    let content = noise(1000, 1);
    let digest = sha256(&content);
    let name = upload_name("u", &digest);
    let mut client = server.bytes().await;
    let mut unfinished = messages(&name, &content, 400);
    unfinished.truncate(2);
    let outcome = write(&mut client, unfinished).await;
    assert_refused(outcome, Code::InvalidArgument, "finish_write");
    assert_eq!(server.stored(&digest).await, None);
    assert_eq!(query(&mut client, &name).await.unwrap().committed_size, 800);

    // Not even when all the bytes came.
    let mut unfinished = messages_from(&name, 800, &content.slice(800..), 400);
    unfinished[0].finish_write = false;
    assert!(write(&mut client, unfinished).await.is_err());
    assert_eq!(server.stored(&digest).await, None);
    // The end may come alone.
    let end = messages_from(&name, 1000, &Bytes::new(), 400);
    assert_eq!(write(&mut client, end).await.unwrap(), 1000);
    assert_eq!(server.stored(&digest).await.unwrap(), content);
}

#[tokio::test]
async fn an_unknown_upload_has_zero_bytes_committed() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    for name in [
        upload_name("u", &sha256(b"absent")),
        compressed_upload_name("u", &sha256(b"absent")),
    ] {
        let status = query(&mut client, &name).await.unwrap();
        assert_eq!((status.committed_size, status.complete), (0, false));
    }
}

#[tokio::test]
async fn every_upload_of_a_stored_blob_is_complete() {
    let server = Server::start().await;
    let digest = server.has(b"content").await;
    let mut client = server.bytes().await;
    for name in [
        upload_name("never-seen", &digest),
        compressed_upload_name("never-seen", &digest),
        upload_name("u", &sha256(b"")),
    ] {
        let status = query(&mut client, &name).await.unwrap();
        assert!(status.complete);
        let expected = if name.ends_with("/0") { 0 } else { 7 };
        assert_eq!(status.committed_size, expected);
    }
}

#[tokio::test]
async fn a_query_for_other_than_an_upload_is_refused() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    for name in [String::new(), format!("blobs/{}", sha256(b"x"))] {
        let outcome = query(&mut client, &name).await;
        assert_refused(outcome, Code::InvalidArgument, "resource_name");
    }
}

#[tokio::test]
async fn a_resumed_upload_with_corrupt_content_starts_anew() {
    let server = Server::start().await;
    let content = noise(1000, 1);
    let digest = sha256(&content);
    let name = upload_name("u", &digest);
    let mut client = server.bytes().await;
    // The first half is not this blob's.
    let mut wrong = messages(&name, &noise(1000, 2), 500);
    wrong.truncate(1);
    write(&mut client, wrong).await.unwrap_err();
    assert_eq!(query(&mut client, &name).await.unwrap().committed_size, 500);

    let rest = messages_from(&name, 500, &content.slice(500..), 500);
    let outcome = write(&mut client, rest).await;
    assert_refused(outcome, Code::Aborted, "anew");
    assert_eq!(query(&mut client, &name).await.unwrap().committed_size, 0);
    write(&mut client, messages(&name, &content, 500))
        .await
        .unwrap();
    assert_eq!(server.stored(&digest).await.unwrap(), content);
}

#[tokio::test]
async fn an_upload_that_resumes_beyond_its_committed_size_is_aborted() {
    let server = Server::start().await;
    let content = noise(1000, 1);
    let name = upload_name("u", &sha256(&content));
    let rest = messages_from(&name, 500, &content.slice(500..), 100);
    let outcome = write(&mut server.bytes().await, rest).await;
    assert_refused(outcome, Code::Aborted, "500");
}

#[tokio::test]
async fn one_uuid_may_serve_for_several_blobs() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    let contents = [noise(1000, 1), noise(1000, 2)];
    for content in &contents {
        let mut unfinished = messages(&upload_name("u", &sha256(content)), content, 500);
        unfinished.truncate(1);
        write(&mut client, unfinished).await.unwrap_err();
    }
    for content in &contents {
        let digest = sha256(content);
        let name = upload_name("u", &digest);
        let rest = messages_from(&name, 500, &content.slice(500..), 500);
        write(&mut client, rest).await.unwrap();
        assert_eq!(server.stored(&digest).await.unwrap(), *content);
    }
}

#[tokio::test]
async fn a_retry_replaces_its_stalled_predecessor() {
    let server = Server::start().await;
    let content = noise(1_000_000, 1);
    let digest = sha256(&content);
    let name = upload_name("u", &digest);
    let dead = OpenUpload::start(server.bytes().await);
    dead.send(messages(&name, &content, 400_000).swap_remove(0));
    server.has_taken(400_000).await;

    let retry = messages(&name, &content, 400_000);
    assert_eq!(
        write(&mut server.bytes().await, retry).await.unwrap(),
        size_of(&digest)
    );
    assert_eq!(server.stored(&digest).await.unwrap(), content);
}

fn size_of(digest: &Digest) -> i64 {
    digest.to_proto().size_bytes
}
