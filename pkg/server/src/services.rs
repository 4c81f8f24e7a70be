//! The services of this server: which method a call is for, and how large its request may be.

use std::sync::Arc;

use gorego_grpc::{Call, Error, Limit, Response, Service};
use gorego_storage::Chain;
use http::HeaderMap;
use reapi::{
    bytestream::{QueryWriteStatusRequest, ReadRequest},
    v2::{
        BatchReadBlobsRequest, BatchUpdateBlobsRequest, GetActionResultRequest,
        GetCapabilitiesRequest, GetTreeRequest,
    },
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    Options, Services, action_cache::Actions, bytestream::ByteStreams, capabilities::Capabilities,
    cas::Cas, inferred::infer, memory::measure,
};

/// Requests of one message without blobs in it, in bytes: names and a digest or two.
const SMALL: u64 = 64 * 1024;
/// Action results, and lists of what to send back. What gRPC clients take by default, so that
/// whatever was stored can be fetched again.
const MEDIUM: u64 = 4 * 1024 * 1024;
/// Lists of digests to look for: some 200,000 of them.
const DIGESTS: u64 = 16 * 1024 * 1024;
/// What a batch may have beyond the blobs' bytes: digests and framing of some 150,000 blobs.
const BATCH_FRAMING: u64 = 16 * 1024 * 1024;

/// Answers on `listener` until `shutdown` is cancelled. Then health says so, new calls are refused
/// and running ones may end, for at most `options.limits.drain_timeout`. Returns when nothing of
/// the server is left running.
pub async fn serve(
    listener: TcpListener,
    services: Services,
    options: Options,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let limits = options.limits;
    let transport = gorego_grpc::Options {
        limits: gorego_grpc::Limits {
            idle_timeout: limits.idle_timeout,
            grace: limits.grace,
            drain_timeout: limits.drain_timeout,
            max_connections: limits.max_connections,
        },
        memory: options.memory.transport.clone(),
        tls: options.tls.clone(),
        healthy: options.healthy.clone(),
        descriptors: reapi::FILE_DESCRIPTOR_SET,
    };
    let service = Reapi::new(services, &options);
    gorego_grpc::serve(listener, service, transport, shutdown).await
}

/// Every service of the REAPI that this server offers.
#[derive(Debug)]
struct Reapi {
    cas: Cas,
    bytes: ByteStreams,
    actions: Actions,
    capabilities: Capabilities,
    max_batch_request: u64,
    chain: Arc<Chain>,
}

impl Reapi {
    fn new(services: Services, options: &Options) -> Self {
        let limits = options.limits;
        let services = infer(services, options.inferred_functions.clone());
        let chain = Arc::clone(&options.chain);
        let memory = options.memory.clone();
        Self {
            capabilities: Capabilities::new(options, Arc::clone(&services.blobs)),
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
                memory,
            ),
            max_batch_request: limits.max_batch_bytes.saturating_add(BATCH_FRAMING),
            chain,
        }
    }

    async fn byte_stream(&self, method: &str, call: Call) -> Option<Response> {
        Some(match method {
            "Read" => {
                let read = async |request| self.bytes.read(request).await;
                call.answered(SMALL, measure::<ReadRequest>, read).await
            }
            "Write" => {
                call.streamed(async |messages| self.bytes.write(messages).await)
                    .await
            }
            "QueryWriteStatus" => {
                let query = async |request| self.bytes.query(request).await;
                call.unary(SMALL, measure::<QueryWriteStatusRequest>, query)
                    .await
            }
            _ => return None,
        })
    }

    async fn storage(&self, method: &str, call: Call) -> Option<Response> {
        Some(match method {
            "FindMissingBlobs" => {
                call.encoded(DIGESTS, async |request, permit| {
                    self.cas.find_missing(request, permit).await
                })
                .await
            }
            "BatchUpdateBlobs" => {
                let limit = Limit::of_batch(self.max_batch_request);
                let update = async |request| self.cas.batch_update(request).await;
                call.unary(limit, measure::<BatchUpdateBlobsRequest>, update)
                    .await
            }
            "BatchReadBlobs" => {
                let read = async |request| self.cas.batch_read(request).await;
                call.answered(MEDIUM, measure::<BatchReadBlobsRequest>, read)
                    .await
            }
            "GetTree" => {
                let tree = async |request| self.cas.get_tree(request).await;
                call.answered(SMALL, measure::<GetTreeRequest>, tree).await
            }
            _ => return None,
        })
    }

    async fn results(&self, method: &str, call: Call) -> Option<Response> {
        Some(match method {
            "GetActionResult" => {
                let get = async |request| self.actions.get(request).await;
                call.answered(MEDIUM, measure::<GetActionResultRequest>, get)
                    .await
            }
            "UpdateActionResult" => {
                call.encoded(MEDIUM, async |request, permit| {
                    self.actions.update(request, permit).await
                })
                .await
            }
            _ => return None,
        })
    }
}

impl Service for Reapi {
    const NAMES: &'static [&'static str] = &[
        "build.bazel.remote.execution.v2.ActionCache",
        "build.bazel.remote.execution.v2.Capabilities",
        "build.bazel.remote.execution.v2.ContentAddressableStorage",
        "google.bytestream.ByteStream",
    ];

    fn admit(&self, headers: &HeaderMap) -> Result<(), Status> {
        let Some(passed) = headers.get(Chain::HEADER) else {
            return Ok(());
        };
        let passed = String::from_utf8_lossy(passed.as_bytes());
        let entered = self.chain.enter(&passed);
        entered.map_err(|error| Status::failed_precondition(error.to_string()))
    }

    async fn call(&self, service: &str, method: &str, call: Call) -> Option<Response> {
        // In boxes, since the future of a call is moved about before it runs, and these are large.
        match service {
            "google.bytestream.ByteStream" => Box::pin(self.byte_stream(method, call)).await,
            "build.bazel.remote.execution.v2.ContentAddressableStorage" => {
                Box::pin(self.storage(method, call)).await
            }
            "build.bazel.remote.execution.v2.ActionCache" => {
                Box::pin(self.results(method, call)).await
            }
            "build.bazel.remote.execution.v2.Capabilities" if method == "GetCapabilities" => {
                let get = async |request| self.capabilities.get(&request).await;
                Some(Box::pin(call.unary(SMALL, measure::<GetCapabilitiesRequest>, get)).await)
            }
            _ => None,
        }
    }
}
