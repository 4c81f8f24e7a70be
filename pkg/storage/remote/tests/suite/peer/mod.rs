//! A peer over loopback that misbehaves on request and records its calls.

mod services;

use std::{
    collections::{HashMap, VecDeque},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use gorego_storage::{Digest, DigestFunction};
use gorego_storage_remote::{RemoteAddress, RemoteOptions, RemoteStore};
use reapi::{
    bytestream::{WriteRequest, byte_stream_server::ByteStreamServer},
    v2::{
        CacheCapabilities, action_cache_server::ActionCacheServer,
        capabilities_server::CapabilitiesServer,
        content_addressable_storage_server::ContentAddressableStorageServer,
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    sync::Notify,
    task::JoinSet,
};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{
    Code, Streaming,
    metadata::MetadataMap,
    transport::{Server, ServerTlsConfig, server::Router},
};

/// Longer than any step of a test takes.
pub const LONG: Duration = Duration::from_secs(30);

/// A misbehaviour of a peer.
#[derive(Clone, Debug)]
pub enum Act {
    /// Answers this.
    Fail(Code),
    /// Never answers.
    Stall,
    /// Moves this many bytes, then answers `UNAVAILABLE`.
    CutAfter(usize),
    /// Sends this much of a download, then nothing more.
    StallAfter(usize),
    /// Sends this instead of what was asked for.
    Serve(Bytes),
    /// Sends a download from its first byte on, whatever was asked for.
    FromStart,
    /// Sends a download in messages of this many bytes.
    InMessages(usize),
    /// Sends all of a download, and then this.
    FailAtEnd(Code),
    /// Answers an upload at once, with this size, and wants no more of it.
    Answer(i64),
    /// Answers an upload at once, with this size, and reads on.
    AnswerOnly(i64),
    /// Reports these as missing.
    Missing(Vec<reapi::v2::Digest>),
    /// Answers a batch with this many entries, all of them empty.
    Entries(usize),
    /// Behaves. For a call between two others.
    Behave,
}

/// A call that a peer received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub method: &'static str,
    /// The resource or the instance.
    pub name: String,
    /// Of the first byte.
    pub offset: i64,
    /// Of a batch: each blob's size. Of an upload: what arrived.
    pub sizes: Vec<usize>,
    /// Of a batch.
    pub function: i32,
}

fn call(method: &'static str, name: &str) -> Call {
    Call {
        method,
        name: name.to_owned(),
        offset: 0,
        sizes: Vec::new(),
        function: 0,
    }
}

fn key(digest: &reapi::v2::Digest) -> String {
    format!("{}/{}", digest.hash, digest.size_bytes)
}

/// The state of a peer.
#[derive(Default)]
pub struct State {
    pub blobs: Mutex<HashMap<String, Bytes>>,
    pub partial: Mutex<HashMap<String, Vec<u8>>>,
    pub results: Mutex<HashMap<String, reapi::v2::ActionResult>>,
    pub script: Mutex<HashMap<&'static str, VecDeque<Act>>>,
    pub calls: Mutex<Vec<Call>>,
    pub metadata: Mutex<Vec<MetadataMap>>,
    pub capabilities: Mutex<CacheCapabilities>,
    /// The answers of batches for single blobs, by hash.
    pub statuses: Mutex<HashMap<String, VecDeque<Code>>>,
    /// Uploads that are no longer read.
    pub unread: Mutex<Vec<Streaming<WriteRequest>>>,
    pub changed: Notify,
}

impl State {
    /// Returns the misbehaviour for the next call of this method.
    fn act(&self, method: &str, metadata: &MetadataMap) -> Act {
        self.metadata.lock().unwrap().push(metadata.clone());
        let mut script = self.script.lock().unwrap();
        let next = script.get_mut(method).and_then(VecDeque::pop_front);
        next.unwrap_or(Act::Behave)
    }

    fn called(&self, call: Call) -> usize {
        let mut calls = self.calls.lock().unwrap();
        calls.push(call);
        self.changed.notify_waiters();
        calls.len() - 1
    }
}

/// A running peer.
pub struct Peer {
    pub state: Arc<State>,
    pub address: String,
    tasks: JoinSet<()>,
}

impl Peer {
    pub async fn start() -> Self {
        Self::on("127.0.0.1:0").await
    }

    pub async fn on(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Self::serve(address, None, async |router: Router| {
            let incoming = TcpListenerStream::new(listener);
            router.serve_with_incoming(incoming).await.unwrap();
        })
    }

    pub async fn with_tls(tls: ServerTlsConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let incoming = TcpListenerStream::new(listener);
        Self::serve(address, Some(tls), async |router: Router| {
            router.serve_with_incoming(incoming).await.unwrap();
        })
    }

    pub fn on_socket(path: &Path) -> Self {
        let incoming = UnixListenerStream::new(UnixListener::bind(path).unwrap());
        Self::serve(String::new(), None, async |router: Router| {
            router.serve_with_incoming(incoming).await.unwrap();
        })
    }

    fn serve<F>(
        address: String,
        tls: Option<ServerTlsConfig>,
        run: impl FnOnce(Router) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let state = Arc::new(State::default());
        *state.capabilities.lock().unwrap() = CacheCapabilities {
            digest_functions: DigestFunction::ALL
                .iter()
                .map(|function| function.to_proto() as i32)
                .collect(),
            max_batch_total_size_bytes: 1 << 20,
            ..CacheCapabilities::default()
        };
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).unwrap();
        }
        let service = services::Services(Arc::clone(&state));
        let router = server
            .add_service(ByteStreamServer::new(service.clone()))
            .add_service(ContentAddressableStorageServer::new(service.clone()))
            .add_service(ActionCacheServer::new(service.clone()))
            .add_service(CapabilitiesServer::new(service));
        let mut tasks = JoinSet::new();
        tasks.spawn(run(router));
        Self {
            state,
            address,
            tasks,
        }
    }

    pub fn has(&self, content: &Bytes) -> Digest {
        let digest = sha256(content);
        let mut blobs = self.state.blobs.lock().unwrap();
        blobs.insert(digest.to_string(), content.clone());
        digest
    }

    pub fn stored(&self, digest: &Digest) -> Option<Bytes> {
        let blobs = self.state.blobs.lock().unwrap();
        blobs.get(&digest.to_string()).cloned()
    }

    /// Sets the misbehaviour for the next calls of a method.
    pub fn script(&self, method: &'static str, acts: impl IntoIterator<Item = Act>) {
        let mut script = self.state.script.lock().unwrap();
        script.entry(method).or_default().extend(acts);
    }

    pub fn calls(&self, method: &str) -> Vec<Call> {
        let calls = self.state.calls.lock().unwrap();
        let of_it = calls.iter().filter(|call| call.method == method);
        of_it.cloned().collect()
    }

    pub fn capable(&self, change: impl FnOnce(&mut CacheCapabilities)) {
        change(&mut self.state.capabilities.lock().unwrap());
    }

    pub fn with_zstd(&self) {
        self.capable(|capabilities| {
            let zstd = reapi::v2::compressor::Value::Zstd as i32;
            capabilities.supported_compressors = vec![zstd];
            capabilities.supported_batch_update_compressors = vec![zstd];
        });
    }

    pub fn options(&self) -> RemoteOptions {
        RemoteOptions {
            timeout: LONG,
            ..RemoteOptions::new(RemoteAddress::Tcp(self.address.clone()))
        }
    }

    pub fn store(&self) -> RemoteStore {
        RemoteStore::new(&self.options()).unwrap()
    }

    pub fn zstd_store(&self) -> RemoteStore {
        self.with_zstd();
        RemoteStore::new(&RemoteOptions {
            zstd: true,
            ..self.options()
        })
        .unwrap()
    }

    /// A store that does not wait long for this peer.
    pub fn impatient(&self, retries: u32) -> RemoteStore {
        RemoteStore::new(&RemoteOptions {
            timeout: Duration::from_secs(1),
            retries,
            ..self.options()
        })
        .unwrap()
    }
}

