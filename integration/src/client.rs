//! A REAPI client that gives tests control over each message: one connection, SHA-256, no compression,
//! no retries.

use std::{net::SocketAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use reapi::{
    bytestream::{
        QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest,
        WriteResponse, byte_stream_client::ByteStreamClient,
    },
    v2::{
        ActionResult, BatchUpdateBlobsRequest, Digest, FindMissingBlobsRequest,
        GetActionResultRequest, RequestMetadata, UpdateActionResultRequest,
        action_cache_client::ActionCacheClient, batch_update_blobs_request,
        content_addressable_storage_client::ContentAddressableStorageClient,
    },
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    metadata::{MetadataMap, MetadataValue},
    transport::{Channel, Endpoint},
};

use crate::content::{digest_of, uuid};

/// The most blob bytes in one `WriteRequest`.
pub const PIECE: usize = 64 * 1024;

/// The longest time of a call; far more than it needs, so that only a hanging call fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// The receive window of a far client: more than 1 Gbit/s in 50 ms.
const WIDE_WINDOW: u32 = 8 << 20;
const WIDE_FRAME: u32 = 1 << 20;

/// A connection to a server.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects to the server at `address`.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(address, endpoint(address)).await
    }

    /// Connects with windows that are large enough for a fast link with a high latency.
    pub async fn connect_far(address: SocketAddr) -> Self {
        let endpoint = endpoint(address)
            .tcp_nodelay(true)
            .max_frame_size(WIDE_FRAME)
            .initial_stream_window_size(WIDE_WINDOW)
            .initial_connection_window_size(WIDE_WINDOW);
        Self::over(address, endpoint).await
    }

    async fn over(address: SocketAddr, endpoint: Endpoint) -> Self {
        let channel = endpoint.connect().await;
        Self {
            channel: channel.unwrap_or_else(|e| panic!("connecting to {address}: {e}")),
        }
    }

    /// Returns the connection, for clients of other services.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Calls `FindMissingBlobs`.
    pub async fn find_missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, Status> {
        let request = FindMissingBlobsRequest {
            blob_digests: digests,
            ..Default::default()
        };
        let response = self.cas().find_missing_blobs(request).await?;
        Ok(response.into_inner().missing_blob_digests)
    }

    /// Calls `BatchUpdateBlobs`. Returns the error of the first blob that failed.
    pub async fn batch_upload(&self, blobs: &[Bytes]) -> Result<(), Status> {
        let requests = blobs
            .iter()
            .map(|blob| batch_update_blobs_request::Request {
                digest: Some(digest_of(blob)),
                data: blob.clone(),
                ..Default::default()
            });
        let request = BatchUpdateBlobsRequest {
            requests: requests.collect(),
            ..Default::default()
        };
        let response = self.cas().batch_update_blobs(request).await?.into_inner();
        assert_eq!(response.responses.len(), blobs.len(), "a status for each");
        for blob in response.responses {
            let status = blob.status.unwrap_or_default();
            if status.code != 0 {
                return Err(Status::new(Code::from(status.code), status.message));
            }
        }
        Ok(())
    }

    /// Uploads a blob by `ByteStream.Write` in pieces.
    pub async fn upload(&self, uuid: &str, blob: &Bytes) -> Result<WriteResponse, Status> {
        let mut upload = self.begin_upload(uuid, &digest_of(blob));
        upload.send_last(blob).await;
        upload.response().await
    }

    /// Uploads a blob by `ByteStream.Write` under a UUID that depends on its size alone.
    pub async fn upload_whole(&self, blob: &Bytes) -> Result<(), Status> {
        let name = uuid(&mut fastrand::Rng::with_seed(blob.len() as u64));
        self.upload(&name, blob).await.map(drop)
    }

    /// Opens a `ByteStream.Write` whose messages the caller sends.
    pub fn begin_upload(&self, uuid: &str, digest: &Digest) -> Upload {
        Upload::begin(self.byte_stream(), upload_name(uuid, digest))
    }

    /// Calls `ByteStream.QueryWriteStatus`.
    pub async fn query_upload(
        &self,
        uuid: &str,
        digest: &Digest,
    ) -> Result<QueryWriteStatusResponse, Status> {
        let request = QueryWriteStatusRequest {
            resource_name: upload_name(uuid, digest),
        };
        let response = self.byte_stream().query_write_status(request).await?;
        Ok(response.into_inner())
    }

    /// Waits until the server holds `size` bytes of an open or interrupted upload.
    pub async fn wait_until_committed(&self, uuid: &str, digest: &Digest, size: usize) {
        let held = async {
            loop {
                let status = self.query_upload(uuid, digest).await;
                let committed = status.expect("the status of an upload").committed_size;
                if usize::try_from(committed).is_ok_and(|committed| committed >= size) {
                    return;
                }
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, held).await;
        assert!(in_time.is_ok(), "the server never held {size} bytes");
    }

    /// Reads a whole blob by `ByteStream.Read`, message by message.
    pub async fn read(&self, digest: &Digest) -> Result<Streaming<ReadResponse>, Status> {
        let request = ReadRequest {
            resource_name: format!("blobs/{}/{}", digest.hash, digest.size_bytes),
            ..Default::default()
        };
        let response = self.byte_stream().read(request).await?;
        Ok(response.into_inner())
    }

    /// Reads a whole blob by `ByteStream.Read`.
    pub async fn download(&self, digest: &Digest) -> Result<Bytes, Status> {
        let mut stream = self.read(digest).await?;
        let mut content = BytesMut::new();
        while let Some(response) = stream.message().await? {
            content.extend_from_slice(&response.data);
        }
        Ok(content.freeze())
    }

    /// Reads a whole blob by `ByteStream.Read` and compares it with `content` piece by piece. Panics if
    /// it differs.
    pub async fn compare(&self, digest: &Digest, content: &Bytes) {
        let mut stream = self.read(digest).await.expect("the blob is served");
        let mut at = 0;
        while let Some(response) = stream.message().await.expect("the whole blob is served") {
            let next = at + response.data.len();
            let same = content
                .get(at..next)
                .is_some_and(|part| part == response.data);
            assert!(same, "bytes {at} to {next} differ");
            at = next;
        }
        assert_eq!(at, content.len());
    }

    /// Calls `UpdateActionResult`.
    pub async fn put_action(&self, action: &Digest, result: ActionResult) -> Result<(), Status> {
        let request = UpdateActionResultRequest {
            action_digest: Some(action.clone()),
            action_result: Some(result),
            ..Default::default()
        };
        self.action_cache().update_action_result(request).await?;
        Ok(())
    }

    /// Calls `GetActionResult` without inlined outputs.
    pub async fn get_action(&self, action: &Digest) -> Result<ActionResult, Status> {
        let request = GetActionResultRequest {
            action_digest: Some(action.clone()),
            ..Default::default()
        };
        let response = self.action_cache().get_action_result(request).await?;
        Ok(response.into_inner())
    }

    /// Looks an action up that has no result, for a target of the build `id`, over a connection of its own.
    pub async fn miss_in_build(address: SocketAddr, id: &str, target: &str, action: &Digest) {
        let lookup = GetActionResultRequest {
            action_digest: Some(action.clone()),
            ..GetActionResultRequest::default()
        };
        let mut actions = Self::connect(address).await.action_cache();
        let missed = actions.get_action_result(in_build(id, target, lookup));
        let missed = missed.await.expect_err("a miss");
        assert_eq!(missed.code(), Code::NotFound);
    }

    /// Stores an empty result of an action for a target of the build `id`.
    pub async fn store_in_build(&self, id: &str, target: &str, action: &Digest) {
        let stored = UpdateActionResultRequest {
            action_digest: Some(action.clone()),
            action_result: Some(ActionResult::default()),
            ..UpdateActionResultRequest::default()
        };
        let mut actions = self.action_cache();
        let stored = actions.update_action_result(in_build(id, target, stored));
        stored.await.expect("the result is stored");
    }

    fn cas(&self) -> ContentAddressableStorageClient<Channel> {
        ContentAddressableStorageClient::new(self.channel())
    }

    fn action_cache(&self) -> ActionCacheClient<Channel> {
        ActionCacheClient::new(self.channel())
    }

    fn byte_stream(&self) -> ByteStreamClient<Channel> {
        ByteStreamClient::new(self.channel())
    }
}

