//! Uploads and downloads of compressed blobs through `ByteStream`.

use crate::common::*;
use bytes::Bytes;
use tonic::Code;

#[tokio::test]
async fn a_compressed_upload_is_stored_decompressed() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    for content in [noise(10, 1), noise(400_000, 1), monotony(5_000_000)] {
        let digest = sha256(&content);
        let compressed = zstd(&content);
        for piece in [7_000, 10_000_000] {
            server.store.remove(&digest);
            let name = compressed_upload_name("u", &digest);
            let size = write(&mut client, messages(&name, &compressed, piece)).await;
            assert_eq!(size.unwrap(), i64::try_from(compressed.len()).unwrap());
            assert_eq!(server.stored(&digest).await.unwrap(), content);
        }
    }
}

#[tokio::test]
async fn several_compressed_frames_make_one_blob() {
    let server = Server::start().await;
    let content = monotony(100_000);
    let digest = sha256(&content);
    let frames = Bytes::from([zstd(&content[..30_000]), zstd(&content[30_000..])].concat());
    let name = compressed_upload_name("u", &digest);
    write(&mut server.bytes().await, messages(&name, &frames, 100))
        .await
        .unwrap();
    assert_eq!(server.stored(&digest).await.unwrap(), content);
}

#[tokio::test]
async fn compressed_content_of_another_digest_is_refused_and_not_stored() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    let content = monotony(100_000);
    let digest = sha256(&content);
    let compressed = zstd(&content);
    let with_more = |more: &[u8]| Bytes::from([&compressed[..], more].concat());
    let wrong = [
        (
            "cut off",
            compressed.slice(..compressed.len() - 1),
            "ends within",
        ),
        ("trailing garbage", with_more(b"garbage"), "zstd"),
        ("a frame too many", with_more(&zstd(b"x")), "more than"),
        ("a byte too few", zstd(&content[1..]), &digest.hex()),
        ("other content", zstd(&noise(100_000, 2)), &digest.hex()),
        ("no compressed content", content.clone(), "zstd"),
        ("nothing", Bytes::new(), &digest.hex()),
    ];
    for (what, wrong, text) in wrong {
        for piece in [50, 1_000_000] {
            let name = compressed_upload_name(what, &digest);
            let outcome = write(&mut client, messages(&name, &wrong, piece)).await;
            assert_refused(outcome, Code::InvalidArgument, text);
            assert_eq!(server.stored(&digest).await, None, "{what}");
            // Nor is anything kept of it that a later attempt would build upon.
            let status = query(&mut client, &name).await.unwrap();
            assert_eq!(
                (status.committed_size, status.complete),
                (0, false),
                "{what}"
            );
        }
    }
}

#[tokio::test]
async fn content_that_expands_past_its_size_is_refused_before_it_ends() {
    let server = Server::start().await;
    let digest = sha256(b"small");
    let bomb = zstd(&monotony(50_000_000));
    let mut upload = OpenUpload::start(server.bytes().await);
    let name = compressed_upload_name("u", &digest);
    let mut first = messages(&name, &bomb, bomb.len()).swap_remove(0);
    first.finish_write = false;
    upload.send(first);
    assert_refused(
        upload.answer().await,
        Code::InvalidArgument,
        "more than 5 bytes",
    );
}

#[tokio::test]
async fn later_offsets_of_a_compressed_upload_count_compressed_bytes() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    let content = monotony(100_000);
    let digest = sha256(&content);
    let mut jumping = messages(&compressed_upload_name("u", &digest), &zstd(&content), 30);
    jumping[1].write_offset += 1;
    let outcome = write(&mut client, jumping).await;
    assert_refused(outcome, Code::InvalidArgument, "write_offset");
}

#[tokio::test]
async fn a_compressed_read_decompresses_to_the_blob() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    for content in [
        Bytes::new(),
        noise(10, 1),
        monotony(70_000),
        noise(700_000, 1),
        monotony(5_000_000),
    ] {
        let digest = server.has(&content).await;
        let name = format!("compressed-blobs/zstd/{digest}");
        let compressed = read(&mut client, &name, 0, 0).await.unwrap();
        assert_eq!(unzstd(&compressed), content);
    }
}

#[tokio::test]
async fn the_offset_of_a_compressed_read_counts_uncompressed_bytes() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    for content in [monotony(10_000), monotony(1_000_000)] {
        let digest = server.has(&content).await;
        let name = format!("compressed-blobs/zstd/{digest}");
        for offset in [1, content.len() / 2, content.len()] {
            let from = i64::try_from(offset).unwrap();
            let compressed = read(&mut client, &name, from, 0).await.unwrap();
            assert_eq!(unzstd(&compressed), content[offset..]);
        }
        let past = i64::try_from(content.len() + 1).unwrap();
        let outcome = read(&mut client, &name, past, 0).await;
        assert_refused(outcome, Code::OutOfRange, "");
    }
}

#[tokio::test]
async fn a_compressed_read_takes_no_limit() {
    let server = Server::start().await;
    let digest = server.has(b"content").await;
    let name = format!("compressed-blobs/zstd/{digest}");
    let outcome = read(&mut server.bytes().await, &name, 0, 3).await;
    assert_refused(outcome, Code::InvalidArgument, "read_limit");
}

#[tokio::test]
async fn a_compressed_upload_of_a_blob_stored_meanwhile_is_answered_early() {
    let server = Server::start().await;
    let content = noise(1_000_000, 1);
    let digest = sha256(&content);
    let name = compressed_upload_name("slow", &digest);
    let mut slow = OpenUpload::start(server.bytes().await);
    let mut slow_messages = messages(&name, &zstd(&content), 300_000).into_iter();
    slow.send(slow_messages.next().unwrap());

    let fast = messages(&upload_name("fast", &digest), &content, 300_000);
    write(&mut server.bytes().await, fast).await.unwrap();

    slow.send(slow_messages.next().unwrap());
    assert_eq!(slow.answer().await.unwrap(), -1);
}
