//! Calls to the services of other nodes, whose messages pass through encoded.

use std::error::Error as _;

use bytes::{Buf as _, BufMut as _, Bytes};
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use http::uri::PathAndQuery;
use tonic::{
    Code, Request, Status,
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
    let answer = answer.await.map_err(broken)?;
    Ok(answer.into_inner().map_err(broken).boxed())
}

/// Returns the error of a call: `UNAVAILABLE` if the connection broke, for which tonic reports `UNKNOWN`.
fn broken(status: Status) -> Status {
    match status.code() {
        // The status of another node has no source.
        Code::Unknown if status.source().is_some() => Status::unavailable(status.message()),
        _ => status,
    }
}

/// Passes messages through without decoding them.
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
