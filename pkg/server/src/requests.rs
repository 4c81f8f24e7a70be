//! Decodes requests within the memory that calls share.

use bytes::Bytes;
use gorego_limits::Permit;
use gorego_storage::decoded::MAX_DECODED_RESULT;
use prost::Message;
use reapi::shapes::{DecodeError, Shaped};
use tonic::Status;

use crate::{
    Memory,
    grpc::{Body, Call, Limit, Response, is_large, reply, run},
    memory::full,
};

/// The most memory that a decoded request may take, in bytes: a full batch of some 130,000 blobs. An
/// action result may take as much, so that whatever is stored can be read again.
const MAX_DECODED: usize = MAX_DECODED_RESULT;

/// Answers a method with one request of at most `limit` bytes, and one response.
pub(crate) async fn unary<Q, R>(
    call: Call,
    limit: impl Into<Limit>,
    handler: impl AsyncFnOnce(Q) -> Result<R, Status>,
) -> Response
where
    Q: Shaped + Send + 'static,
    R: Message,
{
    let memory = call.memory().clone();
    let answer = async |request| reply(&memory, &handler(request).await?).await;
    answered(call, limit, answer).await
}

/// Answers a method with one request of at most `limit` bytes, whose handler makes the body of the
/// response itself.
pub(crate) async fn answered<Q: Shaped + Send + 'static>(
    call: Call,
    limit: impl Into<Limit>,
    handler: impl AsyncFnOnce(Q) -> Result<Body, Status>,
) -> Response {
    let memory = call.memory().clone();
    call.encoded(limit, async |request, wire| {
        // Reserved for as long as the handler works on the request.
        let (request, _permits) = decode_within(&memory, request, wire).await?;
        handler(request).await
    })
    .await
}

/// Decodes a message from a client, once there is memory for its fields. The memory stays reserved until
/// the permits are dropped; one of them is `wire`, for the encoded message.
pub(crate) async fn decode_within<Q: Shaped + Send + 'static>(
    memory: &Memory,
    encoded: Bytes,
    wire: Permit,
) -> Result<(Q, [Permit; 2]), Status> {
    let large = is_large(&encoded);
    let measured = encoded.clone();
    let measure = move || (Q::SHAPE.decoded_bytes(&measured, MAX_DECODED), wire);
    let (bytes, wire) = run(large, measure).await?;
    let bytes = bytes.map_err(|why| refused(&why))? as u64;
    let fields = memory.decoded.reserve(bytes).await.map_err(full)?;
    let permits = [wire, fields];
    // The permits go along, since work on another thread does not end with the call.
    let decode = move || (Q::decode(encoded), permits);
    let (request, permits) = run(large, decode).await?;
    Ok((request.map_err(|why| refused(&why.into()))?, permits))
}

fn refused(why: &DecodeError) -> Status {
    match why {
        DecodeError::TooLarge(_) => Status::resource_exhausted(format!("the message: {why}")),
        _ => Status::invalid_argument(format!("malformed message: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use reapi::v2::{
        ActionResult, BatchUpdateBlobsRequest, UpdateActionResultRequest,
        batch_update_blobs_request,
    };

    use super::*;

    #[tokio::test]
    async fn requests_wait_for_the_memory_that_their_fields_take() {
        let memory = Memory::of_each(1024 * 1024);
        let request = BatchUpdateBlobsRequest {
            requests: vec![batch_update_blobs_request::Request::default(); 4000],
            ..Default::default()
        };
        let encoded = Bytes::from(request.encode_to_vec());
        let decode = || {
            let wire = Permit::default();
            decode_within::<BatchUpdateBlobsRequest>(&memory, encoded.clone(), wire).now_or_never()
        };
        let (first, permits) = decode().unwrap().unwrap();
        assert_eq!(first, request);
        assert!(decode().is_none(), "8 kB that take more than half of it");
        drop(permits);
        assert!(decode().is_some());
    }

    #[tokio::test]
    async fn decoding_a_large_request_holds_up_nobody_else() {
        let memory = Memory::of_each(1024 * 1024);
        let request = ActionResult {
            stdout_raw: vec![0; 256 * 1024].into(),
            ..Default::default()
        };
        let request = UpdateActionResultRequest {
            action_result: Some(request),
            ..Default::default()
        };
        let encoded = Bytes::from(request.encode_to_vec());
        let decoding = decode_within(&memory, encoded, Permit::default());
        let mut decoding = Box::pin(decoding);
        assert!((&mut decoding).now_or_never().is_none());
        let (decoded, _permits) = decoding.await.unwrap();
        assert_eq!(request, decoded);
    }
}
