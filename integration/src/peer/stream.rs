//! `ByteStream`.

use std::{pin::Pin, sync::Arc};

use bytes::BytesMut;
use reapi::bytestream::{
    QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, ReadResponse, WriteRequest,
    WriteResponse, byte_stream_server::ByteStream,
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    Fault, Method,
    blob::{compress, decompress},
    fault::{Step, script},
    name::Name,
    state::{Running, Service, Shared},
};

/// The content bytes in one message of a `Read`.
const PIECE: usize = 64 * 1024;

type ReadStream = Pin<Box<dyn Stream<Item = Result<ReadResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ByteStream for Service {
    type ReadStream = ReadStream;

    async fn read(
        &self,
        request: Request<ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let (headers, _, request) = request.into_parts();
        let name = Name::parse(&request.resource_name);
        let call = self.begin(Method::Read, &headers, |call| {
            call.digests = 1;
            call.offset = request.read_offset;
            call.resource.clone_from(&request.resource_name);
            if let Ok(name) = &name {
                call.instance.clone_from(&name.instance);
            }
        });
        let call = call.await?;
        match name.and_then(|name| self.steps(&name, &request, call.fault)) {
            Err(refusal) => call.end(Err(refusal)),
            Ok(steps) => Ok(Response::new(play(call, steps))),
        }
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        let (headers, _, mut messages) = request.into_parts();
        let call = self.begin(Method::Write, &headers, |call| call.digests = 1);
        let call = call.await?;
        let result = self.receive(&call, &mut messages).await;
        let response = |committed_size| Response::new(WriteResponse { committed_size });
        call.end(result.map(response))
    }

    async fn query_write_status(
        &self,
        request: Request<QueryWriteStatusRequest>,
    ) -> Result<Response<QueryWriteStatusResponse>, Status> {
        let (headers, _, request) = request.into_parts();
        let name = Name::parse(&request.resource_name);
        let call = self.begin(Method::QueryWriteStatus, &headers, |call| {
            call.digests = 1;
            call.resource.clone_from(&request.resource_name);
            if let Ok(name) = &name {
                call.instance.clone_from(&name.instance);
            }
        });
        let call = call.await?;
        call.end(name.map(|name| {
            let (complete, held) = self.inspect(|state| {
                let held = state.partials.get(&request.resource_name);
                // The content size of partial compressed uploads is unknown.
                let held = held.filter(|_| !name.zstd).map_or(0, BytesMut::len);
                (state.content(&name.key).is_some(), held)
            });
            let committed_size = if complete { name.key.size } else { size(held) };
            Response::new(QueryWriteStatusResponse {
                committed_size,
                complete,
            })
        }))
    }
}

impl Shared {
    /// Returns the steps of a `Read`.
    fn steps(
        &self,
        name: &Name,
        request: &ReadRequest,
        fault: Option<Fault>,
    ) -> Result<Vec<Step>, Status> {
        self.accept(name)?;
        let content = self.inspect(|state| state.content(&name.key));
        let content =
            content.ok_or_else(|| Status::not_found(format!("{} is missing", name.key.hash)))?;
        let (offset, limit) = (request.read_offset, request.read_limit);
        let from = usize::try_from(offset).ok().filter(|&o| o <= content.len());
        let from = from.ok_or_else(|| Status::out_of_range(format!("read_offset {offset}")))?;
        let most = match usize::try_from(limit) {
            Ok(0) => content.len(),
            Ok(most) if !name.zstd => most,
            _ => return Err(Status::invalid_argument(format!("read_limit {limit}"))),
        };
        let mut content = content.slice(from..content.len().min(from.saturating_add(most)));
        if name.zstd {
            content = compress(&content);
        }
        Ok(script(fault, content, PIECE))
    }

    /// Returns an error for an unsupported compressor or digest function.
    fn accept(&self, name: &Name) -> Result<(), Status> {
        self.function(name.function.into())?;
        if name.zstd && !self.compresses() {
            return Err(Status::invalid_argument("zstd is not supported"));
        }
        Ok(())
    }

