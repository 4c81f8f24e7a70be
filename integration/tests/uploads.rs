//! Tests of uploads that are interrupted, resumed, replaced, or share a name.
#![cfg(test)]

use std::{
    fs::{self, File},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use gorego_integration::{
    client::{Client, Upload},
    content::{blob, digest_of, result_of, uuid},
    server::Server,
};
use prost::Message as _;
use reapi::{
    bytestream::WriteResponse,
    v2::{ActionResult, Digest, Directory, FileNode, OutputDirectory, Tree},
};
use tonic::Code;

const SIZE: usize = 4 * 1024 * 1024;
const HALF: usize = SIZE / 2;

/// Returns the response to a complete upload.
fn whole() -> WriteResponse {
    WriteResponse {
        committed_size: i64::try_from(SIZE).unwrap(),
    }
}

/// A server, a connection to it, a blob and an upload name.
struct Setup {
    server: Server,
    client: Client,
    uuid: String,
    blob: Bytes,
    digest: Digest,
}

impl Setup {
    async fn new(seed: u64) -> Self {
        let server = Server::start(&[]);
        let blob = blob(seed, SIZE);
        Self {
            client: Client::connect(server.address()).await,
            uuid: uuid(&mut fastrand::Rng::with_seed(seed)),
            digest: digest_of(&blob),
            server,
            blob,
        }
    }

    /// Sends the first half of the blob and waits until the server has it.
    async fn half_upload(&self) -> Upload {
        let mut upload = self.client.begin_upload(&self.uuid, &self.digest);
        upload.send(&self.blob.slice(..HALF)).await;
        self.client
            .wait_until_committed(&self.uuid, &self.digest, HALF)
            .await;
        upload
    }

    async fn assert_stored(&self) {
        let stored = self.client.download(&self.digest).await;
        assert!(stored.expect("the blob is stored") == self.blob);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_blobs_uploaded_under_one_uuid_are_both_stored() {
    let setup = Setup::new(1).await;
    let other = blob(2, SIZE);

    let mut first = setup.half_upload().await;
    let second = setup.client.upload(&setup.uuid, &other).await;
    assert_eq!(second.expect("the second upload"), whole());
    first.send_last(&setup.blob.slice(HALF..)).await;
    let first = first.response().await.expect("the first upload");
    assert_eq!(first, whole());

    setup.assert_stored().await;
    let stored = setup.client.download(&digest_of(&other)).await;
    assert!(stored.expect("the second blob is stored") == other);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_from_the_start_replaces_its_stalled_predecessor() {
    let setup = Setup::new(3).await;
    let _stalled = setup.half_upload().await;

    let retry = Client::connect(setup.server.address()).await;
    let response = retry.upload(&setup.uuid, &setup.blob).await;
    assert_eq!(response.expect("the retry"), whole());
    setup.assert_stored().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_from_the_committed_size_replaces_its_stalled_predecessor() {
    let setup = Setup::new(4).await;
    let stalled = setup.half_upload().await;

    let retry = Client::connect(setup.server.address()).await;
    let status = retry.query_upload(&setup.uuid, &setup.digest).await;
    let status = status.expect("the status of the stalled upload");
    let committed = usize::try_from(status.committed_size).unwrap();
    let upload = retry.begin_upload(&setup.uuid, &setup.digest);
    let mut upload = upload.from_offset(committed);
    upload.send_last(&setup.blob.slice(committed..)).await;
    let response = upload.response().await.expect("the retry");
    assert_eq!(response, whole());
    setup.assert_stored().await;

    // Later messages of the replaced upload have no effect.
    drop(stalled);
    setup.assert_stored().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_upload_is_invisible_and_resumes_after_a_crash() {
    let mut setup = Setup::new(5).await;
    drop(setup.half_upload().await);
    let missing = setup.client.find_missing(vec![setup.digest.clone()]).await;
    assert_eq!(missing.expect("asking for it"), [setup.digest.clone()]);

    setup.server = setup.server.restart();
    setup.client = Client::connect(setup.server.address()).await;

    let status = setup.client.query_upload(&setup.uuid, &setup.digest).await;
    let status = status.expect("the status after the crash");
    assert!(!status.complete);
    let committed = usize::try_from(status.committed_size).unwrap();
    assert!(
        (1..=HALF).contains(&committed),
        "{committed} of {HALF} bytes survived"
    );
    let upload = setup.client.begin_upload(&setup.uuid, &setup.digest);
    let mut upload = upload.from_offset(committed);
    upload.send_last(&setup.blob.slice(committed..)).await;
    let response = upload.response().await.expect("the resumed upload");
    assert_eq!(response, whole());

    setup.assert_stored().await;
    let status = setup.client.query_upload(&setup.uuid, &setup.digest).await;
    assert!(status.expect("the status of the complete upload").complete);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_upload_with_mismatched_content_is_aborted_and_restarts() {
    let setup = Setup::new(6).await;
    drop(setup.half_upload().await);

    let upload = setup.client.begin_upload(&setup.uuid, &setup.digest);
    let mut upload = upload.from_offset(HALF);
    upload.send_last(&blob(7, SIZE - HALF)).await;
    let refused = upload.response().await.expect_err("the content is wrong");
    assert_eq!(refused.code(), Code::Aborted, "{refused}");

    let status = setup.client.query_upload(&setup.uuid, &setup.digest).await;
    let status = status.expect("the status after the refusal");
    assert_eq!((status.committed_size, status.complete), (0, false));
    let response = setup.client.upload(&setup.uuid, &setup.blob).await;
    assert_eq!(response.expect("the new start"), whole());
    setup.assert_stored().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_upload_expires() {
    let mut setup = Setup::new(8).await;
    drop(setup.half_upload().await);
    setup.server.kill();
    let uploads = setup.server.data().join("uploads");
    let kept = || -> Vec<_> { fs::read_dir(&uploads).unwrap().flatten().collect() };
    let [file] = &kept()[..] else {
        panic!("not one file: {:?}", kept());
    };
    let expired = SystemTime::now() - Duration::from_hours(25);
    let file = File::options().write(true).open(file.path()).unwrap();
    file.set_modified(expired).unwrap();

    setup.server = setup.server.restart();
    let start = Instant::now();
    while !kept().is_empty() {
        assert!(
            start.elapsed() < Duration::from_mins(1),
            "the upload is not removed"
        );
        tokio::task::yield_now().await;
    }
    let client = Client::connect(setup.server.address()).await;
    let status = client.query_upload(&setup.uuid, &setup.digest).await;
    let status = status.expect("the status of an unknown upload");
    assert_eq!((status.committed_size, status.complete), (0, false));
}

/// The output directory contains files whose names add up to 40 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_whose_directory_is_larger_than_any_message_is_a_hit() {
    let server = Server::start(&[]);
    let client = Client::connect(server.address()).await;
    let output = Bytes::from_static(b"output");
    client
        .batch_upload(std::slice::from_ref(&output))
        .await
        .unwrap();
    let file = FileNode {
        name: "n".repeat(64 * 1024),
        digest: Some(digest_of(&output)),
        ..FileNode::default()
    };
    let tree = Tree {
        root: Some(Directory {
            files: vec![file; 640],
            ..Directory::default()
        }),
        children: Vec::new(),
    };
    let tree = Bytes::from(tree.encode_to_vec());
    client.upload_whole(&tree).await.unwrap();
    let result = ActionResult {
        output_directories: vec![OutputDirectory {
            path: "out".to_owned(),
            tree_digest: Some(digest_of(&tree)),
            ..OutputDirectory::default()
        }],
        ..ActionResult::default()
    };
    let action = digest_of(b"action");
    client.put_action(&action, result.clone()).await.unwrap();
    assert_eq!(client.get_action(&action).await.unwrap(), result);
}

/// Returns the BLAKE3 digest of a blob.
fn blake3_of(blob: &Bytes) -> Digest {
    Digest {
        hash: blake3::hash(blob).to_hex().to_string(),
        ..digest_of(blob)
    }
}

/// Uploads a blob in two parts, and a result that names it, without naming the digest function. Reads both
/// from `other`.
async fn share_without_function(server: &Server, other: &Server, seed: u64) -> Digest {
    let client = Client::connect(server.address()).await;
    let blob = blob(seed, SIZE);
    let digest = blake3_of(&blob);
    let uuid = uuid(&mut fastrand::Rng::with_seed(seed));
    let mut begin = client.begin_upload(&uuid, &digest);
    begin.send(&blob.slice(..HALF)).await;
    client.wait_until_committed(&uuid, &digest, HALF).await;
    drop(begin);
    let mut rest = client.begin_upload(&uuid, &digest).from_offset(HALF);
    rest.send_last(&blob.slice(HALF..)).await;
    assert_eq!(rest.response().await.unwrap(), whole());
    let action = blake3_of(&Bytes::from(format!("action {seed}")));
    let result = result_of([digest.clone()]);
    client.put_action(&action, result.clone()).await.unwrap();

    let client = Client::connect(other.address()).await;
    let missing = client.find_missing(vec![digest.clone()]).await;
    assert_eq!(missing.unwrap(), []);
    assert_eq!(client.get_action(&action).await.unwrap(), result);
    assert!(client.download(&digest).await.unwrap() == blob);
    digest
}

fn blake3_path(digest: &Digest) -> String {
    let hash = &digest.hash;
    format!("cas/blake3/{}/{}/{hash}", &hash[..2], &hash[2..4])
}

#[tokio::test(flavor = "multi_thread")]
async fn blake3_blobs_of_a_client_that_names_no_function_are_stored_under_blake3() {
    let server = Server::start(&[]);
    let digest = share_without_function(&server, &server, 1).await;
    assert!(server.data().join(blake3_path(&digest)).exists());

    // Through a proxy, which has to name the function to the backing cache.
    let behind = Server::start(&["limits.inferred_functions=sha256"]);
    let settings = ["backing_cache.existence_ttl=0"];
    let near = Server::in_front_of(&behind.grpc_url(), &settings);
    let far = Server::in_front_of(&behind.grpc_url(), &settings);
    let digest = share_without_function(&near, &far, 2).await;
    assert!(behind.data().join(blake3_path(&digest)).exists());
    let behind_too = Server::start(&[]);
    let near = Server::in_front_of(&behind_too.grpc_url(), &settings);
    let far = Server::in_front_of(&behind_too.grpc_url(), &settings);
    share_without_function(&near, &far, 3).await;

    let client = Client::connect(behind.address()).await;
    let missing = client.find_missing(vec![digest.clone()]).await;
    assert_eq!(
        missing.unwrap(),
        [digest],
        "the blob is not looked up as BLAKE3"
    );
}
