//! The action cache of a peer.

use async_trait::async_trait;
use gorego_limits::{Budget, UNCOUNTED};
use prost::Message as _;
use reapi::{
    shapes::Shaped as _,
    v2::{ActionResult, GetActionResultRequest, UpdateActionResultRequest},
};
use tonic::Code;

use super::{
    RemoteStore,
    methods::{Call, DEFAULT_MESSAGE, Limits},
};
use gorego_storage::{
    ActionCache, CachedResult, Digest, Error, Result,
    decoded::{MAX_DECODED_RESULT, result_memory},
};

const LIMITS: Limits = Limits::decoded(MAX_DECODED_RESULT);

impl RemoteStore {
    /// Returns the configured instance name, or that of the caller.
    fn instance_for(&self, caller: &str) -> String {
        match self.peer.instance.as_str() {
            "" => caller.to_owned(),
            own => own.to_owned(),
        }
    }

    pub(crate) async fn fetch(&self, instance: &str, action: &Digest) -> Result<ActionResult> {
        let request = GetActionResultRequest {
            instance_name: self.instance_for(instance),
            action_digest: Some(action.to_proto()),
            digest_function: action.function().to_proto() as i32,
            ..GetActionResultRequest::default()
        };
        let found = self.peer.call(&Call(request, LIMITS, 0)).await;
        found.map_err(|failure| {
            if failure.code() == Some(Code::NotFound) {
                return Error::NoResult(*action);
            }
            let what = format_args!("looking up the result of action {action}");
            self.peer.error(&what, failure)
        })
    }
}

/// Returns the memory of a result, encoded and decoded together, in bytes.
fn memory_of(result: &ActionResult) -> u64 {
    let most = result_memory(result.encoded_len() as u64);
    if most <= UNCOUNTED {
        return most;
    }
    let encoded = result.encode_to_vec();
    let decoded = ActionResult::SHAPE.decoded_bytes(&encoded, MAX_DECODED_RESULT);
    decoded.map_or(most, |decoded| (encoded.len() + decoded) as u64)
}

#[async_trait]
impl ActionCache for RemoteStore {
    /// A result for which there is no memory at once is dropped, and fetched again when there is.
    async fn get(&self, instance: &str, action: &Digest, memory: &Budget) -> Result<CachedResult> {
        let result = Box::new(self.fetch(instance, action).await?);
        // A reservation beyond the budget gets all of it, and otherwise would never succeed at once.
        let bytes = memory_of(&result).min(memory.total());
        if let Some(permit) = memory.try_reserve(bytes) {
            return Ok(CachedResult { result, permit });
        }
        drop(result);
        let permit = memory.reserve(bytes).await.map_err(Error::no_memory)?;
        let result = Box::new(self.fetch(instance, action).await?);
        Ok(CachedResult { result, permit })
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let request = UpdateActionResultRequest {
            instance_name: self.instance_for(instance),
            action_digest: Some(action.to_proto()),
            action_result: Some(result),
            digest_function: action.function().to_proto() as i32,
            ..UpdateActionResultRequest::default()
        };
        let call = Call(request, LIMITS, DEFAULT_MESSAGE as u64);
        let stored = self.peer.call(&call).await.map(drop);
        stored.map_err(|failure| {
            let what = format_args!("storing the result of action {action}");
            let error = self.peer.error(&what, failure);
            self.peer.unless_lacking(action.function(), error)
        })
    }
}
