//! The measured calls, with every response checked.

use std::net::SocketAddr;

use bytes::Bytes;
use gorego_integration::content::uuid;
use prost::Message as _;
use reapi::{
    bytestream::{ReadRequest, WriteRequest, byte_stream_client::ByteStreamClient},
    longrunning::operation::Result as Outcome,
    rpc,
    v2::{
        ActionResult, BatchReadBlobsRequest, BatchUpdateBlobsRequest, Digest, ExecuteRequest,
        ExecuteResponse, FindMissingBlobsRequest, GetActionResultRequest,
        UpdateActionResultRequest, action_cache_client::ActionCacheClient,
        batch_update_blobs_request,
        content_addressable_storage_client::ContentAddressableStorageClient,
        execution_client::ExecutionClient,
    },
};
use sha2::{Digest as _, Sha256};
use tonic::transport::{Channel, Endpoint};

use crate::{
    content::{Blob, digest},
    error::Error,
};

/// The receive window of a stream; more than is ever in flight.
const STREAM_WINDOW: u32 = 4 << 20;
/// The receive window of a connection.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// The largest accepted message: the 4 MiB that gRPC allows, and framing.
const MESSAGE: usize = 8 << 20;

/// A connection, shared by clones.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    cas: ContentAddressableStorageClient<Channel>,
    byte_stream: ByteStreamClient<Channel>,
    action_cache: ActionCacheClient<Channel>,
    execution: ExecutionClient<Channel>,
}

