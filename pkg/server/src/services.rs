//! The services of this server: the methods, and the sizes of their requests.

use std::{future::ready, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use gorego_grpc::{Body, Error, Limit, Messages, Peer, Service, decode_within, full, malformed};
use gorego_limits::Permit;
use gorego_storage::{Chain, decoded::MAX_DECODED_RESULT};
use http::HeaderMap;
use reapi::{
    metadata,
    shapes::{DecodeError, Shaped},
    v2::RequestMetadata,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::{Options, Stores, cas::tree::walks::Walks, routes::Named};

const ACTIONS: &str = "build.bazel.remote.execution.v2.ActionCache";
const BYTES: &str = "google.bytestream.ByteStream";
const CAPABILITIES: &str = "build.bazel.remote.execution.v2.Capabilities";
const EXECUTION: &str = "build.bazel.remote.execution.v2.Execution";
const OPERATIONS: &str = "google.longrunning.Operations";
const CAS: &str = "build.bazel.remote.execution.v2.ContentAddressableStorage";

/// The header of an action that the caller has already handed over: it runs on this node.
const FORWARDED: &str = "x-gorego-forwarded-from";

/// The largest requests without blobs, in bytes: names and a digest or two.
const SMALL: u64 = 64 * 1024;
/// The largest action results and lists of blobs to read, in bytes. The default limit of gRPC clients, so that all
/// that was stored can be fetched again.
pub(crate) const MEDIUM: u64 = 4 * 1024 * 1024;
/// The largest lists of digests to look up, in bytes: some 200,000 of them.
pub(crate) const DIGESTS: u64 = 16 * 1024 * 1024;
/// The bytes that a batch may have in addition to its blobs: digests and framing of some 150,000 blobs.
const BATCH_FRAMING: u64 = 16 * 1024 * 1024;

/// Serves on `listener` until `shutdown` is cancelled. Then health reports it, new calls are refused, and calls in
/// progress may take up to `limits.drain_timeout` of the transport. Returns when no task of the server is left.
pub async fn serve(
    listener: TcpListener,
    stores: Stores,
    options: Options,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let transport = options.transport.clone();
    gorego_grpc::serve(listener, Reapi::new(stores, options), transport, shutdown).await
}

/// The part of a call's headers, and of its peer, that its answer needs.
#[derive(Debug)]
pub(crate) enum Context {
    /// The client of a call of `Execute`, and whether the action must run on this node.
    Client(Option<Box<RequestMetadata>>, bool),
    /// The caller of a method of the extension.
    Extension(Box<Peer>),
}

/// The services of the REAPI that this server offers.
#[derive(Debug)]
pub(crate) struct Reapi {
    pub(crate) stores: Stores,
    pub(crate) options: Options,
    pub(crate) walks: Arc<Walks>,
}

impl Reapi {
    pub(crate) fn new(stores: Stores, options: Options) -> Self {
        let functions = options.inferred_functions.clone();
        Self {
            stores: if functions.is_empty() {
                stores
            } else {
                stores.inferring(functions)
            },
            walks: Arc::new(Walks::within(options.memory.walks)),
            options,
        }
    }

    /// Decodes the only message of a request, and handles it while its memory is reserved.
    async fn unary<'a, Q, F>(
        &'a self,
        requests: Messages,
        limit: impl Into<Limit>,
        handler: impl FnOnce(&'a Self, Q) -> F,
    ) -> Result<Body, Status>
    where
        Q: Shaped + Send + 'static,
        F: Future<Output = Result<Body, Status>>,
    {
        let (encoded, wire) = requests.only(limit).await?;
        let memory = self.transport();
        let (request, _permits) = decode_within(memory, encoded, wire, measure::<Q>).await?;
        handler(self, request).await
    }

    /// Answers a method of `Operations`; `None` if there is none of this name.
    fn operation<'a>(
        &'a self,
        path: &'a str,
        requests: Messages,
    ) -> Option<BoxFuture<'a, Result<Body, Status>>> {
        let answer = match split(path).1 {
            "GetOperation" => self.about(path, requests, Self::get_operation),
            "ListOperations" => self.unary(requests, SMALL, Self::list_operations).boxed(),
            "CancelOperation" => self.about(path, requests, Self::cancel_operation),
            "DeleteOperation" => self.about(path, requests, Self::delete_operation),
            "WaitOperation" => self.about(path, requests, Self::wait_operation),
            _ => return None,
        };
        Some(answer)
    }

    /// Answers a method about one operation, at the node that owns it.
    fn about<'a, Q, F>(
        &'a self,
        path: &'a str,
        requests: Messages,
        here: impl FnOnce(&'a Self, Q) -> F + Send + 'a,
    ) -> BoxFuture<'a, Result<Body, Status>>
    where
        Q: Named + Shaped + Send + 'static,
        F: Future<Output = Result<Body, Status>> + Send + 'a,
    {
        let call = |this: &'a Self, request| this.routed(path, request, move |it| here(this, it));
        self.unary(requests, SMALL, call).boxed()
    }

    pub(crate) async fn reserve_response(&self, bytes: u64) -> Result<Permit, Status> {
        let responses = &self.transport().responses;
        responses.reserve(bytes).await.map_err(full)
    }

    pub(crate) const fn transport(&self) -> &gorego_grpc::Memory {
        &self.options.transport.memory
    }
}

