//! A cache in this process, over a map in memory, that misbehaves as the test says: it stands for
//! the tier behind a proxy. Every call is recorded.

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
    state::Seen,
};

/// How long a condition may take to come true; far more than it needs, so that only one that
/// never does fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// The least that a gRPC server takes in one message, whatever batches it allows.
const MESSAGE: usize = 4 * 1024 * 1024;

/// Room in a full batch for what is not content.
const FRAMING: usize = 64 * 1024;

/// What the peer says that it can do, and keeps to.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The content bytes that one batch may have; it is enforced, and 0 means no limit.
    pub batch_limit: usize,
    /// Others are refused. SHA-256 and BLAKE3 are checked, and content under any other is taken as
    /// it is; where a request names none, it is SHA-256.
    pub functions: Vec<digest_function::Value>,
    /// Besides identity: zstd, or none.
    pub compressors: Vec<compressor::Value>,
    /// Whether action results may be stored.
    pub update_actions: bool,
    /// What faults that come by chance are drawn from.
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
            seed: 0,
        }
    }
}

/// The running peer, on a port of its own. It ends with this value, and its connections with it.
#[derive(Debug)]
pub struct FaultyPeer {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl FaultyPeer {
    /// A peer that behaves, until it is told not to.
    pub fn start() -> Self {
        Self::with(Offer::default())
    }

    /// A peer that offers something else.
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

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as a target of gRPC clients.
    pub fn grpc_url(&self) -> String {
        format!("grpc://{}", self.address)
    }

    /// Makes calls of `method` go wrong. Of several faults of a method, the one that was given
    /// first and is due happens.
    pub fn inject(&self, method: Method, times: Times, fault: Fault) {
        self.shared
            .change(|seen| seen.faults.add(method, times, fault));
    }

    /// Makes calls of every method go wrong.
    pub fn inject_everywhere(&self, times: Times, fault: Fault) {
        for method in Method::ALL {
            self.inject(method, times, fault);
        }
    }

    /// Takes all faults back, and lets go on what is stalled.
    pub fn heal(&self) {
        self.shared.change(|seen| {
            seen.faults.clear();
            seen.releases += 1;
        });
    }

    /// Lets go on what is stalled; faults stay.
    pub fn release(&self) {
        self.shared.change(|seen| seen.releases += 1);
    }

    /// Holds a blob from now on, by its SHA-256.
    pub fn put(&self, content: &Bytes) -> Digest {
        let digest = digest_of(content);
        self.put_as(&digest, content.clone());
        digest
    }

    /// Holds `content` under that digest, whether it is the right one or not.
    pub fn put_as(&self, digest: &Digest, content: Bytes) {
        self.shared
            .change(|seen| seen.blobs.insert(Key::of(digest), content));
    }

    /// Holds an action result from now on, whether its blobs are there or not.
    pub fn put_action(&self, instance: &str, action: &Digest, result: ActionResult) {
        let key = (instance.to_owned(), Key::of(action));
        self.shared.change(|seen| seen.actions.insert(key, result));
    }

    /// Loses a blob; action results that name it stay.
    pub fn forget(&self, digest: &Digest) {
        self.shared
            .change(|seen| seen.blobs.remove(&Key::of(digest)));
    }

    /// Loses everything it holds, but not what it has recorded.
    pub fn forget_all(&self) {
        self.shared.change(|seen| {
            seen.blobs.clear();
            seen.actions.clear();
            seen.partials.clear();
        });
    }

    /// The content that it holds under that digest.
    pub fn blob(&self, digest: &Digest) -> Option<Bytes> {
        self.shared.look(|seen| seen.blob(digest))
    }

    /// The action result that it holds.
    pub fn action(&self, instance: &str, action: &Digest) -> Option<ActionResult> {
        self.shared.look(|seen| seen.action(instance, action))
    }

    /// The calls of a method, in the order in which they came.
    pub fn calls(&self, method: Method) -> Vec<Call> {
        self.shared
            .look(|seen| seen.calls(method).cloned().collect())
    }

    /// Content bytes that it has sent so far, as they went over the wire.
    pub fn bytes_read(&self) -> u64 {
        self.shared.look(Seen::bytes_read)
    }

    /// Content bytes that it has received so far, as they came over the wire.
    pub fn bytes_written(&self) -> u64 {
        self.shared.look(Seen::bytes_written)
    }

    /// Forgets the calls that ended, so that a test counts from here.
    pub fn forget_calls(&self) {
        self.shared.change(Seen::forget_calls);
    }

    /// Waits until what it holds and has recorded satisfies `met`; panics when it never does.
    pub async fn wait_for(&self, met: impl FnMut(&Seen) -> bool) {
        let mut seen = self.shared.subscribe();
        let in_time = time::timeout(PATIENCE, seen.wait_for(met)).await;
        let calls = || self.shared.look(|seen| format!("{:#?}", seen.all_calls()));
        let seen = in_time.unwrap_or_else(|_| panic!("never came to that: {}", calls()));
        drop(seen.expect("the peer outlives the wait"));
    }
}

impl Drop for FaultyPeer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // What it panicked with was printed then.
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
