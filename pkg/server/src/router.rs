//! Which method a call is for, and how large its request may be.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt as _;
use gorego_storage::Chain;
use http::HeaderMap;
use hyper::body::Incoming;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    Error, Memory, Options, Services,
    action_cache::Actions,
    bytestream::ByteStreams,
    capabilities::Capabilities,
    cas::Cas,
    deadline,
    grpc::{Call, Limit, Response, decode, panicked, refuse, reply, timeout, too_late},
    health::Health,
    inferred::infer,
    reflection::Reflection,
    requests::{answered, unary},
    status::unavailable,
};

/// The services of this server, as health and reflection name them.
pub(crate) const SERVICES: &[&str] = &[
    "build.bazel.remote.execution.v2.ActionCache",
    "build.bazel.remote.execution.v2.Capabilities",
    "build.bazel.remote.execution.v2.ContentAddressableStorage",
    "google.bytestream.ByteStream",
];

const HEALTH: &str = "/grpc.health.v1.Health/";
const REFLECTION: &str = "/grpc.reflection.";

/// Requests of one message without blobs in it, in bytes: names and a digest or two.
const SMALL: u64 = 64 * 1024;
/// Action results, and lists of what to send back. What gRPC clients take by default, so that
/// whatever was stored can be fetched again.
const MEDIUM: u64 = 4 * 1024 * 1024;
/// Lists of digests to look for: some 200,000 of them.
const DIGESTS: u64 = 16 * 1024 * 1024;
/// What a batch may have beyond the blobs' bytes: digests and framing of some 150,000 blobs.
const BATCH_FRAMING: u64 = 16 * 1024 * 1024;

/// Every service, and what is common to their calls.
#[derive(Debug)]
pub(crate) struct Router {
    cas: Cas,
    bytes: ByteStreams,
    actions: Actions,
    capabilities: Capabilities,
    health: Health,
    reflection: Reflection,
    memory: Memory,
    max_batch_request: u64,
    idle_timeout: Duration,
    chain: Arc<Chain>,
    shutdown: CancellationToken,
}

impl Router {
    pub(crate) fn new(
        services: Services,
        options: Options,
        shutdown: CancellationToken,
    ) -> Result<Self, Error> {
        let limits = options.limits;
        let services = infer(services, options.inferred_functions.clone());
        let max_batch_request = limits.max_batch_bytes.saturating_add(BATCH_FRAMING);
        let chain = Arc::clone(&options.chain);
        let memory = options.memory.clone();
        Ok(Self {
            capabilities: Capabilities::new(&options, Arc::clone(&services.blobs)),
            cas: Cas::new(Arc::clone(&services.blobs), limits, memory.clone()),
            bytes: ByteStreams::new(
                Arc::clone(&services.blobs),
                services.uploads,
                limits,
                memory.clone(),
            ),
            actions: Actions::new(
                services.actions,
                services.blobs,
                options.ac_updates,
                limits,
                memory.clone(),
            ),
            health: Health::new(SERVICES, options.healthy, shutdown.clone()),
            reflection: Reflection::new(SERVICES, shutdown.clone())?,
            memory,
            max_batch_request,
            idle_timeout: limits.idle_timeout,
            chain,
            shutdown,
        })
    }

    /// Answers any call within the time that its client gives it. A panic while doing so does not
    /// affect other calls.
    pub(crate) async fn call(&self, request: http::Request<Incoming>) -> Response {
        let deadline = match timeout(request.headers()) {
            Ok(timeout) => timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            Err(status) => return refuse(&status),
        };
        let answer = AssertUnwindSafe(self.dispatch(request)).catch_unwind();
        let answer = match deadline {
            None => answer.await,
            Some(deadline) => {
                deadline::end_at(deadline);
                match timeout_at(deadline, answer).await {
                    Ok(answer) => answer,
                    Err(_) => return refuse(&too_late()),
                }
            }
        };
        let mut response = answer.unwrap_or_else(|_| refuse(&panicked()));
        if let Some(deadline) = deadline {
            response.body_mut().end_at(deadline);
        }
        response
    }

