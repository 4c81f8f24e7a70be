//! Files of the data directory that are removed, truncated or replaced while the server runs.
#![cfg(test)]

use std::{
    fs::{self, File},
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    slice,
};

use bytes::Bytes;
use gorego_integration::{
    client::Client,
    content::{blob, digest_of, uuid},
    server::{Server, file_of},
};
use reapi::v2::{ActionResult, Digest, OutputFile};
use rustix::fs::{CWD, FileType, Mode};
use tonic::Code;

const SMALL: usize = 1000;
const LARGE: usize = 3 * 1024 * 1024;

/// Replaces a file by one of half the size, as a lost write or an incomplete copy would.
fn truncate(path: &Path) {
    let content = fs::read(path).unwrap();
    fs::remove_file(path).unwrap();
    fs::write(path, &content[..content.len() / 2]).unwrap();
    File::open(path).unwrap().sync_all().unwrap();
}

fn delete(path: &Path) {
    fs::remove_file(path).unwrap();
}

fn replace_by_folder(path: &Path) {
    delete(path);
    fs::create_dir(path).unwrap();
}

fn replace_by_link(path: &Path) {
    delete(path);
    symlink("/etc/passwd", path).unwrap();
}

fn replace_by_pipe(path: &Path) {
    delete(path);
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0).unwrap();
}

fn replace_by_socket(path: &Path) {
    delete(path);
    drop(UnixListener::bind(path).unwrap());
}

/// Damages a blob's file, and checks that one read fails without wrong bytes and that the blob is then
/// missing.
async fn assert_costs_one_read(damage: fn(&Path), size: usize) {
    let server = Server::start(&[]);
    let client = Client::connect(server.address()).await;
    let content = blob(size as u64, size);
    let digest = digest_of(&content);
    let name = uuid(&mut fastrand::Rng::with_seed(1));
    client.upload(&name, &content).await.unwrap();
    let action = store_action(&client, &digest).await;

    let file = file_of(&server.data(), &digest);
    // The scan removes folders that it finds empty.
    fs::write(file.with_file_name("beside"), "").unwrap();
    damage(&file);

    let failed = client
        .download(&digest)
        .await
        .expect_err("the file is damaged");
    assert_eq!(failed.code(), Code::NotFound, "{failed}");
    let missing = client.find_missing(vec![digest.clone()]).await.unwrap();
    assert_eq!(missing, slice::from_ref(&digest));
    let result = client
        .get_action(&action)
        .await
        .expect_err("an output is gone");
    assert_eq!(result.code(), Code::NotFound, "{result}");

    client.upload(&name, &content).await.unwrap();
    assert!(client.download(&digest).await.unwrap() == content);
    client
        .get_action(&action)
        .await
        .expect("the output is stored again");
}

/// Stores an action result with `output` as its only output and returns the action's digest.
async fn store_action(client: &Client, output: &Digest) -> Digest {
    let action = digest_of(output.hash.as_bytes());
    let result = ActionResult {
        output_files: vec![OutputFile {
            path: "out".to_owned(),
            digest: Some(output.clone()),
            ..Default::default()
        }],
        ..Default::default()
    };
    client.put_action(&action, result).await.unwrap();
    client
        .get_action(&action)
        .await
        .expect("the result is complete");
    action
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_deleted_behind_the_index_costs_one_read() {
    assert_costs_one_read(delete, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_deleted_behind_the_index_costs_one_read() {
    assert_costs_one_read(delete, LARGE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_truncated_behind_the_index_costs_one_read() {
    assert_costs_one_read(truncate, SMALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_truncated_behind_the_index_costs_one_read() {
    assert_costs_one_read(truncate, LARGE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_file_deleted_while_the_server_is_down_is_missing() {
    let mut server = Server::start(&[]);
    let client = Client::connect(server.address()).await;
    let blobs: Vec<Bytes> = (0..20).map(|seed| blob(seed, SMALL)).collect();
    client.batch_upload(&blobs).await.unwrap();
    server.kill();
    let gone = digest_of(&blobs[7]);
    delete(&file_of(&server.data(), &gone));

    let server = server.restart();
    let client = Client::connect(server.address()).await;
    let digests = blobs.iter().map(|blob| digest_of(blob)).collect();
    let missing = client.find_missing(digests).await.unwrap();
    assert_eq!(missing, slice::from_ref(&gone));
    for blob in blobs.iter().filter(|&blob| digest_of(blob) != gone) {
        assert!(client.download(&digest_of(blob)).await.unwrap() == *blob);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_link_pipe_or_socket_in_place_of_a_file_costs_one_read() {
    for replace in [
        replace_by_folder,
        replace_by_link,
        replace_by_pipe,
        replace_by_socket,
    ] {
        assert_costs_one_read(replace, SMALL).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_data_directory_accepts_writes_and_a_restart() {
    let server = Server::start(&[]);
    let client = Client::connect(server.address()).await;
    client.batch_upload(&[blob(1, SMALL)]).await.unwrap();
    for entry in fs::read_dir(server.data()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            delete(&path);
        }
    }
    let (small, large) = (blob(2, SMALL), blob(3, LARGE));
    client.batch_upload(slice::from_ref(&small)).await.unwrap();
    let mut names = fastrand::Rng::with_seed(1);
    client.upload(&uuid(&mut names), &large).await.unwrap();
    let broken = blob(4, LARGE);
    let name = uuid(&mut names);
    let mut upload = client.begin_upload(&name, &digest_of(&broken));
    upload.send(&broken.slice(..LARGE / 2)).await;
    let part = LARGE / 2;
    client
        .wait_until_committed(&name, &digest_of(&broken), part)
        .await;

    let server = server.restart();
    let client = Client::connect(server.address()).await;
    for content in [small, large] {
        assert!(client.download(&digest_of(&content)).await.unwrap() == content);
    }
}
