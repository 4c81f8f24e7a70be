//! The methods of a peer.

use std::marker::PhantomData;

use bytes::Bytes;
use futures::{Stream, stream};
use prost::Message;
use reapi::{bytestream, shapes::Shaped, v2};
use tonic::Status;

use super::{
    failure::Failure,
    grpc::{self, Link},
};

/// The largest answer that gRPC accepts by default, in bytes.
pub(super) const DEFAULT_MESSAGE: usize = 4 << 20;

/// A method that takes `Q`s and answers an `R`.
pub(super) struct Method<Q, R> {
    path: &'static str,
    messages: PhantomData<fn(Q) -> R>,
}

/// The most bytes that an answer may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) encoded: usize,
    /// The memory that decoding may take besides.
    pub(super) decoded: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            encoded: DEFAULT_MESSAGE,
            decoded: usize::MAX,
        }
    }
}

macro_rules! methods {
    ($($name:ident: $request:ty => $answer:ty, $path:literal;)*) => {$(
        pub(super) const $name: Method<$request, $answer> = Method {
            path: $path,
            messages: PhantomData,
        };
    )*};
}

methods! {
    GET_CAPABILITIES: v2::GetCapabilitiesRequest => v2::ServerCapabilities,
        "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities";
    GET_RESULT: v2::GetActionResultRequest => v2::ActionResult,
        "/build.bazel.remote.execution.v2.ActionCache/GetActionResult";
    UPDATE_RESULT: v2::UpdateActionResultRequest => v2::ActionResult,
        "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult";
    FIND_MISSING: v2::FindMissingBlobsRequest => v2::FindMissingBlobsResponse,
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs";
    BATCH_READ: v2::BatchReadBlobsRequest => v2::BatchReadBlobsResponse,
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs";
    BATCH_UPDATE: v2::BatchUpdateBlobsRequest => v2::BatchUpdateBlobsResponse,
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs";
    QUERY_WRITE: bytestream::QueryWriteStatusRequest => bytestream::QueryWriteStatusResponse,
        "/google.bytestream.ByteStream/QueryWriteStatus";
    WRITE: bytestream::WriteRequest => bytestream::WriteResponse,
        "/google.bytestream.ByteStream/Write";
}

/// The path of the one method whose answers are streams.
pub(super) const READ: &str = "/google.bytestream.ByteStream/Read";

impl<Q: Message, R: Shaped> Method<Q, R> {
    /// Returns a call that moves `bytes` bytes of content, which extend its time limit.
    pub(super) const fn call(self, request: Q, limits: Limits, bytes: u64) -> Call<Q, R> {
        Call {
            method: self,
            request,
            limits,
            bytes,
        }
    }

    /// Sends framed requests as they arrive, and returns the answer.
    pub(super) async fn stream(
        &self,
        link: Link,
        requests: impl Stream<Item = Bytes> + Send + 'static,
        limits: Limits,
    ) -> Result<R, Failure> {
        let answer = link.call(self.path, grpc::body(requests)).await?;
        let answer = answer.only(limits.encoded).await?;
        let method = self.path.rsplit('/').next().unwrap_or_default();
        let answer = R::decode_within(answer, limits.decoded);
        let malformed = |why| Status::data_loss(format!("its answer to {method}: {why}"));
        Ok(answer.map_err(malformed)?)
    }
}

/// Returns the call that requests the capabilities.
pub(super) fn capabilities(
    instance: &str,
) -> Call<v2::GetCapabilitiesRequest, v2::ServerCapabilities> {
    let request = v2::GetCapabilitiesRequest {
        instance_name: instance.to_owned(),
    };
    GET_CAPABILITIES.call(request, Limits::default(), 0)
}

/// A call that can be retried.
pub(super) struct Call<Q, R> {
    method: Method<Q, R>,
    request: Q,
    limits: Limits,
    pub(super) bytes: u64,
}

impl<Q: Message, R: Shaped> Call<Q, R> {
    /// Makes the call over this connection.
    pub(super) async fn send(&self, link: Link) -> Result<R, Failure> {
        let request = stream::iter([grpc::framed(&self.request)]);
        self.method.stream(link, request, self.limits).await
    }
}
