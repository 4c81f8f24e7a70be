//! The methods of a peer, and the memory that their answers take.

use std::marker::PhantomData;

use bytes::Bytes;
use futures::{Stream, stream};
use gorego_storage::decoded::{ACTION_RESULT, DIGEST, Field, Shape};
use prost::Message;
use reapi::{bytestream, v2};
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
    shape: Shape,
    messages: PhantomData<fn(Q) -> R>,
}

/// The most bytes that an answer may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) encoded: usize,
    /// The memory that decoding may take beside that.
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
    ($($name:ident: $request:ty => $answer:ty, $path:literal, $shape:expr;)*) => {$(
        pub(super) const $name: Method<$request, $answer> = Method {
            path: $path,
            shape: $shape,
            messages: PhantomData,
        };
    )*};
}

methods! {
    GET_CAPABILITIES: v2::GetCapabilitiesRequest => v2::ServerCapabilities,
        "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities", Shape::FLAT;
    GET_RESULT: v2::GetActionResultRequest => v2::ActionResult,
        "/build.bazel.remote.execution.v2.ActionCache/GetActionResult", ACTION_RESULT;
    UPDATE_RESULT: v2::UpdateActionResultRequest => v2::ActionResult,
        "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult", ACTION_RESULT;
    FIND_MISSING: v2::FindMissingBlobsRequest => v2::FindMissingBlobsResponse,
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs", MISSING;
    BATCH_READ: v2::BatchReadBlobsRequest => v2::BatchReadBlobsResponse,
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs", READ_BLOBS;
    BATCH_UPDATE: v2::BatchUpdateBlobsRequest => v2::BatchUpdateBlobsResponse,
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs", UPDATED;
    QUERY_WRITE: bytestream::QueryWriteStatusRequest => bytestream::QueryWriteStatusResponse,
        "/google.bytestream.ByteStream/QueryWriteStatus", Shape::FLAT;
    WRITE: bytestream::WriteRequest => bytestream::WriteResponse,
        "/google.bytestream.ByteStream/Write", Shape::FLAT;
}

/// The path of the one method whose answers are streams.
pub(super) const READ: &str = "/google.bytestream.ByteStream/Read";

const MISSING: Shape = Shape(&[Field::messages::<v2::Digest>(2, DIGEST)]);
const READ_BLOBS: Shape = Shape(
    &[Field::messages::<v2::batch_read_blobs_response::Response>(
        1, READ_BLOB,
    )],
);
const READ_BLOB: Shape = Shape(&[
    Field::message(1, DIGEST),
    Field::blob(2),
    Field::message(3, STATUS),
]);
const UPDATED: Shape =
    Shape(&[Field::messages::<v2::batch_update_blobs_response::Response>(1, UPDATED_BLOB)]);
const UPDATED_BLOB: Shape = Shape(&[Field::message(1, DIGEST), Field::message(2, STATUS)]);
/// `google.rpc.Status`.
const STATUS: Shape = Shape(&[Field::messages::<prost_types::Any>(3, Shape::FLAT)]);

impl<Q: Message, R: Message + Default> Method<Q, R> {
    /// A call that moves `bytes` bytes of content, which give it more time.
    pub(super) const fn call(self, request: Q, limits: Limits, bytes: u64) -> Call<Q, R> {
        Call {
            method: self,
            request,
            limits,
            bytes,
        }
    }

    /// Sends framed requests as they come, and returns the answer.
    pub(super) async fn stream(
        &self,
        link: Link,
        requests: impl Stream<Item = Bytes> + Send + 'static,
        limits: Limits,
    ) -> Result<R, Failure> {
        let answer = link.call(self.path, grpc::body(requests)).await?;
        let answer = answer.only(limits.encoded).await?;
        let method = self.path.rsplit('/').next().unwrap_or_default();
        let malformed = |why: String| Status::data_loss(format!("its answer to {method}: {why}"));
        let fits = self.shape.decoded_bytes(&answer, limits.decoded);
        fits.map_err(|why| malformed(why.to_string()))?;
        Ok(R::decode(answer).map_err(|why| malformed(why.to_string()))?)
    }
}

/// A call that can be made several times.
pub(super) struct Call<Q, R> {
    method: Method<Q, R>,
    request: Q,
    limits: Limits,
    pub(super) bytes: u64,
}

impl<Q: Message, R: Message + Default> Call<Q, R> {
    /// Makes the call over this connection.
    pub(super) async fn send(&self, link: Link) -> Result<R, Failure> {
        let request = stream::iter([grpc::framed(&self.request)]);
        self.method.stream(link, request, self.limits).await
    }
}
