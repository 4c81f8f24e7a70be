//! Calls whose answers are looked at before they take memory.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use reapi::v2;
use tonic::{
    IntoRequest as _, Response, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};

use super::connect::Link;
use gorego_storage::decoded::{ACTION_RESULT, DIGEST, Field, Shape};

/// A method, and what its answers are made of.
pub(super) struct Method<R> {
    path: &'static str,
    /// What an answer is called.
    what: &'static str,
    shape: Shape,
    answer: PhantomData<R>,
}

/// The most that an answer may have, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) encoded: usize,
    /// What decoding it may take beside that.
    pub(super) decoded: usize,
}

const RESULT: &str = "its action result";
const ANSWER: &str = "its answer";

pub(super) const GET_RESULT: Method<v2::ActionResult> = Method::new(
    "/build.bazel.remote.execution.v2.ActionCache/GetActionResult",
    RESULT,
    ACTION_RESULT,
);
pub(super) const UPDATE_RESULT: Method<v2::ActionResult> = Method::new(
    "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
    RESULT,
    ACTION_RESULT,
);
pub(super) const FIND_MISSING: Method<v2::FindMissingBlobsResponse> = Method::new(
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs",
    ANSWER,
    Shape(&[Field::messages::<v2::Digest>(2, DIGEST)]),
);
pub(super) const BATCH_READ: Method<v2::BatchReadBlobsResponse> = Method::new(
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs",
    ANSWER,
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
pub(super) const BATCH_UPDATE: Method<v2::BatchUpdateBlobsResponse> = Method::new(
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs",
    ANSWER,
    Shape(&[
        Field::messages::<v2::batch_update_blobs_response::Response>(
            1,
            Shape(&[Field::message(1, DIGEST), Field::message(2, STATUS)]),
        ),
    ]),
);

/// `google.rpc.Status`.
const STATUS: Shape = Shape(&[Field::messages::<prost_types::Any>(3, Shape::FLAT)]);

impl<R> Method<R> {
    const fn new(path: &'static str, what: &'static str, shape: Shape) -> Self {
        let answer = PhantomData;
        Self {
            path,
            what,
            shape,
            answer,
        }
    }
}

/// Calls a method. An answer beyond the limits is `DATA_LOSS`.
pub(super) async fn call<M, R>(
    link: Link,
    request: M,
    method: &Method<R>,
    limits: Limits,
) -> Result<Response<R>, Status>
where
    M: Message + 'static,
    R: Message + Default + 'static,
{
    let mut client = Grpc::new(link).max_decoding_message_size(limits.encoded);
    client
        .ready()
        .await
        .map_err(|why| Status::from_error(why.into()))?;
    let codec = Bounded {
        what: method.what,
        shape: method.shape,
        limit: limits.decoded,
        messages: PhantomData,
    };
    let path = PathAndQuery::from_static(method.path);
    client.unary(request.into_request(), path, codec).await
}

struct Bounded<M, R> {
    what: &'static str,
    shape: Shape,
    limit: usize,
    messages: PhantomData<(M, R)>,
}

impl<M, R> Bounded<M, R> {
    const fn again(&self) -> Self {
        Self {
            what: self.what,
            shape: self.shape,
            limit: self.limit,
            messages: PhantomData,
        }
    }
}

impl<M, R> Codec for Bounded<M, R>
where
    M: Message + 'static,
    R: Message + Default + 'static,
{
    type Encode = M;
    type Decode = R;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.again()
    }

    fn decoder(&mut self) -> Self {
        self.again()
    }
}

impl<M: Message, R> Encoder for Bounded<M, R> {
    type Item = M;
    type Error = Status;

    fn encode(&mut self, message: M, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message
            .encode(to)
            .map_err(|why| Status::internal(why.to_string()))
    }
}

impl<M, R: Message + Default> Decoder for Bounded<M, R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        let encoded = from.copy_to_bytes(from.remaining());
        let unfit = |why: String| Status::data_loss(format!("{}: {why}", self.what));
        self.shape
            .decoded_bytes(&encoded, self.limit)
            .map_err(|why| unfit(why.to_string()))?;
        let answer = R::decode(encoded).map_err(|why| unfit(why.to_string()))?;
        Ok(Some(answer))
    }
}
