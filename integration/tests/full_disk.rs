//! Disks that are smaller than the configured limit of the cache.
#![cfg(test)]

use std::{
    fs::{self, File},
    path::PathBuf,
};

use bytes::BytesMut;
use gorego_integration::{
    client::Client,
    content::{blob, digest_of, uuid},
    executor::wait_until,
    peer::FaultyPeer,
    server::{self, Disk, Server},
};
use reapi::{
    bytestream::{ReadRequest, byte_stream_client::ByteStreamClient},
    v2::{ActionResult, Digest},
};
use tonic::Code;

const EMPTY: Disk = Disk {
    mib: 24,
    prepare: "true",
};
const MIB: usize = 1024 * 1024;

/// A full disk that holds the blob `x`.
const FULL: Disk = Disk {
    mib: 24,
    prepare: "mkdir -p cas/2d/71 && echo 1 >VERSION && printf x >cas/2d/71/$(printf x | sha256sum | \
        cut -d' ' -f1) && ! cat /dev/zero >filler",
};

/// Settings under which only the disk itself limits the cache.
const SETTINGS: &[&str] = &["local_cache.max_size_gb=1", "local_cache.min_free=0"];

async fn assert_stored(client: &Client, digest: &Digest, seed: u64, size: usize) {
    let stored = client.download(digest).await;
    assert!(stored.expect("the newest blob is stored") == blob(seed, size));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_evicts_the_oldest_blobs_for_every_upload() {
    let server = Server::start_on(EMPTY, SETTINGS);
    let client = Client::connect(server.address()).await;
    let mut rng = fastrand::Rng::with_seed(1);
    // Four times the capacity, as streams, in batches, and as action results.
    for seed in 0..64 {
        let streamed = blob(seed, MIB + MIB / 4);
        let response = client.upload(&uuid(&mut rng), &streamed).await;
        response.unwrap_or_else(|e| panic!("upload {seed}: {e}"));
        let batch = [blob(1000 + seed, MIB / 4)];
        let response = client.batch_upload(&batch).await;
        response.unwrap_or_else(|e| panic!("batch {seed}: {e}"));
        let result = ActionResult {
            stdout_raw: blob(seed, 3000),
            ..ActionResult::default()
        };
        let action = digest_of(&seed.to_le_bytes());
        let response = client.put_action(&action, result).await;
        response.unwrap_or_else(|e| panic!("action result {seed}: {e}"));
        assert_stored(&client, &digest_of(&streamed), seed, streamed.len()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_larger_than_the_disk_is_refused_and_leaves_no_files() {
    let server = Server::start_on(EMPTY, SETTINGS);
    let client = Client::connect(server.address()).await;
    let mut rng = fastrand::Rng::with_seed(2);
    let too_large = blob(1, (EMPTY.mib as usize + 8) * MIB);
    let refused = client.upload(&uuid(&mut rng), &too_large).await;
    let refused = refused.expect_err("it does not fit");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("disk is full"), "{refused}");
    for folder in ["tmp", "uploads"] {
        // The server itself writes a file now and then, to find out whether it can.
        wait_until(folder, || {
            fs::read_dir(server.data().join(folder)).unwrap().count() == 0
        });
    }

    let small = blob(2, MIB);
    let response = client.upload(&uuid(&mut rng), &small).await;
    response.expect("the disk has space again");
    assert_stored(&client, &digest_of(&small), 2, MIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_continue_while_a_full_disk_refuses_uploads() {
    const SIZE: usize = 8 * MIB;
    let server = Server::start_on(EMPTY, SETTINGS);
    let client = Client::connect(server.address()).await;
    let mut rng = fastrand::Rng::with_seed(4);
    let content = blob(1, SIZE);
    let digest = digest_of(&content);
    client.upload(&uuid(&mut rng), &content).await.unwrap();
    let request = ReadRequest {
        resource_name: format!("blobs/{}/{}", digest.hash, digest.size_bytes),
        ..ReadRequest::default()
    };
    let mut reader = ByteStreamClient::new(client.channel());
    let mut read = reader.read(request).await.unwrap().into_inner();
    let mut found = BytesMut::new();
    for seed in 2..5 {
        // Only a window or two has been read so far.
        let piece = read.message().await.unwrap().expect("another piece");
        found.extend_from_slice(&piece.data);
        let too_large = blob(seed, (EMPTY.mib as usize + 8) * MIB);
        let refused = client.upload(&uuid(&mut rng), &too_large).await;
        let refused = refused.expect_err("it does not fit");
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    }
    while let Some(piece) = read.message().await.unwrap() {
        found.extend_from_slice(&piece.data);
    }
    assert!(found == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_below_min_free_still_caches_blobs() {
    // By default 1 GiB is to stay free, more than the size of this disk.
    let server = Server::start_on(EMPTY, &[]);
    let client = Client::connect(server.address()).await;
    let mut rng = fastrand::Rng::with_seed(3);
    let old = blob(0, MIB);
    for seed in 0..64 {
        let response = client.upload(&uuid(&mut rng), &blob(seed, MIB)).await;
        response.unwrap_or_else(|e| panic!("upload {seed}: {e}"));
        assert_stored(&client, &digest_of(&blob(seed, MIB)), seed, MIB).await;
    }
    let missing = client.find_missing(vec![digest_of(&old)]).await.unwrap();
    assert_eq!(missing, [digest_of(&old)], "the oldest blob is evicted");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_starts_on_a_disk_filled_by_others() {
    let server = Server::start_on(FULL, SETTINGS);
    let client = Client::connect(server.address()).await;
    let stored = client.download(&digest_of(b"x")).await;
    assert_eq!(stored.expect("the earlier blob"), "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_serves_blobs_that_its_full_disk_cannot_store() {
    for disk in [EMPTY, FULL] {
        let peer = FaultyPeer::start();
        let target = format!("backing_cache.target={}", peer.grpc_url());
        let settings = [
            &[target.as_str(), "backing_cache.on_outage=degrade"],
            SETTINGS,
        ]
        .concat();
        let server = Server::start_on(disk, &settings);
        let client = Client::connect(server.address()).await;
        let large = (EMPTY.mib as usize + 40) * MIB;
        for size in [1000, 3 * MIB, large, large + 12345] {
            let content = blob(size as u64, size);
            let digest = peer.put(&content);
            client.compare(&digest, &content).await;
        }
    }
}

/// The most files that the disk can hold in addition to those of an empty cache.
const FEW_FILES: Disk = Disk {
    mib: 64,
    prepare: "mount -o remount,nr_inodes=600 .",
};

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_out_of_files_evicts_the_oldest_blobs_for_every_upload() {
    let server = Server::start_on(FEW_FILES, SETTINGS);
    let client = Client::connect(server.address()).await;
    let mut rng = fastrand::Rng::with_seed(5);
    // Each needs up to three inodes: its own, and two folders.
    for seed in 0..800 {
        let small = blob(seed, 100);
        let response = if seed % 2 == 0 {
            client.upload(&uuid(&mut rng), &small).await.map(drop)
        } else {
            client.batch_upload(&[small]).await
        };
        response.unwrap_or_else(|e| panic!("upload {seed}: {e}"));
        let large = blob(10_000 + seed, 70_000);
        if seed % 20 == 0 {
            let response = client.upload(&uuid(&mut rng), &large).await;
            response.unwrap_or_else(|e| panic!("large upload {seed}: {e}"));
        }
    }
    assert_stored(&client, &digest_of(&blob(799, 100)), 799, 100).await;
}

/// A disk that holds a hundred old blobs, the numbers from 100 to 199, and no further file.
const NO_FILES: Disk = Disk {
    mib: 24,
    prepare: "for n in $(seq 100 199); do h=$(printf $n | sha256sum | cut -d' ' -f1); \
        d=cas/$(echo $h | cut -c1-2)/$(echo $h | cut -c3-4); mkdir -p $d; printf $n >$d/$h; \
        touch -a -d '2 days ago' $d/$h; done; mkdir -p ac uploads quarantine tmp; echo 1 >VERSION; \
        : >lock; printf 'clean=1\\nsynced_ms=0\\nused=1228800\\n' >state; \
        mount -o remount,nr_inodes=$(df --output=iused . | tail -n1 | tr -d ' ') .",
};

#[tokio::test(flavor = "multi_thread")]
async fn the_server_starts_on_a_disk_out_of_files() {
    let server = Server::start_on(NO_FILES, SETTINGS);
    let client = Client::connect(server.address()).await;
    for seed in 0..40 {
        let response = client.batch_upload(&[blob(seed, 100)]).await;
        response.unwrap_or_else(|e| panic!("upload {seed}: {e}"));
        assert_stored(&client, &digest_of(&blob(seed, 100)), seed, 100).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eviction_stops_after_few_blobs_if_it_frees_no_space() {
    const SIZE: usize = MIB / 2;
    let server = Server::start_on(EMPTY, SETTINGS);
    let client = Client::connect(server.address()).await;
    let mut rng = fastrand::Rng::with_seed(6);
    let blobs: Vec<_> = (0..20).map(|seed| blob(seed, SIZE)).collect();
    let digests: Vec<_> = blobs.iter().map(|blob| digest_of(blob)).collect();
    for blob in &blobs {
        client.upload(&uuid(&mut rng), blob).await.unwrap();
    }
    assert_eq!(client.find_missing(digests.clone()).await.unwrap(), []);
    // Hard links elsewhere keep the space in use, and other files fill the disk.
    let links = server.data().join("links");
    fs::create_dir(&links).unwrap();
    for digest in &digests {
        let (first, second) = (&digest.hash[..2], &digest.hash[2..4]);
        let file = ["cas", first, second, &digest.hash]
            .iter()
            .collect::<PathBuf>();
        fs::hard_link(server.data().join(file), links.join(&digest.hash)).unwrap();
    }
    let filled = fs::write(server.data().join("filler"), vec![0; 24 * MIB]);
    filled.expect_err("the disk is smaller");
    for seed in 100..130 {
        let refused = client.upload(&uuid(&mut rng), &blob(seed, 50_000)).await;
        let refused = refused.expect_err("there is no room");
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(refused.message().contains("disk is full"), "{refused}");
    }
    let missing = client.find_missing(digests.clone()).await.unwrap();
    assert!(missing.len() < 10, "{} of 20 blobs are gone", missing.len());
    // Once there is space again, uploads are accepted.
    fs::remove_file(server.data().join("filler")).unwrap();
    client
        .upload(&uuid(&mut rng), &blob(200, MIB))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn eviction_stops_after_few_blobs_if_it_frees_no_files() {
    let server = Server::start_on(FEW_FILES, SETTINGS);
    let client = Client::connect(server.address()).await;
    let mut rng = fastrand::Rng::with_seed(8);
    let blobs: Vec<_> = (0..100).map(|seed| blob(seed, 100)).collect();
    let digests: Vec<_> = blobs.iter().map(|blob| digest_of(blob)).collect();
    client.batch_upload(&blobs).await.unwrap();
    // Open files use an inode after their removal, and folders with other files stay.
    let mut open = Vec::new();
    for digest in &digests {
        let (first, second) = (&digest.hash[..2], &digest.hash[2..4]);
        let folder = server.data().join("cas").join(first).join(second);
        open.push(File::open(folder.join(&digest.hash)).unwrap());
        fs::write(folder.join("theirs"), "").unwrap();
    }
    let filled = (0..1000).try_for_each(|n| fs::write(server.data().join(n.to_string()), ""));
    filled.expect_err("there are fewer files");
    for seed in 100..110 {
        let refused = client.upload(&uuid(&mut rng), &blob(seed, 50_000)).await;
        let refused = refused.expect_err("there is no file left");
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    }
    let missing = client.find_missing(digests.clone()).await.unwrap();
    assert!(
        missing.len() < 50,
        "{} of 100 blobs are gone",
        missing.len()
    );
    let warning = "evicting blobs does not free it";
    let log = server.wait_for_log(warning);
    // At most one a minute.
    assert!(log.matches(warning).count() < 4, "{log}");
    // Once there are free files again, uploads are accepted.
    for n in 0..100 {
        fs::remove_file(server.data().join(n.to_string())).unwrap();
    }
    let response = client.upload(&uuid(&mut rng), &blob(200, 100)).await;
    response.expect("the disk has files again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_larger_than_the_cache_evicts_nothing() {
    let server = Server::start(&["local_cache.max_size_gb=16MiB", "local_cache.min_free=0"]);
    let client = Client::connect(server.address()).await;
    let mut rng = fastrand::Rng::with_seed(7);
    let kept: Vec<_> = (0..10).map(|seed| blob(seed, MIB)).collect();
    for blob in &kept {
        client.upload(&uuid(&mut rng), blob).await.unwrap();
    }
    let too_large = blob(100, 20 * MIB);
    let mut upload = client.begin_upload(&uuid(&mut rng), &digest_of(&too_large));
    // The refusal follows the first bytes.
    upload.send(&too_large.slice(..1000)).await;
    let refused = upload.response().await.expect_err("it cannot fit");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let limit = (16 * MIB).to_string();
    assert!(refused.message().contains(&limit), "{refused}");
    let digests = kept.iter().map(|blob| digest_of(blob)).collect();
    assert_eq!(client.find_missing(digests).await.unwrap(), []);
}

#[test]
fn a_data_directory_that_spans_file_systems_is_refused_with_the_folder_and_the_remedy() {
    for (folder, prepare) in [
        ("cas", "mkdir cas && mount -t tmpfs none cas"),
        ("ac", "mkdir ac && mount -t tmpfs none ac"),
        ("tmp", "mkdir tmp && mount -t tmpfs none tmp"),
        ("uploads", "mkdir uploads && mount -t tmpfs none uploads"),
        (
            "quarantine",
            "mkdir quarantine && mount -t tmpfs none quarantine",
        ),
        (
            "cas/blake3",
            "mkdir -p cas/blake3 && mount -t tmpfs none cas/blake3",
        ),
    ] {
        let (status, log) = server::refusal_on(Disk { prepare, ..EMPTY }, SETTINGS);
        assert_eq!(status.code(), Some(2), "{log}");
        assert_eq!(log.lines().count(), 1, "one line, not:\n{log}");
        let named = format!("has {folder} on another file system");
        for part in [&named, "local_cache.dir"] {
            assert!(log.contains(part), "{part} is not named in: {log}");
        }
    }
}
