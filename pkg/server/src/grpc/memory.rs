//! Encoding responses within the memory that calls share, and work that would hold up other calls.

use bytes::Bytes;
use prost::Message;
use tokio::task;
use tonic::Status;

use super::{Body, Framed};
use crate::{Memory, memory::full, status::unavailable};

/// Encoded requests from this size in bytes on are decoded where nobody else waits meanwhile.
const LARGE: usize = 256 * 1024;

/// A response of one message, once there is memory for it.
pub(crate) async fn reply(memory: &Memory, message: &impl Message) -> Result<Body, Status> {
    let bytes = message.encoded_len() as u64;
    let permit = memory.responses.reserve(bytes).await.map_err(full)?;
    Ok(Body::message(Framed::encode(message), permit))
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
    use reapi::v2::ActionResult;

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
}