impl Client {
    /// Opens a connection.
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self, Error> {
        let fault = |source| Error::Connect { address, source };
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .map_err(fault)?
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect()
            .await
            .map_err(fault)?;
        Ok(Self {
            cas: ContentAddressableStorageClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE),
            byte_stream: ByteStreamClient::new(channel.clone()).max_decoding_message_size(MESSAGE),
            action_cache: ActionCacheClient::new(channel.clone()),
            execution: ExecutionClient::new(channel),
        })
    }

    /// Writes a whole blob by `ByteStream.Write`.
    pub(crate) async fn upload(&mut self, blob: &Blob) -> Result<(), Error> {
        const CALL: &str = "write";
        let size = blob.digest.size_bytes;
        let mut rng = fastrand::Rng::new();
        let mut name = format!(
            "uploads/{}/blobs/{}/{size}",
            uuid(&mut rng),
            blob.digest.hash
        );
        let mut write_offset = 0;
        let messages = blob.pieces().map(move |data| {
            let offset = write_offset;
            write_offset += i64::try_from(data.len()).unwrap_or(i64::MAX);
            WriteRequest {
                // Later messages need no name.
                resource_name: std::mem::take(&mut name),
                write_offset: offset,
                finish_write: write_offset == size,
                data,
            }
        });
        let response = self.byte_stream.write(tokio_stream::iter(messages)).await;
        let response = response.map_err(Error::of_call(CALL))?.into_inner();
        Error::unless_equal(CALL, response.committed_size, size)
    }

    /// Reads a whole blob by `ByteStream.Read`. Checks its hash with `verify`, else only its size.
    pub(crate) async fn download(&mut self, wanted: &Digest, verify: bool) -> Result<(), Error> {
        const CALL: &str = "read";
        let request = ReadRequest {
            resource_name: format!("blobs/{}/{}", wanted.hash, wanted.size_bytes),
            ..Default::default()
        };
        let response = self.byte_stream.read(request).await;
        let mut stream = response.map_err(Error::of_call(CALL))?.into_inner();
        let mut size = 0;
        let mut hasher = verify.then(Sha256::new);
        while let Some(message) = stream.message().await.map_err(Error::of_call(CALL))? {
            size += message.data.len();
            if let Some(hasher) = &mut hasher {
                hasher.update(&message.data);
            }
        }
        Error::unless_equal(
            CALL,
            i64::try_from(size).unwrap_or(i64::MAX),
            wanted.size_bytes,
        )?;
        match hasher {
            Some(hasher) => unless_content(CALL, hasher, size, wanted),
            None => Ok(()),
        }
    }

    /// Calls `BatchUpdateBlobs`.
    pub(crate) async fn batch_upload(
        &mut self,
        blobs: impl IntoIterator<Item = Blob>,
    ) -> Result<(), Error> {
        let blobs = blobs.into_iter();
        self.store(blobs.map(|blob| (blob.digest.clone(), blob.into_bytes())))
            .await
    }

    /// Calls `BatchUpdateBlobs` with blobs that may be there already.
    pub(crate) async fn store(
        &mut self,
        blobs: impl Iterator<Item = (Digest, Bytes)>,
    ) -> Result<(), Error> {
        const CALL: &str = "batch update";
        let requests = blobs.map(|(digest, data)| batch_update_blobs_request::Request {
            digest: Some(digest),
            data,
            ..Default::default()
        });
        let request = BatchUpdateBlobsRequest {
            requests: requests.collect(),
            ..Default::default()
        };
        let asked = request.requests.len();
        let response = self.cas.batch_update_blobs(request).await;
        let response = response.map_err(Error::of_call(CALL))?.into_inner();
        for blob in &response.responses {
            unless_ok(CALL, blob.status.as_ref())?;
        }
        Error::unless_equal(CALL, response.responses.len(), asked)
    }

    /// Calls `BatchReadBlobs`. Checks the hash of the first blob with `verify`, else only sizes.
    pub(crate) async fn batch_download(
        &mut self,
        digests: &[Digest],
        verify: bool,
    ) -> Result<(), Error> {
        const CALL: &str = "batch read";
        let request = BatchReadBlobsRequest {
            digests: digests.to_vec(),
            ..Default::default()
        };
        let response = self.cas.batch_read_blobs(request).await;
        let response = response.map_err(Error::of_call(CALL))?.into_inner();
        for blob in &response.responses {
            unless_ok(CALL, blob.status.as_ref())?;
            let wanted = blob.digest.as_ref().map_or(-1, |digest| digest.size_bytes);
            Error::unless_equal(CALL, size_of_content(&blob.data), wanted)?;
        }
        Error::unless_equal(CALL, response.responses.len(), digests.len())?;
        match response.responses.first().filter(|_| verify) {
            Some(blob) => unless_content(
                CALL,
                Sha256::new_with_prefix(&blob.data),
                blob.data.len(),
                &blob.digest.clone().unwrap_or_default(),
            ),
            None => Ok(()),
        }
    }

    /// Calls `FindMissingBlobs` with digests that are all present.
    pub(crate) async fn find_none_missing(&mut self, digests: &[Digest]) -> Result<(), Error> {
        const CALL: &str = "find missing";
        let request = FindMissingBlobsRequest {
            blob_digests: digests.to_vec(),
            ..Default::default()
        };
        let response = self.cas.find_missing_blobs(request).await;
        let response = response.map_err(Error::of_call(CALL))?.into_inner();
        Error::unless_equal(CALL, response.missing_blob_digests.len(), 0)
    }

    /// Calls `Execute` without a lookup, and waits for the end. The action must succeed with one output file.
    pub(crate) async fn execute(&mut self, action: Digest) -> Result<(), Error> {
        const CALL: &str = "execute";
        let request = ExecuteRequest {
            action_digest: Some(action),
            skip_cache_lookup: true,
            ..Default::default()
        };
        let response = self.execution.execute(request).await;
        let mut stream = response.map_err(Error::of_call(CALL))?.into_inner();
        let mut last = None;
        while let Some(operation) = stream.message().await.map_err(Error::of_call(CALL))? {
            last = operation.result;
        }
        let Some(Outcome::Response(any)) = last else {
            return Err(Error::Unfinished(CALL));
        };
        let response = ExecuteResponse::decode(any.value.as_slice());
        let response = response
            .map_err(|error| Error::of_call(CALL)(tonic::Status::internal(error.to_string())))?;
        unless_ok(CALL, response.status.as_ref())?;
        let result = response.result.unwrap_or_default();
        Error::unless_equal(CALL, result.exit_code, 0)?;
        Error::unless_equal(CALL, result.output_files.len(), 1)
    }

    /// Calls `UpdateActionResult`.
    pub(crate) async fn put_action(
        &mut self,
        action: Digest,
        result: ActionResult,
    ) -> Result<(), Error> {
        let request = UpdateActionResultRequest {
            action_digest: Some(action),
            action_result: Some(result),
            ..Default::default()
        };
        let response = self.action_cache.update_action_result(request).await;
        response.map_err(Error::of_call("update action result"))?;
        Ok(())
    }

    /// Calls `GetActionResult` without inlined outputs. The result must have `outputs` files.
    pub(crate) async fn get_action(
        &mut self,
        action: Digest,
        outputs: usize,
    ) -> Result<ActionResult, Error> {
        const CALL: &str = "get action result";
        let request = GetActionResultRequest {
            action_digest: Some(action),
            ..Default::default()
        };
        let response = self.action_cache.get_action_result(request).await;
        let result = response.map_err(Error::of_call(CALL))?.into_inner();
        Error::unless_equal(CALL, result.output_files.len(), outputs)?;
        Ok(result)
    }
}

fn size_of_content(data: &Bytes) -> i64 {
    i64::try_from(data.len()).unwrap_or(i64::MAX)
}

fn unless_ok(call: &'static str, status: Option<&rpc::Status>) -> Result<(), Error> {
    match status {
        Some(status) if status.code != 0 => {
            let code = tonic::Code::from(status.code);
            Err(Error::of_call(call)(tonic::Status::new(
                code,
                &status.message,
            )))
        }
        _ => Ok(()),
    }
}

fn unless_content(
    call: &'static str,
    hasher: Sha256,
    size: usize,
    wanted: &Digest,
) -> Result<(), Error> {
    Error::unless_equal(call, digest(hasher, size).hash.as_str(), &wanted.hash)
}
