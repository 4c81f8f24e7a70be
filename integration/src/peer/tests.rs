//! Tests of the peer without faults.

mod faults;

use reapi::{
    bytestream::{
        QueryWriteStatusRequest, ReadRequest, WriteRequest, byte_stream_client::ByteStreamClient,
    },
    v2::{
        BatchReadBlobsRequest, Digest, FindMissingBlobsRequest, GetCapabilitiesRequest,
        GetTreeRequest,
        capabilities_client::CapabilitiesClient,
        content_addressable_storage_client::ContentAddressableStorageClient,
        {Directory, DirectoryNode},
    },
};
use tokio::task::JoinSet;
use tonic::{Code, Status, transport::Channel};

use super::*;
use crate::{
    client::{Client, add_request_metadata},
    content::blob,
};

const SIZE: usize = 300_000;

fn hash_and_size(digest: &Digest) -> String {
    format!("{}/{}", digest.hash, digest.size_bytes)
}

/// A peer, a connection to it, and content.
struct Setup {
    peer: FaultyPeer,
    client: Client,
    content: Bytes,
}

impl Setup {
    async fn new(offer: Offer) -> Self {
        let peer = FaultyPeer::with(offer);
        Self {
            client: Client::connect(peer.address()).await,
            content: blob(1, SIZE),
            peer,
        }
    }

    fn stream(&self) -> ByteStreamClient<Channel> {
        ByteStreamClient::new(self.client.channel())
    }

    fn cas(&self) -> ContentAddressableStorageClient<Channel> {
        ContentAddressableStorageClient::new(self.client.channel())
    }

    /// Returns the received bytes and the status of a `Read`.
    async fn read(&self, name: String, read_offset: i64) -> (Vec<u8>, Code) {
        let mut content = Vec::new();
        let request = ReadRequest {
            resource_name: name,
            read_offset,
            ..ReadRequest::default()
        };
        let mut stream = match self.stream().read(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return (content, status.code()),
        };
        loop {
            match stream.message().await {
                Ok(Some(message)) => content.extend_from_slice(&message.data),
                Ok(None) => return (content, Code::Ok),
                Err(status) => return (content, status.code()),
            }
        }
    }

    /// Returns the received bytes and the status of a `Read` with a fault.
    async fn read_with(&self, fault: Fault) -> (Vec<u8>, Code) {
        let digest = self.peer.put(&self.content);
        self.peer.inject(Method::Read, Times::Next(1), fault);
        self.read(format!("blobs/{}", hash_and_size(&digest)), 0)
            .await
    }

    /// Sends an upload in one call and returns the committed size.
    async fn write(&self, name: &str, offset: usize, data: &[u8]) -> Result<i64, Status> {
        let mut at = offset;
        let chunks: Vec<_> = data.chunks(64 * 1024).collect();
        let last = chunks.len() - 1;
        let messages = chunks.into_iter().enumerate().map(|(number, chunk)| {
            let message = WriteRequest {
                resource_name: name.to_owned(),
                write_offset: i64::try_from(at).unwrap(),
                finish_write: number == last,
                data: Bytes::copy_from_slice(chunk),
            };
            at += chunk.len();
            message
        });
        let messages = messages.collect::<Vec<_>>();
        let response = self.stream().write(tokio_stream::iter(messages)).await?;
        Ok(response.into_inner().committed_size)
    }

    async fn batch_read(
        &self,
        digests: &[Digest],
        acceptable: &[i32],
    ) -> Result<Vec<Bytes>, Status> {
        let request = BatchReadBlobsRequest {
            digests: digests.to_vec(),
            acceptable_compressors: acceptable.to_vec(),
            ..BatchReadBlobsRequest::default()
        };
        let response = self.cas().batch_read_blobs(request).await?.into_inner();
        Ok(response
            .responses
            .into_iter()
            .map(|blob| blob.data)
            .collect())
    }
}

fn upload(digest: &Digest) -> String {
    format!("some/where/uploads/u/blobs/{}", hash_and_size(digest))
}

#[tokio::test]
async fn a_peer_without_faults_stores_and_serves_blobs_and_results() {
    let setup = Setup::new(Offer::default()).await;
    let Setup {
        peer,
        client,
        content,
    } = &setup;
    let digest = digest_of(content);
    let missing = client.find_missing(vec![digest.clone()]).await.unwrap();
    assert_eq!(missing, vec![digest.clone()]);
    client.upload("u", content).await.unwrap();
    assert!(peer.blob(&digest).unwrap() == *content);
    assert!(
        client
            .find_missing(vec![digest.clone()])
            .await
            .unwrap()
            .is_empty()
    );
    assert!(client.download(&digest).await.unwrap() == *content);
    let small = blob(2, 10);
    client
        .batch_upload(std::slice::from_ref(&small))
        .await
        .unwrap();
    assert_eq!(
        setup.batch_read(&[digest_of(&small)], &[]).await.unwrap(),
        [small]
    );
    let action = digest_of(b"action");
    assert_eq!(
        client.get_action(&action).await.unwrap_err().code(),
        Code::NotFound
    );
    client
        .put_action(&action, ActionResult::default())
        .await
        .unwrap();
    assert!(peer.action("", &action).is_some());
    assert!(peer.action("other", &action).is_none());
    client.get_action(&action).await.unwrap();
    let size = u64::try_from(SIZE).unwrap();
    assert_eq!(
        (peer.bytes_read(), peer.bytes_written()),
        (size + 10, size + 10)
    );
    assert_eq!(peer.calls(Method::FindMissingBlobs).len(), 2);
}

