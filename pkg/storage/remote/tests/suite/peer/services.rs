//! The peer's services.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream, stream::BoxStream};
use gorego_storage::{Compressor, DigestFunction, ReadName, WriteName};
use reapi::{
    bytestream::{
        QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest,
        WriteResponse, byte_stream_server::ByteStream,
    },
    rpc,
    v2::{
        self, action_cache_server::ActionCache, capabilities_server::Capabilities,
        content_addressable_storage_server::ContentAddressableStorage,
    },
};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Act, Call, State, call, key};

type Answer<T> = Result<Response<T>, Status>;

const PIECE: usize = 100_000;

#[derive(Clone)]
pub(super) struct Services(pub(super) Arc<State>);

impl Services {
    /// Answers as the test asks for: properly, with an error, or never.
    async fn begin<T>(&self, call: Call, request: &Request<T>) -> Result<(usize, Act), Status> {
        let act = self.0.act(call.method, request.metadata());
        let number = self.0.called(call);
        match act {
            Act::Fail(code) => Err(Status::new(code, "as told")),
            Act::Stall => std::future::pending().await,
            other => Ok((number, other)),
        }
    }

    /// Receives an upload; returns its content, and `true` if it came to its end.
    async fn receive(
        &self,
        number: usize,
        first: WriteRequest,
        mut messages: Streaming<WriteRequest>,
        act: &Act,
    ) -> Result<(Vec<u8>, bool), Status> {
        let name = first.resource_name.clone();
        let offset = usize::try_from(first.write_offset).unwrap();
        let kept = self.0.partial.lock().unwrap().remove(&name);
        let mut content = kept.unwrap_or_default();
        assert!(content.len() >= offset, "goes on from further");
        content.truncate(offset);
        let (mut message, mut finished) = (Some(first), false);
        while let Some(part) = message {
            assert_eq!(usize::try_from(part.write_offset).unwrap(), content.len());
            content.extend_from_slice(&part.data);
            self.0.calls.lock().unwrap()[number]
                .sizes
                .push(part.data.len());
            finished = part.finish_write;
            if let Act::CutAfter(len) = act
                && content.len() >= *len
            {
                content.truncate(*len);
                self.keep(&name, content);
                return Err(Status::unavailable("cut"));
            }
            message = match messages.message().await {
                Ok(message) => message,
                Err(status) => {
                    self.keep(&name, content);
                    return Err(status);
                }
            };
        }
        Ok((content, finished))
    }

    fn keep(&self, name: &str, content: Vec<u8>) {
        self.0
            .partial
            .lock()
            .unwrap()
            .insert(name.to_owned(), content);
    }

    fn store(&self, name: &str, mut content: Vec<u8>) -> Result<WriteResponse, Status> {
        let parsed = WriteName::parse(name).unwrap();
        let committed_size = i64::try_from(content.len()).unwrap();
        if parsed.compressor == Compressor::Zstd {
            let decoded = zstd::decode_all(&*content);
            content = decoded.map_err(|error| Status::invalid_argument(error.to_string()))?;
        }
        if parsed.digest.function().digest(&content) != parsed.digest {
            return Err(Status::invalid_argument("another hash"));
        }
        let key = parsed.digest.to_string();
        self.0.blobs.lock().unwrap().insert(key, content.into());
        Ok(WriteResponse { committed_size })
    }

    fn status_of(&self, hash: &str) -> Option<Code> {
        let mut statuses = self.0.statuses.lock().unwrap();
        statuses.get_mut(hash)?.pop_front()
    }
}

fn pieces(content: &Bytes, act: &Act) -> Vec<Result<ReadResponse, Status>> {
    let len = match act {
        Act::InMessages(len) => *len,
        _ => PIECE,
    };
    let starts = (0..content.len()).step_by(len);
    let piece = |start: usize| content.slice(start..content.len().min(start + len));
    starts
        .map(|start| Ok(ReadResponse { data: piece(start) }))
        .collect()
}

#[tonic::async_trait]
impl ByteStream for Services {
    type ReadStream = BoxStream<'static, Result<ReadResponse, Status>>;

