//! The same stores behind tonic's own server, as far as the load generator asks for it: the peer that
//! `pkg/grpc` has to beat to be worth keeping. Not a server for builds.
//!
//! `cargo run --release -p gorego-server --example behind_tonic -- 127.0.0.1:50052 /dev/shm/tonic`
#![allow(missing_docs, reason = "an example")]

use std::{error::Error as StdError, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream, stream::BoxStream};
use gorego_limits::Budget;
use gorego_storage::{
    ActionCache, ActionCacheExt as _, Blob, BlobStore, BlobStream, CompletenessChecking, Digest,
    Error, ReadName, WriteName,
};
use gorego_storage_local::{LocalOptions, LocalStore, SyncMode};
use reapi::{
    bytestream::{
        QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest,
        WriteResponse,
        byte_stream_server::{ByteStream, ByteStreamServer},
    },
    v2::{
        self,
        action_cache_server::{ActionCache as ActionCacheService, ActionCacheServer},
        content_addressable_storage_server::{
            ContentAddressableStorage, ContentAddressableStorageServer,
        },
    },
};
use tikv_jemallocator::Jemalloc;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Limits as `gorego` has them.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
const MAX_FRAME: u32 = 256 << 10;
const MAX_MESSAGE: usize = 64 << 20;
const MAX_BYTES: u64 = 8 << 30;

#[derive(Clone)]
struct Services {
    blobs: Arc<dyn BlobStore>,
    actions: Arc<dyn ActionCache>,
}

type Answer<T> = Result<Response<T>, Status>;