/// Wraps a message of a build that names its target, as Bazel does.
pub fn in_build<T>(id: &str, target: &str, message: T) -> tonic::Request<T> {
    let metadata = RequestMetadata {
        tool_invocation_id: id.to_owned(),
        target_id: target.to_owned(),
        action_mnemonic: "Mnemonic".to_owned(),
        ..RequestMetadata::default()
    };
    let mut request = tonic::Request::new(message);
    add_request_metadata(request.metadata_mut(), &metadata);
    request
}

/// Adds the metadata of a build to the headers of a call.
pub fn add_request_metadata(headers: &mut MetadataMap, metadata: &RequestMetadata) {
    let value = MetadataValue::from_bytes(&metadata.encode_to_vec());
    headers.insert_bin("build.bazel.remote.execution.v2.requestmetadata-bin", value);
}

/// An open `ByteStream.Write`. Dropping it interrupts the upload.
#[derive(Debug)]
pub struct Upload {
    messages: mpsc::Sender<WriteRequest>,
    call: JoinSet<Result<WriteResponse, Status>>,
    name: String,
    offset: usize,
}

impl Upload {
    fn begin(mut client: ByteStreamClient<Channel>, name: String) -> Self {
        let (messages, receiver) = mpsc::channel(1);
        let mut call = JoinSet::new();
        call.spawn(async move {
            let response = client.write(ReceiverStream::new(receiver)).await?;
            Ok(response.into_inner())
        });
        Self {
            messages,
            call,
            name,
            offset: 0,
        }
    }

