//! The methods of a peer.

use bytes::Bytes;
use futures::{Stream, stream as streams};
use prost::Message;
use reapi::{bytestream, shapes::Shaped, v2};
use tonic::Status;

use super::{
    failure::Failure,
    grpc::{self, Link},
};

/// The largest answer that gRPC accepts by default, in bytes.
pub(super) const DEFAULT_MESSAGE: usize = 4 << 20;

/// A request, which determines the method and its answer.
pub(super) trait Request: Message {
    type Answer: Shaped;
    const PATH: &'static str;
}

/// The most bytes that an answer may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) encoded: usize,
    /// The memory that decoding may take besides.
    pub(super) decoded: usize,
}

impl Limits {
    /// Creates the limits of an answer of gRPC's default size.
    pub(super) const fn decoded(decoded: usize) -> Self {
        let encoded = DEFAULT_MESSAGE;
        Self { encoded, decoded }
    }
}

macro_rules! methods {
    ($($request:ty => $answer:ty, $path:literal;)*) => {$(
        impl Request for $request {
            type Answer = $answer;
            const PATH: &'static str = $path;
        }
    )*};
}

methods! {
    v2::GetCapabilitiesRequest => v2::ServerCapabilities,
        "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities";
    v2::GetActionResultRequest => v2::ActionResult,
        "/build.bazel.remote.execution.v2.ActionCache/GetActionResult";
    v2::UpdateActionResultRequest => v2::ActionResult,
        "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult";
    v2::FindMissingBlobsRequest => v2::FindMissingBlobsResponse,
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs";
    v2::BatchReadBlobsRequest => v2::BatchReadBlobsResponse,
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs";
    v2::BatchUpdateBlobsRequest => v2::BatchUpdateBlobsResponse,
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs";
    bytestream::QueryWriteStatusRequest => bytestream::QueryWriteStatusResponse,
        "/google.bytestream.ByteStream/QueryWriteStatus";
    bytestream::WriteRequest => bytestream::WriteResponse,
        "/google.bytestream.ByteStream/Write";
}

/// The path of the one method whose answers are streams.
pub(super) const READ: &str = "/google.bytestream.ByteStream/Read";

/// Sends framed requests as they arrive, and returns the answer.
pub(super) async fn stream<Q: Request>(
    link: Link,
    requests: impl Stream<Item = Bytes> + Send + 'static,
    limits: Limits,
) -> Result<Q::Answer, Failure> {
    let answer = link.call(Q::PATH, grpc::body(requests)).await?;
    let answer = answer.only(limits.encoded).await?;
    let method = Q::PATH.rsplit('/').next().unwrap_or_default();
    let answer = Q::Answer::decode_within(answer, limits.decoded);
    let malformed = |why| Status::data_loss(format!("its answer to {method}: {why}"));
    Ok(answer.map_err(malformed)?)
}

/// A request, the limits of its answer, and the bytes of content that it moves, which extend its time limit.
pub(super) struct Call<Q>(pub(super) Q, pub(super) Limits, pub(super) u64);

impl<Q: Request> Call<Q> {
    pub(super) async fn send(&self, link: Link) -> Result<Q::Answer, Failure> {
        let Self(request, limits, _) = self;
        let request = streams::iter([grpc::framed(request)]);
        stream::<Q>(link, request, *limits).await
    }
}

pub(super) fn capabilities(instance: &str) -> Call<v2::GetCapabilitiesRequest> {
    let instance_name = instance.to_owned();
    let request = v2::GetCapabilitiesRequest { instance_name };
    Call(request, Limits::decoded(usize::MAX), 0)
}