fn status(error: Error) -> Status {
    match error {
        error if error.is_miss() => Status::not_found(error.to_string()),
        other => Status::internal(other.to_string()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what `map_err` hands over")]
fn invalid(error: impl ToString) -> Status {
    Status::invalid_argument(error.to_string())
}

fn digest(sent: Option<&v2::Digest>) -> Result<Digest, Status> {
    let sent = sent.ok_or_else(|| invalid("no digest"))?;
    Digest::parse(None, &sent.hash, sent.size_bytes).map_err(invalid)
}

fn sent(digest: &Digest) -> v2::Digest {
    v2::Digest {
        hash: digest.hex(),
        size_bytes: i64::try_from(digest.size()).unwrap_or(i64::MAX),
    }
}

#[tonic::async_trait]
impl ByteStream for Services {
    type ReadStream = BoxStream<'static, Result<ReadResponse, Status>>;

    async fn read(&self, request: Request<ReadRequest>) -> Answer<Self::ReadStream> {
        let name = ReadName::parse(&request.get_ref().resource_name).map_err(invalid)?;
        let chunks = self.blobs.get(&name.digest, 0).await.map_err(status)?;
        let answer = |chunk: Result<Bytes, Error>| match chunk {
            Ok(data) => Ok(ReadResponse { data }),
            Err(error) => Err(status(error)),
        };
        Ok(Response::new(chunks.into_chunks().map(answer).boxed()))
    }

    async fn write(&self, request: Request<Streaming<WriteRequest>>) -> Answer<WriteResponse> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.ok_or_else(|| invalid("empty"))?;
        let name = WriteName::parse(&first.resource_name).map_err(invalid)?;
        let blob = if first.finish_write {
            Blob::Bytes(first.data)
        } else {
            let rest = messages.map(|message| match message {
                Ok(message) => Ok(message.data),
                Err(error) => Err(Error::source(error)),
            });
            Blob::Stream(BlobStream {
                chunks: stream::iter([Ok(first.data)]).chain(rest).boxed(),
                resume: None,
                verified: None,
            })
        };
        self.blobs.put(&name.digest, blob).await.map_err(status)?;
        let committed_size = sent(&name.digest).size_bytes;
        Ok(Response::new(WriteResponse { committed_size }))
    }

    async fn query_write_status(
        &self,
        _: Request<QueryWriteStatusRequest>,
    ) -> Answer<QueryWriteStatusResponse> {
        Err(Status::unimplemented("not measured"))
    }
}

#[tonic::async_trait]
impl ContentAddressableStorage for Services {
    type GetTreeStream = BoxStream<'static, Result<v2::GetTreeResponse, Status>>;

    async fn find_missing_blobs(
        &self,
        request: Request<v2::FindMissingBlobsRequest>,
    ) -> Answer<v2::FindMissingBlobsResponse> {
        let asked = request.get_ref().blob_digests.iter();
        let digests: Vec<_> = asked
            .map(|asked| digest(Some(asked)))
            .collect::<Result<_, _>>()?;
        let missing = self.blobs.find_missing(&digests).await.map_err(status)?;
        Ok(Response::new(v2::FindMissingBlobsResponse {
            missing_blob_digests: missing.iter().map(sent).collect(),
        }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<v2::BatchUpdateBlobsRequest>,
    ) -> Answer<v2::BatchUpdateBlobsResponse> {
        let mut blobs = Vec::new();
        for blob in request.into_inner().requests {
            blobs.push((digest(blob.digest.as_ref())?, blob.data));
        }
        let digests: Vec<_> = blobs.iter().map(|(digest, _)| sent(digest)).collect();
        let stored = self.blobs.put_batch(blobs).await;
        let answer = |(digest, stored): (v2::Digest, Result<_, Error>)| {
            v2::batch_update_blobs_response::Response {
                digest: Some(digest),
                status: Some(code(stored.is_ok())),
            }
        };
        Ok(Response::new(v2::BatchUpdateBlobsResponse {
            responses: digests.into_iter().zip(stored).map(answer).collect(),
        }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<v2::BatchReadBlobsRequest>,
    ) -> Answer<v2::BatchReadBlobsResponse> {
        let asked = request.into_inner().digests;
        let digests: Vec<_> = asked
            .iter()
            .map(|asked| digest(Some(asked)))
            .collect::<Result<_, _>>()?;
        let read = self.blobs.get_batch(&digests).await;
        let answer = |(digest, read): (v2::Digest, Result<Bytes, Error>)| {
            v2::batch_read_blobs_response::Response {
                digest: Some(digest),
                status: Some(code(read.is_ok())),
                data: read.unwrap_or_default(),
                ..Default::default()
            }
        };
        Ok(Response::new(v2::BatchReadBlobsResponse {
            responses: asked.into_iter().zip(read).map(answer).collect(),
        }))
    }

    async fn get_tree(&self, _: Request<v2::GetTreeRequest>) -> Answer<Self::GetTreeStream> {
        Err(Status::unimplemented("not measured"))
    }
}

fn code(ok: bool) -> reapi::rpc::Status {
    reapi::rpc::Status {
        code: if ok { 0 } else { tonic::Code::Internal.into() },
        ..Default::default()
    }
}

#[tonic::async_trait]
impl ActionCacheService for Services {
    async fn get_action_result(
        &self,
        request: Request<v2::GetActionResultRequest>,
    ) -> Answer<v2::ActionResult> {
        let request = request.get_ref();
        let action = digest(request.action_digest.as_ref())?;
        let found = self.actions.find(&request.instance_name, &action).await;
        let result = found.map_err(status)?;
        result
            .map(Response::new)
            .ok_or_else(|| Status::not_found("no result"))
    }

    async fn update_action_result(
        &self,
        request: Request<v2::UpdateActionResultRequest>,
    ) -> Answer<v2::ActionResult> {
        let request = request.into_inner();
        let action = digest(request.action_digest.as_ref())?;
        let result = request.action_result.unwrap_or_default();
        let stored = self
            .actions
            .put(&request.instance_name, &action, result.clone());
        stored.await.map_err(status)?;
        Ok(Response::new(result))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(dir)) = (arguments.next(), arguments.next()) else {
        return Err("usage: behind_tonic IP:PORT DIRECTORY".into());
    };
    let options = LocalOptions {
        dir: PathBuf::from(dir),
        max_bytes: MAX_BYTES,
        wake_bytes: MAX_BYTES,
        lease: Duration::from_hours(3),
        upload_lease: Duration::ZERO,
        force_update_atime: false,
        sync: SyncMode::None,
        scrub_period: None,
        pieces: None,
    };
    let store = Arc::new(LocalStore::open(options).await?);
    let services = Services {
        actions: Arc::new(CompletenessChecking::new(
            Arc::clone(&store),
            Arc::clone(&store) as _,
            Budget::memory("memory for trees", 32 << 20),
        )),
        blobs: store,
    };
    let listener = TcpIncoming::bind(address.parse()?)?.with_nodelay(Some(true));
    let blobs = ContentAddressableStorageServer::new(services.clone());
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .add_service(ByteStreamServer::new(services.clone()))
        .add_service(
            blobs
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(ActionCacheServer::new(services))
        .serve_with_incoming(listener)
        .await?;
    Ok(())
}