impl Service for Reapi {
    const DESCRIPTORS: &'static [u8] = reapi::FILE_DESCRIPTOR_SET;

    type Context = Context;

    fn names(&self) -> &'static [&'static str] {
        match self.options.executor {
            None => &[ACTIONS, CAPABILITIES, CAS, BYTES],
            Some(_) => &[ACTIONS, CAPABILITIES, CAS, BYTES, EXECUTION, OPERATIONS],
        }
    }

    fn admit(&self, path: &str, headers: &HeaderMap, peer: &Peer) -> Result<Self::Context, Status> {
        if let Some(passed) = headers.get(Chain::HEADER) {
            let passed = String::from_utf8_lossy(passed.as_bytes());
            let entered = self.options.chain.enter(&passed);
            entered.map_err(|error| Status::failed_precondition(error.to_string()))?;
        }
        if let Some(extension) = &self.options.extension
            && extension.serves(path)
        {
            return Ok(Context::Extension(Box::new(peer.clone())));
        }
        let metadata = headers.get(metadata::HEADER);
        let metadata = metadata.filter(|_| split(path) == (EXECUTION, "Execute"));
        let metadata = metadata.and_then(|value| metadata::decode(value.as_bytes()));
        let is_here = headers.contains_key(FORWARDED);
        Ok(Context::Client(metadata.map(Box::new), is_here))
    }

    async fn call(
        &self,
        path: &str,
        context: Self::Context,
        requests: Messages,
    ) -> Result<Body, Status> {
        let (metadata, is_here) = match (context, &self.options.extension) {
            (Context::Client(metadata, is_here), _) => (metadata, is_here),
            (Context::Extension(peer), Some(extension)) => {
                return extension.call(path, *peer, requests).await;
            }
            (Context::Extension(_), None) => return Err(self.unknown(path)),
        };
        let max_batch_bytes = self.options.limits.max_batch_bytes;
        let batch = Limit {
            bytes: max_batch_bytes.saturating_add(BATCH_FRAMING),
            refusal: Code::InvalidArgument,
        };
        // Boxed, since the future of a call is moved before it runs, and these are large.
        let answer = match split(path) {
            (BYTES, "Read") => self.about(path, requests, Self::read),
            (BYTES, "Write") => self.write(requests).boxed(),
            (BYTES, "QueryWriteStatus") => self.unary(requests, SMALL, Self::query_write).boxed(),
            (CAS, "FindMissingBlobs") => self.find_missing(requests).boxed(),
            (CAS, "BatchUpdateBlobs") => self.unary(requests, batch, Self::batch_update).boxed(),
            (CAS, "BatchReadBlobs") => self.unary(requests, MEDIUM, Self::batch_read).boxed(),
            (CAS, "GetTree") => self.unary(requests, SMALL, Self::get_tree).boxed(),
            (ACTIONS, "GetActionResult") => self.unary(requests, MEDIUM, Self::get_result).boxed(),
            (ACTIONS, "UpdateActionResult") => self.update_result(requests).boxed(),
            (CAPABILITIES, "GetCapabilities") => {
                let get = Self::get_capabilities;
                self.unary(requests, SMALL, get).boxed()
            }
            (EXECUTION, "Execute") => {
                let execute = |_: &Self, request| self.execute(request, metadata, is_here);
                self.unary(requests, MEDIUM, execute).boxed()
            }
            (EXECUTION, "WaitExecution") => {
                let wait = |this: &Self, request| ready(this.wait_execution(&request));
                self.about(path, requests, wait)
            }
            (OPERATIONS, _) => match self.operation(path, requests) {
                Some(answer) => answer,
                None => return Err(self.unknown(path)),
            },
            _ => return Err(self.unknown(path)),
        };
        answer.await
    }
}

/// Splits the path of a call into service and method. Both are empty if it has another form.
fn split(path: &str) -> (&str, &str) {
    let name = path.strip_prefix('/');
    let name = name.and_then(|name| name.rsplit_once('/'));
    name.unwrap_or_default()
}

/// Returns the most memory that the fields of a decoded request take, in bytes. The limit is that of an action
/// result, so that all that was stored can be read again; a full batch of some 130,000 blobs takes as much.
pub(crate) fn measure<Q: Shaped>(encoded: &[u8]) -> Result<usize, Status> {
    let bytes = Q::SHAPE.decoded_bytes(encoded, MAX_DECODED_RESULT);
    bytes.map_err(|why| match why {
        DecodeError::TooLarge(_) => Status::resource_exhausted(format!("the message: {why}")),
        _ => malformed(why),
    })
}

#[cfg(test)]
impl Reapi {
    /// Creates services with default options over an empty store in memory.
    pub(crate) fn in_memory() -> Self {
        let store = Arc::<gorego_storage::MemoryStore>::default();
        let stores = Stores {
            blobs: Arc::clone(&store) as _,
            uploads: Arc::clone(&store) as _,
            actions: store,
        };
        Self::new(stores, Options::default())
    }
}
