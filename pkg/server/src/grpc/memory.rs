//! Decoding requests and encoding responses within the memory that calls share.

use std::fmt;

use bytes::Bytes;
use gorego_limits::Permit;
use gorego_storage::decoded::{Shape, Unfit};
use prost::Message;
use tokio::task;
use tonic::Status;

use super::{Body, Framed};
use crate::{Memory, memory::full, status::unavailable};

/// Encoded requests from this size in bytes on are decoded where nobody else waits meanwhile.
const LARGE: usize = 256 * 1024;

/// A request whose fields may take more memory than the message did on the wire.
pub(crate) trait Request: Message + Default + Send + 'static {
    /// Its fields.
    const SHAPE: Shape = Shape::FLAT;
    /// What it may take once it is decoded, in bytes.
    const MAX_DECODED: usize = MAX_DECODED;
}

/// A full batch of some 130,000 blobs.
const MAX_DECODED: usize = 32 * 1024 * 1024;

/// Decodes a message from a client, once there is memory for its fields. That is set aside until
/// the permits are dropped; one of them is `wire`, for the message as it came.
pub(crate) async fn decode_within<Q: Request>(
    memory: &Memory,
    encoded: Bytes,
    wire: Permit,
) -> Result<(Q, [Permit; 2]), Status> {
    let large = is_large(&encoded);
    let measured = encoded.clone();
    let measure = move || {
        let bytes = Q::SHAPE.decoded_bytes(&measured, Q::MAX_DECODED);
        (bytes, wire)
    };
    let (bytes, wire) = run(large, measure).await?;
    let bytes = bytes.map_err(|why| match why {
        Unfit::Malformed(_) => malformed(&why),
        Unfit::TooLarge(_) => Status::resource_exhausted(format!("the message: {why}")),
    })?;
    let fields = memory.decoded.reserve(bytes as u64).await.map_err(full)?;
    let permits = [wire, fields];
    // The permits go along, since what runs elsewhere is not ended with the call.
    let decode = move || (Q::decode(encoded), permits);
    let (request, permits) = run(large, decode).await?;
    Ok((request.map_err(|why| malformed(&why))?, permits))
}

/// A response of one message, once there is memory for it.
pub(crate) async fn reply(memory: &Memory, message: &impl Message) -> Result<Body, Status> {
    let bytes = message.encoded_len() as u64;
    let permit = memory.responses.reserve(bytes).await.map_err(full)?;
    Ok(Body::message(Framed::encode(message), permit))
}

fn malformed(why: &dyn fmt::Display) -> Status {
    Status::invalid_argument(format!("malformed message: {why}"))
}

/// Whether reading this request takes so long that other calls would have to wait.
pub(crate) const fn is_large(encoded: &Bytes) -> bool {
    encoded.len() >= LARGE
}

/// Does work that would hold up other calls if it is `large`.
pub(crate) async fn run<R: Send + 'static>(
    large: bool,
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, Status> {
    if large {
        elsewhere(work).await
    } else {
        Ok(work())
    }
}

/// Does work that would hold up other calls.
pub(crate) async fn elsewhere<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, Status> {
    task::spawn_blocking(work)
        .await
        .map_err(|_| unavailable("the work on a request was cut off"))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use reapi::v2::{ActionResult, BatchUpdateBlobsRequest, batch_update_blobs_request};

    use super::*;

    #[tokio::test]
    async fn large_responses_wait_until_others_are_taken_and_small_ones_do_not() {
        let memory = Memory::of_each(1024 * 1024);
        let response = |len| ActionResult {
            stdout_raw: vec![0; len].into(),
            ..Default::default()
        };
        let (large, small) = (response(700_000), response(10_000));
        let first = reply(&memory, &large).now_or_never().unwrap().unwrap();
        assert!(reply(&memory, &large).now_or_never().is_none());
        let _small = reply(&memory, &small).now_or_never().unwrap().unwrap();
        drop(first);
        let _second = reply(&memory, &large).now_or_never().unwrap().unwrap();
    }

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
            stdout_raw: vec![0; LARGE].into(),
            ..Default::default()
        };
        let request = reapi::v2::UpdateActionResultRequest {
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
