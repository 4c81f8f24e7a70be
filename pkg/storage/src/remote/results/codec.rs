//! Calls that are answered with an action result, which is looked at before it takes memory.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::Message;
use reapi::v2::ActionResult;
use tonic::{
    IntoRequest as _, Response, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};

use super::{super::connect::Link, MAX_RESULT};
use crate::decoded::{ACTION_RESULT, MAX_DECODED_RESULT};

/// Calls the method at `path`.
pub(super) async fn call<M: Message + 'static>(
    link: Link,
    request: M,
    path: &'static str,
) -> Result<Response<ActionResult>, Status> {
    let mut client = Grpc::new(link).max_decoding_message_size(MAX_RESULT);
    client
        .ready()
        .await
        .map_err(|why| Status::from_error(why.into()))?;
    let path = PathAndQuery::from_static(path);
    client
        .unary(request.into_request(), path, Results(PhantomData))
        .await
}

struct Results<M>(PhantomData<M>);

impl<M: Message + 'static> Codec for Results<M> {
    type Encode = M;
    type Decode = ActionResult;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(PhantomData)
    }

    fn decoder(&mut self) -> Self {
        Self(PhantomData)
    }
}

impl<M: Message> Encoder for Results<M> {
    type Item = M;
    type Error = Status;

    fn encode(&mut self, message: M, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message
            .encode(to)
            .map_err(|why| Status::internal(why.to_string()))
    }
}

impl<M: Message> Decoder for Results<M> {
    type Item = ActionResult;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<ActionResult>, Status> {
        let encoded = from.copy_to_bytes(from.remaining());
        ACTION_RESULT
            .decoded_bytes(&encoded, MAX_DECODED_RESULT)
            .map_err(|why| Status::data_loss(format!("its action result: {why}")))?;
        let result = ActionResult::decode(encoded);
        let result =
            result.map_err(|why| Status::data_loss(format!("its action result: {why}")))?;
        Ok(Some(result))
    }
}
