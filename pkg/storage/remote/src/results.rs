//! The action cache of a peer.

use async_trait::async_trait;
use reapi::v2::{ActionResult, GetActionResultRequest, UpdateActionResultRequest};
use tonic::Code;

use super::{
    RemoteStore,
    capabilities::function,
    methods::{DEFAULT_MESSAGE, GET_RESULT, Limits, UPDATE_RESULT},
};
use gorego_storage::{ActionCache, Digest, Result, decoded::MAX_DECODED_RESULT};

const LIMITS: Limits = Limits {
    encoded: DEFAULT_MESSAGE,
    decoded: MAX_DECODED_RESULT,
};

impl RemoteStore {
    /// Returns the configured instance name, or that of the caller.
    fn instance_for(&self, caller: &str) -> String {
        match self.instance.as_str() {
            "" => caller.to_owned(),
            own => own.to_owned(),
        }
    }
}

#[async_trait]
impl ActionCache for RemoteStore {
    async fn get(&self, instance: &str, action: &Digest) -> Result<Option<ActionResult>> {
        let request = GetActionResultRequest {
            instance_name: self.instance_for(instance),
            action_digest: Some(action.to_proto()),
            digest_function: function(action.function()),
            ..GetActionResultRequest::default()
        };
        match self.peer.call(&GET_RESULT.call(request, LIMITS, 0)).await {
            Ok(result) => Ok(Some(result)),
            Err(failure) if failure.code() == Some(Code::NotFound) => Ok(None),
            Err(failure) => Err(self
                .peer
                .error(&format_args!("result of action {action}"), failure)),
        }
    }

    /// Returns an upper bound, whether or not there is a result: the peer does not say without sending it.
    async fn size(&self, _: &str, _: &Digest) -> Result<u64> {
        Ok(DEFAULT_MESSAGE as u64)
    }

    async fn put(&self, instance: &str, action: &Digest, result: ActionResult) -> Result<()> {
        let request = UpdateActionResultRequest {
            instance_name: self.instance_for(instance),
            action_digest: Some(action.to_proto()),
            action_result: Some(result),
            digest_function: function(action.function()),
            ..UpdateActionResultRequest::default()
        };
        let call = UPDATE_RESULT.call(request, LIMITS, DEFAULT_MESSAGE as u64);
        match self.peer.call(&call).await {
            Ok(_) => Ok(()),
            Err(failure) => {
                let what = format_args!("storing the result of action {action}");
                let error = self.peer.error(&what, failure);
                Err(self.unless_lacking(action.function(), error))
            }
        }
    }
}