    async fn read(&self, request: Request<ReadRequest>) -> Answer<Self::ReadStream> {
        let asked = request.get_ref();
        let call = Call {
            offset: asked.read_offset,
            ..call("read", &asked.resource_name)
        };
        let name = ReadName::parse(&asked.resource_name).unwrap();
        let offset = usize::try_from(asked.read_offset).unwrap();
        let (_, act) = self.begin(call, &request).await?;
        let blobs = self.0.blobs.lock().unwrap();
        let found = blobs.get(&name.digest.to_string()).cloned();
        drop(blobs);
        let mut content = match &act {
            Act::Serve(other) => other.clone(),
            _ => found.ok_or_else(|| Status::not_found("no such blob"))?,
        };
        if !matches!(act, Act::FromStart) {
            content = content.slice(offset.min(content.len())..);
        }
        if name.compressor == Compressor::Zstd {
            content = zstd::encode_all(&*content, 1).unwrap().into();
        }
        if let Act::CutAfter(len) | Act::StallAfter(len) = act {
            content.truncate(len);
        }
        let end: BoxStream<'static, _> = match act {
            Act::CutAfter(_) => stream::iter([Err(Status::unavailable("cut"))]).boxed(),
            Act::StallAfter(_) => stream::pending().boxed(),
            Act::FailAtEnd(code) => stream::iter([Err(Status::new(code, "as told"))]).boxed(),
            _ => stream::empty().boxed(),
        };
        let pieces = stream::iter(pieces(&content, &act));
        Ok(Response::new(pieces.chain(end).boxed()))
    }

    async fn write(&self, request: Request<Streaming<WriteRequest>>) -> Answer<WriteResponse> {
        let metadata = request.metadata().clone();
        let mut messages = request.into_inner();
        let first = messages.message().await?.unwrap();
        let name = first.resource_name.clone();
        let mut fake = Request::new(());
        *fake.metadata_mut() = metadata;
        let call = Call {
            offset: first.write_offset,
            ..call("write", &name)
        };
        let (number, act) = self.begin(call, &fake).await?;
        if let Act::Answer(committed_size) | Act::AnswerOnly(committed_size) = act {
            if matches!(act, Act::AnswerOnly(_)) {
                self.0.unread.lock().unwrap().push(messages);
            }
            return Ok(Response::new(WriteResponse { committed_size }));
        }
        let (content, finished) = self.receive(number, first, messages, &act).await?;
        if !finished {
            self.keep(&name, content);
            return Err(Status::invalid_argument("not finished"));
        }
        self.store(&name, content).map(Response::new)
    }

    async fn query_write_status(
        &self,
        request: Request<QueryWriteStatusRequest>,
    ) -> Answer<QueryWriteStatusResponse> {
        let name = request.get_ref().resource_name.clone();
        self.begin(call("query", &name), &request).await?;
        let parsed = WriteName::parse(&name).unwrap();
        let blobs = self.0.blobs.lock().unwrap();
        let complete = blobs.contains_key(&parsed.digest.to_string());
        drop(blobs);
        let partial = self.0.partial.lock().unwrap().get(&name).map(Vec::len);
        let Some(committed) = partial.or(complete.then_some(0)) else {
            return Err(Status::not_found("no such upload"));
        };
        Ok(Response::new(QueryWriteStatusResponse {
            committed_size: committed.try_into().unwrap(),
            complete,
        }))
    }
}

#[tonic::async_trait]
impl ContentAddressableStorage for Services {
    type GetTreeStream = BoxStream<'static, Result<v2::GetTreeResponse, Status>>;

    async fn find_missing_blobs(
        &self,
        request: Request<v2::FindMissingBlobsRequest>,
    ) -> Answer<v2::FindMissingBlobsResponse> {
        let asked = request.get_ref();
        let call = Call {
            sizes: asked
                .blob_digests
                .iter()
                .map(|d| d.size_bytes.try_into().unwrap())
                .collect(),
            function: asked.digest_function,
            ..call("missing", &asked.instance_name)
        };
        let digests = asked.blob_digests.clone();
        let (_, act) = self.begin(call, &request).await?;
        if let Act::Missing(missing_blob_digests) = act {
            return Ok(Response::new(v2::FindMissingBlobsResponse {
                missing_blob_digests,
            }));
        }
        let blobs = self.0.blobs.lock().unwrap();
        let missing = digests
            .into_iter()
            .filter(|digest| !blobs.contains_key(&key(digest)));
        Ok(Response::new(v2::FindMissingBlobsResponse {
            missing_blob_digests: missing.collect(),
        }))
    }

