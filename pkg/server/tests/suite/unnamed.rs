//! Clients that name no digest function in any call, as Buck2 does with BLAKE3.

use std::sync::Arc;

use crate::common::*;
use bytes::Bytes;
use gorego_server::{Options, Stores};
use gorego_storage::{ActionCacheExt as _, Digest, DigestFunction, MemoryStore};
use prost::Message as _;
use reapi::v2::{
    ActionResult, BatchReadBlobsRequest, BatchUpdateBlobsRequest, Directory, DirectoryNode,
    GetActionResultRequest, GetTreeRequest, OutputFile, UpdateActionResultRequest,
    batch_update_blobs_request::Request as BlobToStore,
};
use tonic::Code;

const UUID: &str = "7f6ef5a6-2d0b-4b3c-9f53-0b8f4b1f7d3a";

fn blake3(content: &[u8]) -> Digest {
    DigestFunction::Blake3.digest(content)
}

fn read_name(digest: &Digest) -> String {
    format!("blobs/{digest}")
}

async fn store(server: &Server, contents: &[(Digest, Bytes)]) -> Vec<Code> {
    let request = |(digest, data): &(Digest, Bytes)| BlobToStore {
        digest: Some(digest.to_proto()),
        data: data.clone(),
        compressor: 0,
    };
    let request = BatchUpdateBlobsRequest {
        requests: contents.iter().map(request).collect(),
        ..BatchUpdateBlobsRequest::default()
    };
    let answer = server.cas().await.batch_update_blobs(request).await;
    let responses = answer.unwrap().into_inner().responses.into_iter();
    responses
        .map(|response| Code::from(response.status.unwrap().code))
        .collect()
}

#[tokio::test]
async fn a_batch_is_stored_under_the_function_of_each_content_and_found() {
    let server = Server::start().await;
    let content = [noise(1000, 1), noise(1000, 2), noise(1000, 3), Bytes::new()];
    let digests = [
        sha256(&content[0]),
        blake3(&content[1]),
        // Of neither function.
        Digest::from_hash(DigestFunction::Sha256, &[7; 32], 1000).unwrap(),
        blake3(b""),
    ];
    let blobs: Vec<_> = digests.into_iter().zip(content.clone()).collect();
    let expected = [Code::Ok, Code::Ok, Code::InvalidArgument, Code::Ok];
    assert_eq!(store(&server, &blobs).await, expected);
    assert_eq!(server.stored(&digests[1]).await, Some(content[1].clone()));
    assert_eq!(missing(&server, &digests).await, [digests[2].hex()]);

    let request = BatchReadBlobsRequest {
        digests: digests.iter().map(Digest::to_proto).collect(),
        ..BatchReadBlobsRequest::default()
    };
    let answer = server.cas().await.batch_read_blobs(request).await.unwrap();
    let read = answer.into_inner().responses;
    let codes: Vec<_> = read
        .iter()
        .map(|r| r.status.as_ref().unwrap().code)
        .collect();
    assert_eq!(codes, [0, 0, Code::NotFound as i32, 0]);
    assert_eq!(read[1].data, content[1]);
}

#[tokio::test]
async fn a_stream_is_stored_under_the_function_of_its_content_and_read() {
    let server = Server::start().await;
    let mut client = server.bytes().await;
    for (size, compressed) in [(100, false), (3_000_000, false), (3_000_000, true)] {
        let content = noise(size, u64::from(compressed) + size as u64);
        let digest = blake3(&content);
        let sent = if compressed {
            zstd(&content)
        } else {
            content.clone()
        };
        let name = if compressed {
            compressed_upload_name(UUID, &digest)
        } else {
            upload_name(UUID, &digest)
        };
        write(&mut client, messages(&name, &sent, 100_000))
            .await
            .unwrap();
        assert_eq!(server.stored(&digest).await, Some(content.clone()));
        assert!(query(&mut client, &name).await.unwrap().complete);
        let end = read(&mut client, &read_name(&digest), 10, 0).await.unwrap();
        assert_eq!(end, content[10..]);
    }
    let wrong = upload_name(UUID, &blake3(&noise(500_000, 8)));
    let outcome = write(&mut client, messages(&wrong, &noise(500_000, 9), 100_000)).await;
    assert_refused(outcome, Code::InvalidArgument, "does not match");
}