    async fn dispatch(&self, request: http::Request<Incoming>) -> Response {
        let (mut parts, body) = request.into_parts();
        if self.shutdown.is_cancelled() && !parts.uri.path().starts_with(HEALTH) {
            return refuse(&unavailable("shutting down"));
        }
        if let Some(passed) = parts.headers.get(Chain::HEADER)
            && let Err(error) = self
                .chain
                .enter(&String::from_utf8_lossy(passed.as_bytes()))
        {
            return refuse(&Status::failed_precondition(error.to_string()));
        }
        // Nothing else in there is needed, and many calls may wait for long.
        parts.headers = HeaderMap::new();
        let path = parts.uri.path();
        let call = Call::new(body, self.idle_timeout, self.memory.clone());
        let Some((service, method)) = path.rsplit_once('/') else {
            return unimplemented(path);
        };
        // In boxes, since the future of a call is moved about before it runs, and these are large.
        match service {
            "/google.bytestream.ByteStream" => Box::pin(self.byte_stream(method, call)).await,
            "/build.bazel.remote.execution.v2.ContentAddressableStorage" => {
                Box::pin(self.storage(method, call)).await
            }
            "/build.bazel.remote.execution.v2.ActionCache" => {
                Box::pin(self.results(method, call)).await
            }
            "/build.bazel.remote.execution.v2.Capabilities" if method == "GetCapabilities" => {
                let answer = async |request| self.capabilities.get(&request).await;
                Box::pin(unary(call, SMALL, answer)).await
            }
            "/grpc.health.v1.Health" => Box::pin(self.health(method, call)).await,
            service if service.starts_with(REFLECTION) => {
                let requests = call.into_messages();
                Box::pin(self.reflection.call(parts, requests)).await
            }
            _ => unimplemented(path),
        }
    }

    async fn byte_stream(&self, method: &str, call: Call) -> Response {
        match method {
            "Read" => answered(call, SMALL, async |request| self.bytes.read(request).await).await,
            "Write" => {
                call.streamed(async |messages| self.bytes.write(messages).await)
                    .await
            }
            "QueryWriteStatus" => {
                unary(call, SMALL, async |request| self.bytes.query(request).await).await
            }
            other => unimplemented(other),
        }
    }

    async fn storage(&self, method: &str, call: Call) -> Response {
        match method {
            "FindMissingBlobs" => {
                call.encoded(DIGESTS, async |request, permit| {
                    self.cas.find_missing(request, permit).await
                })
                .await
            }
            "BatchUpdateBlobs" => {
                let limit = Limit::of_batch(self.max_batch_request);
                unary(call, limit, async |request| {
                    self.cas.batch_update(request).await
                })
                .await
            }
            "BatchReadBlobs" => {
                answered(call, MEDIUM, async |request| {
                    self.cas.batch_read(request).await
                })
                .await
            }
            "GetTree" => {
                answered(call, SMALL, async |request| {
                    self.cas.get_tree(request).await
                })
                .await
            }
            other => unimplemented(other),
        }
    }

    async fn results(&self, method: &str, call: Call) -> Response {
        match method {
            "GetActionResult" => {
                answered(call, MEDIUM, async |request| {
                    self.actions.get(request).await
                })
                .await
            }
            "UpdateActionResult" => {
                call.encoded(MEDIUM, async |request, permit| {
                    self.actions.update(request, permit).await
                })
                .await
            }
            other => unimplemented(other),
        }
    }

    async fn health(&self, method: &str, call: Call) -> Response {
        match method {
            "Check" => {
                call.encoded(SMALL, async |request, _permit| {
                    let response = self.health.check(&decode(request)?)?;
                    reply(&self.memory, &response).await
                })
                .await
            }
            "Watch" => {
                call.encoded(SMALL, async |request, _permit| {
                    Ok(self.health.watch(&decode(request)?))
                })
                .await
            }
            other => unimplemented(other),
        }
    }
}

fn unimplemented(method: &str) -> Response {
    let known = SERVICES.join(", ");
    refuse(&Status::unimplemented(format!(
        "no method {:?} here; this server offers {known}",
        method.chars().take(100).collect::<String>()
    )))
}
