//! Decoding requests and encoding responses within the memory that calls share.

use std::fmt;

use bytes::Bytes;
use gorego_limits::Permit;
use prost::Message;
use tokio::task;
use tonic::Status;

use crate::{Body, Framed, Memory, full, unavailable};

/// Encoded requests from this size in bytes on are decoded where nobody else waits meanwhile.
const LARGE: usize = 256 * 1024;

/// Returns the most memory that a message's fields take once it is decoded, in bytes; or the status of a
/// call whose message is malformed or would take too much.
pub type Measure = fn(encoded: &[u8]) -> Result<usize, Status>;

/// Decodes a message from a client, once there is memory for its fields. That is set aside until
/// the permits are dropped; one of them is `wire`, for the message as it came.
pub async fn decode_within<Q: Message + Default + Send + 'static>(
    memory: &Memory,
    encoded: Bytes,
    wire: Permit,
    measure: Measure,
) -> Result<(Q, [Permit; 2]), Status> {
    let large = is_large(&encoded);
    let measured = encoded.clone();
    let (bytes, wire) = run(large, move || (measure(&measured), wire)).await?;
    let fields = memory.decoded.reserve(bytes? as u64).await.map_err(full)?;
    let permits = [wire, fields];
    // The permits go along, since what runs elsewhere is not ended with the call.
    let decode = move || (Q::decode(encoded), permits);
    let (request, permits) = run(large, decode).await?;
    Ok((request.map_err(|why| malformed(&why))?, permits))
}

/// A response of one message, once there is memory for it.
pub async fn reply(memory: &Memory, message: &impl Message) -> Result<Body, Status> {
    let bytes = message.encoded_len() as u64;
    let permit = memory.responses.reserve(bytes).await.map_err(full)?;
    Ok(Body::message(Framed::encode(message), permit))
}

fn malformed(why: &dyn fmt::Display) -> Status {
    Status::invalid_argument(format!("malformed message: {why}"))
}

/// Whether reading this request takes so long that other calls would have to wait.
pub const fn is_large(encoded: &Bytes) -> bool {
    encoded.len() >= LARGE
}

/// Does work that would hold up other calls if it is `large`.
pub async fn run<R: Send + 'static>(
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
pub async fn elsewhere<R: Send + 'static>(
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, Status> {
    task::spawn_blocking(work)
        .await
        .map_err(|_| unavailable("the work on a request was cut off"))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tonic_health::pb::HealthCheckRequest;

    use super::*;

    /// A message of about so many bytes.
    fn message(len: usize) -> HealthCheckRequest {
        HealthCheckRequest {
            service: "x".repeat(len),
        }
    }

    #[tokio::test]
    async fn large_responses_wait_until_others_are_taken_and_small_ones_do_not() {
        let memory = Memory::of_each(1024 * 1024);
        let (large, small) = (message(700_000), message(10_000));
        let first = reply(&memory, &large).now_or_never().unwrap().unwrap();
        assert!(reply(&memory, &large).now_or_never().is_none());
        let _small = reply(&memory, &small).now_or_never().unwrap().unwrap();
        drop(first);
        let _second = reply(&memory, &large).now_or_never().unwrap().unwrap();
    }

    #[tokio::test]
    async fn requests_wait_for_the_memory_that_their_fields_take() {
        let memory = Memory::of_each(1024 * 1024);
        let request = message(8000);
        let encoded = Bytes::from(request.encode_to_vec());
        let decode = || {
            let fields: Measure = |_| Ok(600_000);
            let wire = Permit::default();
            decode_within::<HealthCheckRequest>(&memory, encoded.clone(), wire, fields)
                .now_or_never()
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
        let request = message(LARGE);
        let encoded = Bytes::from(request.encode_to_vec());
        let decoding = decode_within(&memory, encoded, Permit::default(), |_| Ok(0));
        let mut decoding = Box::pin(decoding);
        assert!((&mut decoding).now_or_never().is_none());
        let (decoded, _permits) = decoding.await.unwrap();
        assert_eq!(request, decoded);
    }
}
