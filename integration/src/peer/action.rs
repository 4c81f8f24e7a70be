//! `ActionCache` and `Capabilities`.

use reapi::{
    semver::SemVer,
    v2::{
        ActionCacheUpdateCapabilities, ActionResult, CacheCapabilities, ExecutionCapabilities,
        GetActionResultRequest, GetCapabilitiesRequest, ServerCapabilities,
        UpdateActionResultRequest, action_cache_server::ActionCache,
        capabilities_server::Capabilities, digest_function,
    },
};
use tonic::{Request, Response, Status};

use super::{Method, blob::required, state::Service};

#[tonic::async_trait]
impl ActionCache for Service {
    async fn get_action_result(
        &self,
        request: Request<GetActionResultRequest>,
    ) -> Result<Response<ActionResult>, Status> {
        let (headers, _, request) = request.into_parts();
        let call = self.begin(Method::GetActionResult, &headers, |call| {
            call.instance.clone_from(&request.instance_name);
            call.digests = 1;
        });
        let call = call.await?;
        let key = self
            .function(request.digest_function)
            .and_then(|_| required(request.action_digest));
        let found = key.and_then(|key| {
            let missing = Status::not_found(format!("no result of action {}", key.hash));
            let key = (request.instance_name, key);
            self.inspect(|state| state.actions.get(&key).cloned())
                .ok_or(missing)
        });
        call.end(found.map(Response::new))
    }

    async fn update_action_result(
        &self,
        request: Request<UpdateActionResultRequest>,
    ) -> Result<Response<ActionResult>, Status> {
        let (headers, _, request) = request.into_parts();
        let call = self.begin(Method::UpdateActionResult, &headers, |call| {
            call.instance.clone_from(&request.instance_name);
            call.digests = 1;
        });
        let call = call.await?;
        if !self.offer.update_actions {
            let refusal = "action results are not taken here";
            return call.end(Err(Status::permission_denied(refusal)));
        }
        let key = self
            .function(request.digest_function)
            .and_then(|_| required(request.action_digest));
        let stored = key.and_then(|key| {
            let result = request.action_result;
            let result = result.ok_or_else(|| Status::invalid_argument("no action_result"))?;
            let key = (request.instance_name, key);
            self.change(|state| state.actions.insert(key, result.clone()));
            Ok(result)
        });
        call.end(stored.map(Response::new))
    }
}

#[tonic::async_trait]
impl Capabilities for Service {
    async fn get_capabilities(
        &self,
        request: Request<GetCapabilitiesRequest>,
    ) -> Result<Response<ServerCapabilities>, Status> {
        let (headers, _, request) = request.into_parts();
        let call = self.begin(Method::GetCapabilities, &headers, |call| {
            call.instance = request.instance_name;
        });
        let call = call.await?;
        let offer = &self.offer;
        let functions: Vec<i32> = offer.functions.iter().map(|&f| f.into()).collect();
        let compressors: Vec<i32> = offer.compressors.iter().map(|&c| c.into()).collect();
        let version = |minor| {
            Some(SemVer {
                major: 2,
                minor,
                ..SemVer::default()
            })
        };
        call.end(Ok(Response::new(ServerCapabilities {
            cache_capabilities: Some(CacheCapabilities {
                digest_functions: functions.clone(),
                action_cache_update_capabilities: Some(ActionCacheUpdateCapabilities {
                    update_enabled: offer.update_actions,
                }),
                max_batch_total_size_bytes: i64::try_from(offer.batch_limit)
                    .expect("a limit in range"),
                supported_batch_update_compressors: compressors.clone(),
                supported_compressors: compressors,
                ..CacheCapabilities::default()
            }),
            execution_capabilities: offer.executes.then(|| ExecutionCapabilities {
                digest_function: digest_function::Value::Sha256.into(),
                exec_enabled: true,
                digest_functions: functions,
                ..ExecutionCapabilities::default()
            }),
            low_api_version: version(0),
            high_api_version: version(11),
            ..ServerCapabilities::default()
        })))
    }
}
