//! Calls to the services of other nodes, whose messages pass through encoded.

use bytes::{Buf as _, BufMut as _, Bytes};
use futures::{StreamExt as _, stream::BoxStream};
use http::uri::PathAndQuery;
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

/// The largest message of another node, in bytes: a page of operations, or a result with inline outputs.
const MAX_MESSAGE: usize = 64 << 20;

/// Makes a call with one message at `path`, and returns the messages of the answer.
pub async fn call(
    channel: Channel,
    path: &str,
    request: Bytes,
) -> Result<BoxStream<'static, Result<Bytes, Status>>, Status> {
    let path = PathAndQuery::try_from(path).map_err(|why| Status::internal(why.to_string()))?;
    let mut client = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let ready = client.ready().await;
    ready.map_err(|why| Status::unavailable(why.to_string()))?;
    let answer = client.server_streaming(Request::new(request), path, Encoded);
    Ok(answer.await?.into_inner().boxed())
}

/// Takes messages as they are.
#[derive(Clone, Copy, Debug)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
