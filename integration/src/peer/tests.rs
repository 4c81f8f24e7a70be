//! Each fault does what it says, and a peer without faults is a cache.

use reapi::{
    bytestream::{
        QueryWriteStatusRequest, ReadRequest, WriteRequest, byte_stream_client::ByteStreamClient,
    },
    v2::{
        BatchReadBlobsRequest, Digest, GetCapabilitiesRequest, GetTreeRequest,
        capabilities_client::CapabilitiesClient,
        content_addressable_storage_client::ContentAddressableStorageClient,
        {Directory, DirectoryNode},
    },
};
use tokio::task::JoinSet;
use tonic::{Code, Status, transport::Channel};

use super::*;
use crate::{client::Client, content::blob};

const SIZE: usize = 300_000;

fn hash_and_size(digest: &Digest) -> String {
    format!("{}/{}", digest.hash, digest.size_bytes)
}

/// A peer, one connection to it, and content.
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

    /// All that arrives of a `Read`, and how it ends.
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

    /// The content of a `Read` with that fault.
    async fn read_with(&self, fault: Fault) -> (Vec<u8>, Code) {
        let digest = self.peer.put(&self.content);
        self.peer.inject(Method::Read, Times::Next(1), fault);
        self.read(format!("blobs/{}", hash_and_size(&digest)), 0)
            .await
    }

    /// The messages of an upload, in one call; the committed size.
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
async fn without_faults_it_is_a_cache() {
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
async fn wrong_content_is_refused() {
    let setup = Setup::new(Offer::default()).await;
    let digest = digest_of(b"this");
    let error = setup.write(&upload(&digest), 0, b"that").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(setup.peer.blob(&digest).is_none());
}

#[tokio::test]
async fn calls_are_recorded_with_what_came_with_them() {
    use prost::Message as _;

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
    let header = tonic::metadata::MetadataValue::from_bytes(&metadata.encode_to_vec());
    let name = "build.bazel.remote.execution.v2.requestmetadata-bin";
    request.metadata_mut().insert_bin(name, header);
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
async fn a_code_is_answered_as_often_as_asked_for() {
    let setup = Setup::new(Offer::default()).await;
    for code in [
        Code::Unavailable,
        Code::ResourceExhausted,
        Code::PermissionDenied,
    ] {
        let fault = Fault::Answer(code);
        setup
            .peer
            .inject(Method::FindMissingBlobs, Times::Next(2), fault);
        for _ in 0..2 {
            let error = setup.client.find_missing(vec![]).await.unwrap_err();
            assert_eq!(error.code(), code);
        }
        setup.client.find_missing(vec![]).await.unwrap();
    }
    let fault = Fault::Answer(Code::Unavailable);
    setup.peer.inject(Method::Read, Times::Always, fault);
    for _ in 0..3 {
        assert_eq!(
            setup.read("blobs/x".to_owned(), 0).await.1,
            Code::Unavailable
        );
    }
    setup.peer.heal();
    assert_eq!(
        setup.read("blobs/x".to_owned(), 0).await.1,
        Code::InvalidArgument
    );
}

#[tokio::test]
async fn a_read_is_spoilt_as_asked_for() {
    let setup = Setup::new(Offer::default()).await;
    let content = setup.content.to_vec();
    let (read, code) = setup.read_with(Fault::Corrupt(200_000)).await;
    let differ = (0..SIZE).filter(|&at| read[at] != content[at]);
    assert_eq!(
        (differ.collect::<Vec<_>>(), code),
        (vec![200_000], Code::Ok)
    );
    let (read, code) = setup.read_with(Fault::Truncate(70_000)).await;
    assert!(read == content[..70_000] && code == Code::Ok);
    let (read, code) = setup.read_with(Fault::Extend(5)).await;
    assert!(read == [&content, &b"xxxxx"[..]].concat() && code == Code::Ok);
    let broken = Fault::BreakAfter(70_000, Code::Unavailable);
    let (read, code) = setup.read_with(broken).await;
    assert!(read == content[..70_000] && code == Code::Unavailable);
    let name = format!("blobs/{}", hash_and_size(&digest_of(&content)));
    let (read, code) = setup.read(name, 70_000).await;
    assert!(read == content[70_000..] && code == Code::Ok);
    let call = setup.peer.calls(Method::Read).pop().unwrap();
    assert_eq!((call.offset, call.sent), (70_000, 230_000));
}

#[tokio::test]
async fn a_stalled_read_goes_on_when_it_is_released() {
    let setup = Setup::new(Offer::default()).await;
    let Setup { peer, content, .. } = &setup;
    for (fault, before) in [(Fault::Stall, 0), (Fault::StallAfter(100_000), 100_000)] {
        peer.forget_calls();
        let release = async {
            peer.wait_for(|seen| seen.calls(Method::Read).any(|call| call.sent == before))
                .await;
            assert_eq!(peer.calls(Method::Read)[0].ended, None);
            peer.release();
        };
        let ((read, code), ()) = tokio::join!(setup.read_with(fault), release);
        assert!(read == *content && code == Code::Ok);
    }
}

#[tokio::test]
async fn a_stalled_call_that_is_given_up_is_known_as_such() {
    let setup = Setup::new(Offer::default()).await;
    setup
        .peer
        .inject(Method::FindMissingBlobs, Times::Always, Fault::Stall);
    let client = setup.client.clone();
    let mut call = JoinSet::new();
    call.spawn(async move { client.find_missing(vec![]).await });
    let came = |seen: &Seen| seen.calls(Method::FindMissingBlobs).count() == 1;
    setup.peer.wait_for(came).await;
    call.shutdown().await;
    let given_up = |seen: &Seen| {
        let mut calls = seen.calls(Method::FindMissingBlobs);
        calls.all(|call| call.ended == Some(Code::Cancelled))
    };
    setup.peer.wait_for(given_up).await;
}

#[tokio::test]
async fn a_broken_write_can_be_resumed() {
    let setup = Setup::new(Offer::default()).await;
    let Setup { peer, content, .. } = &setup;
    let digest = digest_of(content);
    let name = upload(&digest);
    let broken = Fault::BreakAfter(100_000, Code::Unavailable);
    peer.inject(Method::Write, Times::Next(1), broken);
    let error = setup.write(&name, 0, content).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    let query = QueryWriteStatusRequest {
        resource_name: name.clone(),
    };
    let status = setup
        .stream()
        .query_write_status(query.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!((status.committed_size, status.complete), (100_000, false));
    let resumed = setup
        .write(&name, 100_000, &content[100_000..])
        .await
        .unwrap();
    assert_eq!(resumed, digest.size_bytes);
    assert!(peer.blob(&digest).unwrap() == *content);
    let status = setup
        .stream()
        .query_write_status(query)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (status.committed_size, status.complete),
        (digest.size_bytes, true)
    );
}

#[tokio::test]
async fn a_write_may_be_answered_before_it_is_read() {
    let setup = Setup::new(Offer::default()).await;
    let Setup { peer, content, .. } = &setup;
    let digest = digest_of(content);
    peer.inject(Method::Write, Times::Next(1), Fault::AlreadyThere);
    let committed = setup.write(&upload(&digest), 0, content).await.unwrap();
    assert_eq!((committed, peer.bytes_written()), (digest.size_bytes, 0));
    assert!(peer.blob(&digest).is_none());
}

#[tokio::test]
async fn a_batch_is_spoilt_in_its_first_blob() {
    let setup = Setup::new(Offer::default()).await;
    let contents = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
    let digests = contents.each_ref().map(|content| setup.peer.put(content));
    for (fault, first) in [
        (Fault::Corrupt(0), &b"nne"[..]),
        (Fault::Truncate(1), b"o"),
        (Fault::Extend(2), b"onexx"),
    ] {
        setup
            .peer
            .inject(Method::BatchReadBlobs, Times::Next(1), fault);
        let read = setup.batch_read(&digests, &[]).await.unwrap();
        assert_eq!(read, [Bytes::from_static(first), contents[1].clone()]);
    }
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
async fn compression_is_there_where_it_is_on_offer() {
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
async fn lost_blobs_leave_their_action_results_behind() {
    let setup = Setup::new(Offer::default()).await;
    let digest = setup.peer.put(&setup.content);
    let action = digest_of(b"action");
    setup.peer.put_action("", &action, ActionResult::default());
    setup.peer.forget(&digest);
    setup.client.get_action(&action).await.unwrap();
    let error = setup.client.download(&digest).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    setup.peer.forget_all();
    assert!(setup.client.get_action(&action).await.is_err());
}

#[tokio::test]
async fn a_tree_comes_root_first_and_each_directory_once() {
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
async fn blake3_is_checked_as_such() {
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
