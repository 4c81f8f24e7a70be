//! A backing cache in memory that injects faults and records every call.

mod action;
mod blob;
mod cas;
mod fault;
mod name;
mod record;
mod state;
mod stream;

use std::{net::SocketAddr, sync::Arc, thread, time::Duration};

use bytes::Bytes;
use reapi::{
    bytestream::byte_stream_server::ByteStreamServer,
    v2::{
        ActionResult, Digest, action_cache_server::ActionCacheServer,
        capabilities_server::CapabilitiesServer, compressor,
        content_addressable_storage_server::ContentAddressableStorageServer, digest_function,
    },
};
use tokio::{net::TcpListener, runtime, sync::oneshot, time};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use crate::content::digest_of;

use self::{
    blob::Key,
    state::{Service, Shared},
};
pub use self::{
    fault::{Fault, Times},
    record::{Call, Method},
    state::PeerState,
};

/// The longest wait for a condition; far more than it needs, so that only a condition that never comes
/// true fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// The largest message that gRPC accepts by default, in bytes.
const MESSAGE: usize = 4 * 1024 * 1024;

/// Bytes of a full batch in addition to its content.
const FRAMING: usize = 64 * 1024;

/// The capabilities that the peer announces and enforces.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The most content bytes of one batch; 0 for no limit.
    pub batch_limit: usize,
    /// The accepted digest functions. SHA-256 and BLAKE3 are verified, others are not. A request that
    /// names none uses SHA-256.
    pub functions: Vec<digest_function::Value>,
    /// The compressors in addition to identity: zstd, or none.
    pub compressors: Vec<compressor::Value>,
    /// Whether action results may be stored.
    pub update_actions: bool,
    /// Set to announce remote execution. Every execution fails, since there is no such service.
    pub executes: bool,
    /// The seed of random faults.
    pub seed: u64,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            batch_limit: MESSAGE - FRAMING,
            functions: vec![
                digest_function::Value::Sha256,
                digest_function::Value::Blake3,
            ],
            compressors: Vec::new(),
            update_actions: true,
            executes: false,
            seed: 0,
        }
    }
}

/// The running peer. Dropping it closes its port and connections.
#[derive(Debug)]
pub struct FaultyPeer {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl FaultyPeer {
    /// Starts a peer without faults.
    pub fn start() -> Self {
        Self::with(Offer::default())
    }

    /// Starts a peer with these capabilities.
    pub fn with(offer: Offer) -> Self {
        let shared = Arc::new(Shared::new(offer));
        let (stop, stopped) = oneshot::channel();
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime for the peer");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound port");
        listener.set_nonblocking(true).expect("a socket's mode");
        let services = Arc::clone(&shared);
        let thread = thread::Builder::new().name("peer".to_owned());
        let thread = thread.spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a listening socket");
                tokio::select! {
                    () = serve(listener, services) => {}
                    // The sender is dropped with the peer.
                    _ = stopped => {}
                }
            });
        });
        Self {
            address,
            shared,
            stop: Some(stop),
            thread: Some(thread.expect("a thread for the peer")),
        }
    }

    /// Returns the address of the peer.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address as a gRPC target.
    pub fn grpc_url(&self) -> String {
        format!("grpc://{}", self.address)
    }

    /// Injects a fault into calls of `method`. Of several faults that are due, the one injected first
    /// happens.
    pub fn inject(&self, method: Method, times: Times, fault: Fault) {
        self.shared
            .change(|state| state.faults.add(method, times, fault));
    }

    /// Injects a fault into calls of every method.
    pub fn inject_everywhere(&self, times: Times, fault: Fault) {
        for method in Method::ALL {
            self.inject(method, times, fault);
        }
    }

    /// Removes all faults and continues stalled calls.
    pub fn heal(&self) {
        self.shared.change(|state| {
            state.faults.clear();
            state.releases += 1;
        });
    }

    /// Continues stalled calls; faults stay.
    pub fn release(&self) {
        self.shared.change(|state| state.releases += 1);
    }

    /// Stores a blob under its SHA-256 digest.
    pub fn put(&self, content: &Bytes) -> Digest {
        let digest = digest_of(content);
        self.put_as(&digest, content.clone());
        digest
    }

    /// Stores `content` under a digest, which need not match.
    pub fn put_as(&self, digest: &Digest, content: Bytes) {
        self.shared
            .change(|state| state.blobs.insert(Key::of(digest), content));
    }

    /// Stores an action result, even if its blobs are missing.
    pub fn put_action(&self, instance: &str, action: &Digest, result: ActionResult) {
        let key = (instance.to_owned(), Key::of(action));
        self.shared
            .change(|state| state.actions.insert(key, result));
    }

    /// Removes a blob; action results that name it stay.
    pub fn forget(&self, digest: &Digest) {
        self.shared
            .change(|state| state.blobs.remove(&Key::of(digest)));
    }

    /// Removes all blobs, action results and partial uploads, but not the recorded calls.
    pub fn forget_all(&self) {
        self.shared.change(|state| {
            state.blobs.clear();
            state.actions.clear();
            state.partials.clear();
        });
    }

    /// Returns the content stored under a digest.
    pub fn blob(&self, digest: &Digest) -> Option<Bytes> {
        self.shared.inspect(|state| state.blob(digest))
    }

    /// Returns a stored action result.
    pub fn action(&self, instance: &str, action: &Digest) -> Option<ActionResult> {
        self.shared.inspect(|state| state.action(instance, action))
    }

    /// Returns the calls of a method, in the order of arrival.
    pub fn calls(&self, method: Method) -> Vec<Call> {
        self.shared
            .inspect(|state| state.calls(method).cloned().collect())
    }

    /// Returns the content bytes sent so far, compressed ones as such.
    pub fn bytes_read(&self) -> u64 {
        self.shared.inspect(PeerState::bytes_read)
    }

    /// Returns the content bytes received so far, compressed ones as such.
    pub fn bytes_written(&self) -> u64 {
        self.shared.inspect(PeerState::bytes_written)
    }

    /// Removes the records of ended calls, so that counts start anew.
    pub fn forget_calls(&self) {
        self.shared.change(PeerState::forget_calls);
    }

    /// Waits until the peer's state satisfies `met`. Panics after a minute.
    pub async fn wait_for(&self, met: impl FnMut(&PeerState) -> bool) {
        let mut state = self.shared.subscribe();
        let in_time = time::timeout(PATIENCE, state.wait_for(met)).await;
        let calls = || {
            self.shared
                .inspect(|state| format!("{:#?}", state.all_calls()))
        };
        let state = in_time.unwrap_or_else(|_| panic!("not met in time: {}", calls()));
        drop(state.expect("the peer outlives the wait"));
    }
}

impl Drop for FaultyPeer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already been printed.
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let limit = MESSAGE.max(shared.offer.batch_limit + FRAMING);
    let service = Service(shared);
    let cas = ContentAddressableStorageServer::new(service.clone());
    let served = Server::builder()
        .add_service(cas.max_decoding_message_size(limit))
        .add_service(ByteStreamServer::new(service.clone()))
        .add_service(ActionCacheServer::new(service.clone()))
        .add_service(CapabilitiesServer::new(service))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await;
    served.expect("serving on loopback");
}

#[cfg(test)]
mod tests;