#[tokio::test]
async fn a_resumed_upload_is_stored_under_the_function_of_its_content() {
    let server = Server::start().await;
    let content = noise(1_000_000, 4);
    let name = upload_name(UUID, &blake3(&content));
    let mut client = server.bytes().await;
    let begin = messages(&name, &content, 100_000);
    write(&mut client, begin[..5].to_vec()).await.unwrap_err();
    let committed = query(&mut client, &name).await.unwrap().committed_size;
    assert_eq!(committed, 500_000);
    let rest = messages_from(&name, 500_000, &content.slice(500_000..), 100_000);
    write(&mut client, rest).await.unwrap();
    assert_eq!(server.stored(&blake3(&content)).await, Some(content));
}

#[tokio::test]
async fn a_named_function_is_the_only_one_tried() {
    let server = Server::start().await;
    let content = noise(300_000, 5);
    let digest = blake3(&content);
    let named = format!("uploads/{UUID}/blobs/sha256/{digest}");
    let mut client = server.bytes().await;
    let outcome = write(&mut client, messages(&named, &content, 100_000)).await;
    assert_refused(outcome, Code::InvalidArgument, "does not match");
    let request = BatchUpdateBlobsRequest {
        requests: vec![BlobToStore {
            digest: Some(digest.to_proto()),
            data: content,
            compressor: 0,
        }],
        digest_function: DigestFunction::Sha256.to_proto().into(),
        ..BatchUpdateBlobsRequest::default()
    };
    let answer = server
        .cas()
        .await
        .batch_update_blobs(request)
        .await
        .unwrap();
    let status = answer.into_inner().responses[0].status.clone().unwrap();
    assert_eq!(status.code, Code::InvalidArgument as i32);
    assert_eq!(server.stored(&digest).await, None);
}

#[tokio::test]
async fn a_tree_is_found_under_the_function_of_its_root() {
    let server = Server::start().await;
    let leaf = Bytes::from(Directory::default().encode_to_vec());
    let root = Directory {
        directories: vec![DirectoryNode {
            name: "leaf".to_owned(),
            digest: Some(blake3(&leaf).to_proto()),
        }],
        ..Directory::default()
    };
    let root = Bytes::from(root.encode_to_vec());
    store(&server, &[(blake3(&root), root.clone())]).await;
    let request = GetTreeRequest {
        root_digest: Some(blake3(&root).to_proto()),
        ..GetTreeRequest::default()
    };
    let mut pages = server
        .cas()
        .await
        .get_tree(request)
        .await
        .unwrap()
        .into_inner();
    let page = pages.message().await.unwrap().unwrap();
    // The empty directory is the empty blob, which is there in every function.
    assert_eq!(page.directories.len(), 2);
}

/// Stores a result and returns it with its output inlined.
async fn round_trip(server: &Server, action: &Digest, output: &Bytes, digest: &Digest) {
    let result = ActionResult {
        output_files: vec![OutputFile {
            path: "out".to_owned(),
            digest: Some(digest.to_proto()),
            ..OutputFile::default()
        }],
        ..ActionResult::default()
    };
    let mut client = server.actions().await;
    let update = UpdateActionResultRequest {
        action_digest: Some(action.to_proto()),
        action_result: Some(result),
        ..UpdateActionResultRequest::default()
    };
    client.update_action_result(update).await.unwrap();
    let get = GetActionResultRequest {
        action_digest: Some(action.to_proto()),
        inline_output_files: vec!["out".to_owned()],
        ..GetActionResultRequest::default()
    };
    let got = client.get_action_result(get).await.unwrap().into_inner();
    assert_eq!(got.output_files[0].contents, *output);
}

#[tokio::test]
async fn a_result_is_stored_under_the_function_of_its_outputs() {
    let server = Server::start().await;
    let output = noise(100, 6);
    let digests = [sha256(&output), blake3(&output)];
    let blobs: Vec<_> = digests.iter().map(|d| (*d, output.clone())).collect();
    store(&server, &blobs).await;
    for (function, digest) in [DigestFunction::Sha256, DigestFunction::Blake3]
        .into_iter()
        .zip(digests)
    {
        let action = function.digest(b"action");
        round_trip(&server, &action, &output, &digest).await;
        assert!(
            server.store.find("", &action).await.unwrap().is_some(),
            "{function}"
        );
    }
    // A result without outputs is stored under the first function.
    let action = blake3(b"no outputs");
    let update = UpdateActionResultRequest {
        action_digest: Some(action.to_proto()),
        action_result: Some(ActionResult::default()),
        ..UpdateActionResultRequest::default()
    };
    server
        .actions()
        .await
        .update_action_result(update)
        .await
        .unwrap();
    let first = action.under(DigestFunction::Sha256).unwrap();
    assert!(server.store.find("", &first).await.unwrap().is_some());
    // A later result under the second function replaces it.
    round_trip(&server, &action, &output, &blake3(&output)).await;
}