/// A line to a peer whose first connection breaks after some bytes.
pub struct Line {
    pub address: String,
    /// The number of connections.
    pub connections: Arc<AtomicUsize>,
    cuts: Arc<Notify>,
    _tasks: JoinSet<()>,
}

impl Line {
    /// Breaks once this many bytes went to the peer, or came from it.
    pub async fn breaking_after(peer: &Peer, up: usize, down: usize) -> Self {
        Self::between("127.0.0.1:0", peer, up, down).await
    }

    /// Listens on this address until it is dropped.
    pub async fn at(address: &str, peer: &Peer) -> Self {
        Self::between(address, peer, usize::MAX, usize::MAX).await
    }

    async fn between(near: &str, peer: &Peer, up: usize, down: usize) -> Self {
        let listener = TcpListener::bind(near).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let target = peer.address.clone();
        let count = Arc::new(AtomicUsize::new(0));
        let accepted = Arc::clone(&count);
        let cuts = Arc::<Notify>::default();
        let cut = Arc::clone(&cuts);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            let (mut up, mut down) = (up, down);
            loop {
                let (near, _) = listener.accept().await.unwrap();
                accepted.fetch_add(1, Ordering::SeqCst);
                let far = TcpStream::connect(&target).await.unwrap();
                let ((from_near, to_near), (from_far, to_far)) =
                    (near.into_split(), far.into_split());
                let cut = Arc::clone(&cut).notified_owned();
                connections.spawn(async move {
                    tokio::select! {
                        () = cut => {}
                        () = carry(from_near, to_far, up) => {}
                        () = carry(from_far, to_near, down) => {}
                    }
                });
                (up, down) = (usize::MAX, usize::MAX);
            }
        });
        Self {
            address,
            connections: count,
            cuts,
            _tasks: tasks,
        }
    }

    /// Cuts all open connections.
    pub fn cut(&self) {
        self.cuts.notify_waiters();
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut left: usize) {
    let mut buffer = vec![0; 16 << 10];
    while left > 0 {
        let Ok(len @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let len = len.min(left);
        left -= len;
        if to.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}

pub fn sha256(content: &[u8]) -> Digest {
    DigestFunction::Sha256.digest(content)
}

/// Fails if `future` takes longer than it may.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.expect("it hangs")
}