#[tokio::test]
async fn content_that_does_not_match_its_digest_is_refused() {
    let setup = Setup::new(Offer::default()).await;
    let digest = digest_of(b"this");
    let error = setup.write(&upload(&digest), 0, b"that").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(setup.peer.blob(&digest).is_none());
}

#[tokio::test]
async fn calls_are_recorded_with_their_requests_and_headers() {
    let setup = Setup::new(Offer::default()).await;
    let digest = digest_of(&setup.content);
    setup
        .write(&upload(&digest), 0, &setup.content)
        .await
        .unwrap();
    let call = &setup.peer.calls(Method::Write)[0];
    assert_eq!((call.instance.as_str(), call.digests), ("some/where", 1));
    assert_eq!(call.received, u64::try_from(SIZE).unwrap());
    assert_eq!(call.ended, Some(Code::Ok));

    let metadata = reapi::v2::RequestMetadata {
        tool_invocation_id: "invocation".to_owned(),
        ..Default::default()
    };
    let mut request = tonic::Request::new(GetCapabilitiesRequest {
        instance_name: "there".to_owned(),
    });
    add_request_metadata(request.metadata_mut(), &metadata);
    request
        .metadata_mut()
        .insert("authorization", "Bearer x".parse().unwrap());
    let mut client = CapabilitiesClient::new(setup.client.channel());
    client.get_capabilities(request).await.unwrap();
    let call = &setup.peer.calls(Method::GetCapabilities)[0];
    assert_eq!(call.instance, "there");
    assert_eq!(call.metadata(), Some(metadata));
    assert_eq!(call.header("authorization"), Some("Bearer x"));
}

#[tokio::test]
async fn the_batch_limit_is_enforced() {
    let offer = Offer {
        batch_limit: 100,
        ..Offer::default()
    };
    let setup = Setup::new(offer).await;
    let blobs = [blob(1, 50), blob(2, 51)];
    let error = setup.client.batch_upload(&blobs).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    setup.client.batch_upload(&blobs[..1]).await.unwrap();
    let digests = blobs.map(|blob| setup.peer.put(&blob));
    let error = setup.batch_read(&digests, &[]).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let mut client = CapabilitiesClient::new(setup.client.channel());
    let answer = client
        .get_capabilities(GetCapabilitiesRequest::default())
        .await;
    let offered = answer.unwrap().into_inner().cache_capabilities.unwrap();
    assert_eq!(offered.max_batch_total_size_bytes, 100);
}

#[tokio::test]
async fn compressed_content_is_accepted_and_served_if_announced() {
    let offer = Offer {
        compressors: vec![compressor::Value::Zstd],
        ..Offer::default()
    };
    let setup = Setup::new(offer).await;
    let content = Bytes::from(b"again and ".repeat(10_000));
    let digest = digest_of(&content);
    let packed = blob::compress(&content);
    let name = format!("uploads/u/compressed-blobs/zstd/{}", hash_and_size(&digest));
    let committed = setup.write(&name, 0, &packed).await.unwrap();
    assert_eq!(committed, i64::try_from(packed.len()).unwrap());
    assert!(setup.peer.blob(&digest).unwrap() == content);
    let name = format!("compressed-blobs/zstd/{}", hash_and_size(&digest));
    let (read, code) = setup.read(name, 10).await;
    assert!(zstd::decode_all(&*read).unwrap() == content[10..] && code == Code::Ok);
    let zstd_too = [compressor::Value::Zstd.into()];
    let read = setup.batch_read(&[digest], &zstd_too).await.unwrap();
    assert!(zstd::decode_all(&*read[0]).unwrap() == content);
}

#[tokio::test]
async fn a_tree_is_returned_root_first_with_each_directory_once() {
    use prost::Message as _;

    let setup = Setup::new(Offer::default()).await;
    let leaf = Directory::default();
    let leaf_digest = Some(setup.peer.put(&Bytes::from(leaf.encode_to_vec())));
    let node = |name: &str| DirectoryNode {
        name: name.to_owned(),
        digest: leaf_digest.clone(),
    };
    let root = Directory {
        directories: vec![node("a"), node("b")],
        ..Directory::default()
    };
    let request = GetTreeRequest {
        root_digest: Some(setup.peer.put(&Bytes::from(root.encode_to_vec()))),
        ..GetTreeRequest::default()
    };
    let mut pages = setup.cas().get_tree(request).await.unwrap().into_inner();
    let page = pages.message().await.unwrap().unwrap();
    assert_eq!(page.directories, [root, leaf]);
}

#[tokio::test]
async fn content_under_blake3_is_verified() {
    let setup = Setup::new(Offer::default()).await;
    let content = b"content";
    let hash = blake3::hash(content).to_hex();
    let name = format!("uploads/u/blobs/blake3/{hash}/7");
    assert_eq!(setup.write(&name, 0, content).await.unwrap(), 7);
    let (read, _) = setup.read(format!("blobs/blake3/{hash}/7"), 0).await;
    assert_eq!(read, content);
    let error = setup
        .write(&format!("uploads/v/blobs/{hash}/8"), 0, b"content2")
        .await;
    assert_eq!(error.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_unsupported_digest_function_is_refused() {
    let offer = Offer {
        functions: vec![digest_function::Value::Sha256],
        ..Offer::default()
    };
    let setup = Setup::new(offer).await;
    let hash = blake3::hash(b"content").to_hex();
    let name = format!("uploads/u/blobs/blake3/{hash}/7");
    let error = setup.write(&name, 0, b"content").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let request = FindMissingBlobsRequest {
        digest_function: digest_function::Value::Blake3.into(),
        ..FindMissingBlobsRequest::default()
    };
    let error = setup.cas().find_missing_blobs(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}
