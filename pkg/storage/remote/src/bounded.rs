//! Calls whose answers are looked at before they take memory.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use reapi::{shapes::Shaped, v2};
use tonic::{
    IntoRequest as _, Response, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};

use super::connect::Link;

/// A method, and the type of its answers.
pub(super) struct Method<R> {
    path: &'static str,
    /// What an answer is called.
    what: &'static str,
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
);
pub(super) const UPDATE_RESULT: Method<v2::ActionResult> = Method::new(
    "/build.bazel.remote.execution.v2.ActionCache/UpdateActionResult",
    RESULT,
);
pub(super) const FIND_MISSING: Method<v2::FindMissingBlobsResponse> = Method::new(
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs",
    ANSWER,
);
pub(super) const BATCH_READ: Method<v2::BatchReadBlobsResponse> = Method::new(
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs",
    ANSWER,
);
pub(super) const BATCH_UPDATE: Method<v2::BatchUpdateBlobsResponse> = Method::new(
    "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchUpdateBlobs",
    ANSWER,
);

impl<R> Method<R> {
    const fn new(path: &'static str, what: &'static str) -> Self {
        let answer = PhantomData;
        Self { path, what, answer }
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
    R: Shaped + 'static,
{
    let mut client = Grpc::new(link).max_decoding_message_size(limits.encoded);
    client
        .ready()
        .await
        .map_err(|why| Status::from_error(why.into()))?;
    let codec = Bounded {
        what: method.what,
        limit: limits.decoded,
        messages: PhantomData,
    };
    let path = PathAndQuery::from_static(method.path);
    client.unary(request.into_request(), path, codec).await
}

struct Bounded<M, R> {
    what: &'static str,
    limit: usize,
    messages: PhantomData<(M, R)>,
}

impl<M, R> Bounded<M, R> {
    const fn again(&self) -> Self {
        Self {
            what: self.what,
            limit: self.limit,
            messages: PhantomData,
        }
    }
}

impl<M, R> Codec for Bounded<M, R>
where
    M: Message + 'static,
    R: Shaped + 'static,
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

impl<M, R: Shaped> Decoder for Bounded<M, R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        let encoded = from.copy_to_bytes(from.remaining());
        let answer = R::decode_within(encoded, self.limit);
        let answer = answer.map_err(|why| Status::data_loss(format!("{}: {why}", self.what)))?;
        Ok(Some(answer))
    }
}