#[tokio::test]
async fn only_the_configured_functions_are_tried_in_their_order() {
    let start = |inferred_functions| {
        Server::with(Options {
            inferred_functions,
            ..Options::default()
        })
    };
    let content = noise(500_000, 7);
    let both = [sha256(&content), blake3(&content)];
    let server = start(vec![DigestFunction::Blake3]).await;
    for (digest, expected) in both.iter().zip([Err(Code::InvalidArgument), Ok(500_000)]) {
        let messages = messages(&upload_name(UUID, digest), &content, 100_000);
        let outcome = write(&mut server.bytes().await, messages).await;
        assert_eq!(outcome.map_err(|status| status.code()), expected);
    }
    assert_eq!(missing(&server, &both).await, [both[0].hex()]);

    let server = start(vec![DigestFunction::Blake3, DigestFunction::Sha256]).await;
    for digest in &both {
        let messages = messages(&upload_name(UUID, digest), &content, 100_000);
        write(&mut server.bytes().await, messages).await.unwrap();
        assert_eq!(server.stored(digest).await.as_ref(), Some(&content));
    }
    let action = sha256(b"no outputs");
    let update = UpdateActionResultRequest {
        action_digest: Some(action.to_proto()),
        action_result: Some(ActionResult::default()),
        ..UpdateActionResultRequest::default()
    };
    server
        .actions()
        .await
        .update_action_result(update)
        .await
        .unwrap();
    let first = action.under(DigestFunction::Blake3).unwrap();
    assert!(server.store.find("", &first).await.unwrap().is_some());
}

mod recording {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use bytes::Bytes;
    use futures::future;
    use gorego_storage::{Blob, BlobStore, Digest, Error, MemoryStore, Put, Result};

    /// A store that knows its blobs after `fetch_batch`, and records the digests of `get_batch`.
    #[derive(Debug, Default)]
    pub(super) struct Recording {
        pub(super) store: Arc<MemoryStore>,
        pub(super) read: Mutex<Vec<Digest>>,
    }

    #[async_trait]
    impl BlobStore for Recording {
        async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
            self.store.find_missing(digests).await
        }

        async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob> {
            self.store.get(digest, offset).await
        }

        async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put> {
            self.store.put(digest, blob).await
        }

        async fn fetch_batch(&self, digests: &[Digest]) -> Vec<Result<Digest>> {
            let missing = self.store.find_missing(digests).await.unwrap();
            let found = |digest: &Digest| {
                if missing.contains(digest) {
                    Err(Error::NotFound(*digest))
                } else {
                    Ok(*digest)
                }
            };
            digests.iter().map(found).collect()
        }

        async fn get_batch(&self, digests: &[Digest]) -> Vec<Result<Bytes>> {
            self.read.lock().unwrap().extend(digests);
            let get = |digest| async move { self.store.get(&digest, 0).await?.into_bytes().await };
            future::join_all(digests.iter().copied().map(get)).await
        }
    }
}

#[tokio::test]
async fn a_batch_is_read_under_the_function_under_which_it_was_fetched() {
    let recording = Arc::new(recording::Recording::default());
    let memory = Arc::clone(&recording.store);
    let stores = Stores {
        blobs: Arc::clone(&recording) as _,
        uploads: Arc::<MemoryStore>::clone(&memory),
        actions: Arc::<MemoryStore>::clone(&memory),
    };
    let server = Server::over(stores, Options::default()).await;
    let content = Bytes::from_static(b"content");
    let digest = blake3(&content);
    let blob = gorego_storage::Blob::Bytes(content.clone());
    let put = gorego_storage::BlobStore::put(&*memory, &digest, blob).await;
    put.unwrap();
    let request = BatchReadBlobsRequest {
        digests: vec![digest.to_proto()],
        ..BatchReadBlobsRequest::default()
    };
    let answer = server.cas().await.batch_read_blobs(request).await;
    assert_eq!(answer.unwrap().into_inner().responses[0].data, content);
    let read = recording.read.lock().unwrap();
    let functions: Vec<_> = read.iter().map(Digest::function).collect();
    assert_eq!(functions, [DigestFunction::Blake3]);
}