    /// Receives a whole `Write` and returns the committed size.
    async fn receive(
        &self,
        call: &Running,
        messages: &mut Streaming<WriteRequest>,
    ) -> Result<i64, Status> {
        let first = messages.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("a write without a message"))?;
        let resource = first.resource_name.clone();
        call.record(|call| {
            call.offset = first.write_offset;
            call.resource.clone_from(&resource);
        });
        let name = Name::parse(&resource)?;
        call.record(|call| call.instance.clone_from(&name.instance));
        self.accept(&name)?;
        if name.upload.is_none() {
            return Err(Status::invalid_argument(format!(
                "'{resource}' is no upload"
            )));
        }
        let there = self.inspect(|state| state.content(&name.key).is_some());
        if there || call.fault == Some(Fault::AlreadyThere) {
            return Ok(if name.zstd { -1 } else { name.key.size });
        }
        let mut upload = Upload::begin(self, call, name, resource);
        let mut next = Some(first);
        while let Some(message) = next {
            let finish = message.finish_write;
            upload.take(message).await?;
            if finish {
                return upload.finish();
            }
            next = messages.message().await?;
        }
        Err(Status::cancelled("the write ended before it was finished"))
    }
}

/// An upload in progress. Its bytes stay for resumption unless they are compressed.
struct Upload<'a> {
    shared: &'a Shared,
    call: &'a Running,
    name: Name,
    resource: String,
    stop: Option<(usize, Step)>,
    /// Bytes received by this call.
    received: usize,
}

impl<'a> Upload<'a> {
    fn begin(shared: &'a Shared, call: &'a Running, name: Name, resource: String) -> Self {
        if name.zstd {
            shared.change(|state| state.partials.remove(&resource));
        }
        Self {
            shared,
            call,
            name,
            resource,
            stop: call.fault.and_then(Fault::stop),
            received: 0,
        }
    }

    async fn take(&mut self, message: WriteRequest) -> Result<(), Status> {
        let WriteRequest {
            resource_name,
            write_offset,
            mut data,
            ..
        } = message;
        if !resource_name.is_empty() && resource_name != self.resource {
            return Err(Status::invalid_argument(format!(
                "'{resource_name}' is another resource"
            )));
        }
        let mut offset = write_offset;
        while let Some((at, _)) = self.stop
            && at <= self.received + data.len()
        {
            let before = data.split_to(at - self.received);
            self.keep(offset, &before)?;
            offset += size(before.len());
            match self.stop.take() {
                Some((_, Step::Fail(status))) => return Err(status),
                _ => self.shared.stall(self.call.releases).await,
            }
        }
        self.keep(offset, &data)
    }

    fn keep(&mut self, offset: i64, data: &[u8]) -> Result<(), Status> {
        self.received += data.len();
        self.call.received(data.len());
        self.shared.change(|state| {
            let held = state.partials.entry(self.resource.clone()).or_default();
            let at = usize::try_from(offset).ok().filter(|&at| at <= held.len());
            let at = at.ok_or_else(|| {
                let held = held.len();
                Status::invalid_argument(format!(
                    "write_offset {offset} after {held} received bytes"
                ))
            })?;
            held.truncate(at);
            held.extend_from_slice(data);
            Ok(())
        })
    }

    fn finish(self) -> Result<i64, Status> {
        let Self { shared, name, .. } = self;
        let received = shared.change(|state| state.partials.remove(&self.resource));
        let received = received.unwrap_or_default().freeze();
        let committed = size(received.len());
        let content = if name.zstd {
            decompress(&received, name.key.size)?
        } else {
            received
        };
        name.key.check(name.function, &content)?;
        shared.change(|state| state.blobs.insert(name.key, content));
        Ok(committed)
    }
}

/// Runs the steps one after the other.
fn play(mut call: Running, steps: Vec<Step>) -> ReadStream {
    let (shared, releases) = (Arc::clone(&call.shared), call.releases);
    let answers = tokio_stream::iter(steps).then(move |step| {
        match &step {
            Step::Send(bytes) => call.sent(bytes.len()),
            Step::Fail(status) => call.ends(status.code()),
            Step::Done => call.ends(Code::Ok),
            Step::Stall => {}
        }
        let shared = Arc::clone(&shared);
        async move {
            match step {
                Step::Send(data) => Some(Ok(ReadResponse { data })),
                Step::Fail(status) => Some(Err(status)),
                Step::Done => None,
                Step::Stall => {
                    shared.stall(releases).await;
                    None
                }
            }
        }
    });
    Box::pin(answers.filter_map(|answer| answer))
}

fn size(bytes: usize) -> i64 {
    i64::try_from(bytes).expect("a size in memory")
}
