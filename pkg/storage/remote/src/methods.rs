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

pub(super) const GET_CAPABILITIES: Method<v2::GetCapabilitiesRequest, v2::ServerCapabilities> =
    Method::new(
        "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities",
        Shape::FLAT,
    );
pub(super) const GET_RESULT: Method<v2::GetActionResultRequest, v2::ActionResult> = Method::new(
    "/build.bazel.remote.execution.v2.ActionCache/GetActionResult",
    ACTION_RESULT,
);
pub(super) const UPDATE_RESULT: Method<v2::UpdateActionResultRequest, v2::ActionResult> =
    Method::new(
        "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
        ACTION_RESULT,
    );
pub(super) const FIND_MISSING: Method<v2::FindMissingBlobsRequest, v2::FindMissingBlobsResponse> =
    Method::new(
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs",
        Shape(&[Field::messages::<v2::Digest>(2, DIGEST)]),
    );
pub(super) const BATCH_READ: Method<v2::BatchReadBlobsRequest, v2::BatchReadBlobsResponse> =
    Method::new(
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs",
        Shape(
            &[Field::messages::<v2::batch_read_blobs_response::Response>(
                1,
                Shape(&[
                    Field::message(1, DIGEST),
                    Field::blob(2),
                    Field::message(3, STATUS),
                ]),
            )],
        ),
    );
pub(super) const BATCH_UPDATE: Method<v2::BatchUpdateBlobsRequest, v2::BatchUpdateBlobsResponse> =
    Method::new(
        "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs",
        Shape(&[
            Field::messages::<v2::batch_update_blobs_response::Response>(
                1,
                Shape(&[Field::message(1, DIGEST), Field::message(2, STATUS)]),
            ),
        ]),
    );
pub(super) const QUERY_WRITE: Method<
    bytestream::QueryWriteStatusRequest,
    bytestream::QueryWriteStatusResponse,
> = Method::new(
    "/google.bytestream.ByteStream/QueryWriteStatus",
    Shape::FLAT,
);
pub(super) const WRITE: Method<bytestream::WriteRequest, bytestream::WriteResponse> =
    Method::new("/google.bytestream.ByteStream/Write", Shape::FLAT);
/// The path of the one method whose answers are streams.
pub(super) const READ: &str = "/google.bytestream.ByteStream/Read";

/// `google.rpc.Status`.
const STATUS: Shape = Shape(&[Field::messages::<prost_types::Any>(3, Shape::FLAT)]);

impl<Q: Message, R: Message + Default> Method<Q, R> {
    const fn new(path: &'static str, shape: Shape) -> Self {
        Self {
            path,
            shape,
            messages: PhantomData,
        }
    }

    pub(super) const fn call(self, request: Q, limits: Limits) -> Call<Q, R> {
        Call {
            method: self,
            request,
            limits,
            bytes: 0,
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
    /// The size of the content that it moves, in bytes, which gives it more time.
    pub(super) bytes: u64,
}

impl<Q: Message, R: Message + Default> Call<Q, R> {
    /// Makes the call over this connection.
    pub(super) async fn send(&self, link: Link) -> Result<R, Failure> {
        let request = stream::iter([grpc::framed(&self.request)]);
        self.method.stream(link, request, self.limits).await
    }
}