    /// Continues from `offset` instead of the start.
    #[must_use]
    pub fn from_offset(mut self, offset: usize) -> Self {
        self.offset = offset;
        self
    }

    /// Sends `bytes` and leaves the upload open.
    pub async fn send(&mut self, bytes: &Bytes) {
        self.send_pieces(bytes, false).await;
    }

    /// Sends `bytes` as the end of the blob.
    pub async fn send_last(&mut self, bytes: &Bytes) {
        self.send_pieces(bytes, true).await;
    }

    /// Ends the request and waits for the response, which may have come earlier.
    pub async fn response(mut self) -> Result<WriteResponse, Status> {
        drop(self.messages);
        let response = self.call.join_next().await;
        response
            .expect("an upload has one response")
            .expect("the task of an upload neither panics nor is aborted")
    }

    async fn send_pieces(&mut self, bytes: &Bytes, last: bool) {
        let mut rest = bytes.clone();
        loop {
            let data = rest.split_to(PIECE.min(rest.len()));
            let size = data.len();
            let message = WriteRequest {
                resource_name: self.name.clone(),
                write_offset: i64::try_from(self.offset).expect("an offset in a test's blob"),
                finish_write: last && rest.is_empty(),
                data,
            };
            // Fails once the server has responded; `response` returns that response.
            let sent = self.messages.send(message).await.is_ok();
            self.offset += size;
            if !sent || rest.is_empty() {
                return;
            }
        }
    }
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("a socket address makes a URI")
        .timeout(PATIENCE)
}

fn upload_name(uuid: &str, digest: &Digest) -> String {
    format!("uploads/{uuid}/blobs/{}/{}", digest.hash, digest.size_bytes)
}