    async fn batch_update_blobs(
        &self,
        request: Request<v2::BatchUpdateBlobsRequest>,
    ) -> Answer<v2::BatchUpdateBlobsResponse> {
        let asked = request.get_ref().clone();
        let call = Call {
            sizes: asked.requests.iter().map(|blob| blob.data.len()).collect(),
            function: asked.digest_function,
            ..call("update", &asked.instance_name)
        };
        let (_, act) = self.begin(call, &request).await?;
        if let Act::Entries(count) = act {
            let responses = vec![v2::batch_update_blobs_response::Response::default(); count];
            return Ok(Response::new(v2::BatchUpdateBlobsResponse { responses }));
        }
        let responses = asked.requests.into_iter().map(|blob| {
            let digest = blob.digest.unwrap();
            let data = match Compressor::from_proto(blob.compressor).unwrap() {
                Compressor::Identity => blob.data,
                Compressor::Zstd => zstd::decode_all(&*blob.data).unwrap().into(),
            };
            let function = DigestFunction::from_proto(asked.digest_function)
                .unwrap()
                .unwrap();
            let right = function.digest(&data).to_proto() == digest;
            let code = self.status_of(&digest.hash).unwrap_or(if right {
                Code::Ok
            } else {
                Code::InvalidArgument
            });
            if code == Code::Ok {
                self.0.blobs.lock().unwrap().insert(key(&digest), data);
            }
            v2::batch_update_blobs_response::Response {
                digest: Some(digest),
                status: Some(status(code)),
            }
        });
        Ok(Response::new(v2::BatchUpdateBlobsResponse {
            responses: responses.collect(),
        }))
    }

    async fn batch_read_blobs(
        &self,
        request: Request<v2::BatchReadBlobsRequest>,
    ) -> Answer<v2::BatchReadBlobsResponse> {
        let asked = request.get_ref().clone();
        let call = Call {
            sizes: asked
                .digests
                .iter()
                .map(|d| d.size_bytes.try_into().unwrap())
                .collect(),
            function: asked.digest_function,
            ..call("batch_read", &asked.instance_name)
        };
        let (_, act) = self.begin(call, &request).await?;
        if let Act::Entries(count) = act {
            let responses = vec![v2::batch_read_blobs_response::Response::default(); count];
            return Ok(Response::new(v2::BatchReadBlobsResponse { responses }));
        }
        let zstd = asked
            .acceptable_compressors
            .contains(&(Compressor::Zstd.to_proto() as i32));
        let responses = asked.digests.into_iter().map(|digest| {
            let found = self.0.blobs.lock().unwrap().get(&key(&digest)).cloned();
            let found = match &act {
                Act::Serve(other) => Some(other.clone()),
                _ => found,
            };
            let code = self.status_of(&digest.hash);
            let code = code.unwrap_or(if found.is_some() {
                Code::Ok
            } else {
                Code::NotFound
            });
            let data = found.filter(|_| code == Code::Ok).unwrap_or_default();
            let (compressor, data) = if zstd {
                (
                    Compressor::Zstd,
                    zstd::encode_all(&*data, 1).unwrap().into(),
                )
            } else {
                (Compressor::Identity, data)
            };
            v2::batch_read_blobs_response::Response {
                digest: Some(digest),
                data,
                compressor: compressor.to_proto() as i32,
                status: Some(status(code)),
            }
        });
        Ok(Response::new(v2::BatchReadBlobsResponse {
            responses: responses.collect(),
        }))
    }

    async fn get_tree(&self, _: Request<v2::GetTreeRequest>) -> Answer<Self::GetTreeStream> {
        Err(Status::unimplemented("not asked"))
    }
}

fn status(code: Code) -> rpc::Status {
    rpc::Status {
        code: code as i32,
        message: "as told".to_owned(),
        details: Vec::new(),
    }
}

#[tonic::async_trait]
impl ActionCache for Services {
    async fn get_action_result(
        &self,
        request: Request<v2::GetActionResultRequest>,
    ) -> Answer<v2::ActionResult> {
        let asked = request.get_ref().clone();
        self.begin(call("result", &asked.instance_name), &request)
            .await?;
        let key = asked.instance_name + &asked.action_digest.unwrap().hash;
        let found = self.0.results.lock().unwrap().get(&key).cloned();
        found
            .map(Response::new)
            .ok_or_else(|| Status::not_found("no result"))
    }

    async fn update_action_result(
        &self,
        request: Request<v2::UpdateActionResultRequest>,
    ) -> Answer<v2::ActionResult> {
        let asked = request.get_ref().clone();
        self.begin(call("update_result", &asked.instance_name), &request)
            .await?;
        let key = asked.instance_name + &asked.action_digest.unwrap().hash;
        let result = asked.action_result.unwrap();
        self.0.results.lock().unwrap().insert(key, result.clone());
        Ok(Response::new(result))
    }
}

#[tonic::async_trait]
impl Capabilities for Services {
    async fn get_capabilities(
        &self,
        request: Request<v2::GetCapabilitiesRequest>,
    ) -> Answer<v2::ServerCapabilities> {
        let name = request.get_ref().instance_name.clone();
        self.begin(call("capabilities", &name), &request).await?;
        Ok(Response::new(v2::ServerCapabilities {
            cache_capabilities: Some(self.0.capabilities.lock().unwrap().clone()),
            ..v2::ServerCapabilities::default()
        }))
    }
}
