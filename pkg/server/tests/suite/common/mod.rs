//! A real server over loopback, and clients of it.

pub(crate) mod authority;
pub(crate) mod executing;
pub(crate) mod frames;
pub(crate) mod raw;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use gorego_limits::Budget;
use gorego_server::{Options, Stores, serve};
use gorego_storage::{
    Blob, BlobStore, BlobStream, CompletenessChecking, Digest, DigestFunction, Error, MemoryStore,
    Put,
};
use reapi::{
    bytestream::{
        QueryWriteStatusRequest, QueryWriteStatusResponse, ReadRequest, WriteRequest,
        byte_stream_client::ByteStreamClient,
    },
    v2::{
        FindMissingBlobsRequest, action_cache_client::ActionCacheClient,
        capabilities_client::CapabilitiesClient,
        content_addressable_storage_client::ContentAddressableStorageClient,
    },
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

/// A time longer than any test takes, so that a hang is a failure.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// A server that ends with its test.
pub(crate) struct Server {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) address: String,
    pub(crate) shutdown: CancellationToken,
    taken: watch::Sender<u64>,
    tasks: JoinSet<Result<(), gorego_grpc::Error>>,
}

impl Server {
    /// A server with the defaults.
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// A server with other options.
    pub(crate) async fn limited(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::default();
        change(&mut options);
        Self::with(options).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let store = Arc::new(MemoryStore::default());
        let (taken, _) = watch::channel(0);
        let stores = Stores {
            blobs: Arc::new(Counted {
                store: Arc::clone(&store),
                taken: taken.clone(),
            }),
            uploads: Arc::<MemoryStore>::clone(&store),
            actions: Arc::<MemoryStore>::clone(&store),
        };
        let server = Self::over(stores, options).await;
        Self {
            store,
            taken,
            ..server
        }
    }

    /// A server that returns only complete results.
    pub(crate) async fn of_complete_results() -> Self {
        let store = Arc::<MemoryStore>::default();
        let memory = Budget::memory("memory for trees", 1 << 20);
        let blobs = Arc::clone(&store) as Arc<dyn BlobStore>;
        let actions = CompletenessChecking::new(Arc::clone(&store), Arc::clone(&blobs), memory);
        let stores = Stores {
            blobs,
            uploads: Arc::clone(&store) as _,
            actions: Arc::new(actions),
        };
        let server = Self::over(stores, Options::default()).await;
        Self { store, ..server }
    }

    /// A server over other stores.
    pub(crate) async fn over(stores: Stores, options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, stores, options)
    }

    /// A server on this listener.
    pub(crate) fn on(listener: TcpListener, stores: Stores, options: Options) -> Self {
        let address = listener.local_addr().unwrap().to_string();
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, stores, options, shutdown.clone()));
        Self {
            store: Arc::default(),
            taken: watch::channel(0).0,
            address,
            shutdown,
            tasks,
        }
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address))
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    pub(crate) async fn cas(&self) -> ContentAddressableStorageClient<Channel> {
        ContentAddressableStorageClient::new(self.connect().await)
            .max_decoding_message_size(64 << 20)
    }

    pub(crate) async fn bytes(&self) -> ByteStreamClient<Channel> {
        ByteStreamClient::new(self.connect().await)
    }

    pub(crate) async fn actions(&self) -> ActionCacheClient<Channel> {
        ActionCacheClient::new(self.connect().await)
    }

    pub(crate) async fn capabilities(&self) -> CapabilitiesClient<Channel> {
        CapabilitiesClient::new(self.connect().await)
    }

    /// Waits for the server to end.
    pub(crate) async fn ended(mut self) -> Result<(), gorego_grpc::Error> {
        tokio::time::timeout(LONG, self.tasks.join_next())
            .await
            .expect("the server ends")
            .expect("it was started")
            .unwrap()
    }

    /// Waits until streamed uploads have brought this many bytes in total to the store.
    pub(crate) async fn has_taken(&self, bytes: u64) {
        let mut taken = self.taken.subscribe();
        let wait = taken.wait_for(|taken| *taken >= bytes);
        tokio::time::timeout(LONG, wait).await.unwrap().unwrap();
    }

    /// Puts a blob into the store behind the server.
    pub(crate) async fn has(&self, content: &[u8]) -> Digest {
        let digest = sha256(content);
        let content = Blob::Bytes(Bytes::copy_from_slice(content));
        self.store.put(&digest, content).await.unwrap();
        digest
    }

    /// Returns the content of a blob in the store behind the server.
    pub(crate) async fn stored(&self, digest: &Digest) -> Option<Bytes> {
        match self.store.get(digest, 0).await {
            Ok(blob) => Some(blob.into_bytes().await.unwrap()),
            Err(Error::NotFound(_)) => None,
            Err(other) => panic!("{other}"),
        }
    }
}

/// A store that counts the bytes of streams.
#[derive(Debug)]
struct Counted {
    store: Arc<MemoryStore>,
    taken: watch::Sender<u64>,
}

#[async_trait]
impl BlobStore for Counted {
    async fn find_missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, Error> {
        self.store.find_missing(digests).await
    }

    async fn get(&self, digest: &Digest, offset: u64) -> Result<Blob, Error> {
        self.store.get(digest, offset).await
    }

    async fn put(&self, digest: &Digest, blob: Blob) -> Result<Put, Error> {
        let Blob::Stream(BlobStream { chunks, resume, .. }) = blob else {
            return self.store.put(digest, blob).await;
        };
        let taken = self.taken.clone();
        let chunks = chunks.inspect_ok(move |chunk| {
            taken.send_modify(|taken| *taken += chunk.len() as u64);
        });
        let stream = BlobStream {
            chunks: chunks.boxed(),
            resume,
            verified: None,
        };
        self.store.put(digest, Blob::Stream(stream)).await
    }
}

/// An upload whose request stays open until this is dropped.
pub(crate) struct OpenUpload {
    messages: mpsc::UnboundedSender<WriteRequest>,
    call: JoinSet<Result<i64, Status>>,
}

impl OpenUpload {
    pub(crate) fn start(mut client: ByteStreamClient<Channel>) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut call = JoinSet::new();
        call.spawn(async move {
            let answer = client.write(UnboundedReceiverStream::new(receiver)).await?;
            Ok(answer.into_inner().committed_size)
        });
        Self {
            messages: sender,
            call,
        }
    }

    pub(crate) fn send(&self, message: WriteRequest) {
        // The call may be over already, which its answer tells.
        let _ = self.messages.send(message);
    }

    /// The answer to the request that has not ended.
    pub(crate) async fn answer(&mut self) -> Result<i64, Status> {
        tokio::time::timeout(LONG, self.call.join_next())
            .await
            .expect("an answer")
            .expect("one call")
            .unwrap()
    }
}

/// Returns the hashes of the digests that are reported as missing.
pub(crate) async fn missing(server: &Server, digests: &[Digest]) -> Vec<String> {
    let request = FindMissingBlobsRequest {
        blob_digests: digests.iter().map(Digest::to_proto).collect(),
        ..FindMissingBlobsRequest::default()
    };
    let answer = server.cas().await.find_missing_blobs(request).await;
    let missing = answer.unwrap().into_inner().missing_blob_digests;
    missing.into_iter().map(|digest| digest.hash).collect()
}

pub(crate) fn sha256(content: &[u8]) -> Digest {
    DigestFunction::Sha256.digest(content)
}

/// Content without repetition, the same for the same length and seed.
pub(crate) fn noise(len: usize, seed: u64) -> Bytes {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[4]
        })
        .collect::<Vec<u8>>()
        .into()
}

/// Content that compresses to next to nothing.
pub(crate) fn monotony(len: usize) -> Bytes {
    let bytes = (0_u8..=255).cycle();
    bytes.flat_map(|byte| [byte; 997]).take(len).collect()
}

pub(crate) fn zstd(content: &[u8]) -> Bytes {
    zstd::encode_all(content, 3).unwrap().into()
}

pub(crate) fn unzstd(compressed: &[u8]) -> Vec<u8> {
    zstd::decode_all(compressed).unwrap()
}

/// The name to write a blob under.
pub(crate) fn upload_name(uuid: &str, digest: &Digest) -> String {
    format!("uploads/{uuid}/blobs/{digest}")
}

pub(crate) fn compressed_upload_name(uuid: &str, digest: &Digest) -> String {
    format!("uploads/{uuid}/compressed-blobs/zstd/{digest}")
}

/// The messages of a whole upload, in pieces of `piece` bytes.
pub(crate) fn messages(name: &str, content: &Bytes, piece: usize) -> Vec<WriteRequest> {
    messages_from(name, 0, content, piece)
}

/// The messages of an upload from an offset on, in pieces of `piece` bytes.
pub(crate) fn messages_from(
    name: &str,
    offset: usize,
    content: &Bytes,
    piece: usize,
) -> Vec<WriteRequest> {
    let count = content.len().div_ceil(piece).max(1);
    (0..count)
        .map(|index| {
            let start = index * piece;
            WriteRequest {
                resource_name: if index == 0 {
                    name.to_owned()
                } else {
                    String::new()
                },
                write_offset: (offset + start).try_into().unwrap(),
                finish_write: index + 1 == count,
                data: content.slice(start..content.len().min(start + piece)),
            }
        })
        .collect()
}

/// Uploads, and returns the committed size.
pub(crate) async fn write(
    client: &mut ByteStreamClient<Channel>,
    messages: Vec<WriteRequest>,
) -> Result<i64, Status> {
    let answer = client.write(tokio_stream::iter(messages)).await?;
    Ok(answer.into_inner().committed_size)
}

pub(crate) async fn query(
    client: &mut ByteStreamClient<Channel>,
    name: &str,
) -> Result<QueryWriteStatusResponse, Status> {
    let request = QueryWriteStatusRequest {
        resource_name: name.to_owned(),
    };
    Ok(client.query_write_status(request).await?.into_inner())
}

pub(crate) async fn read(
    client: &mut ByteStreamClient<Channel>,
    name: &str,
    offset: i64,
    limit: i64,
) -> Result<Vec<u8>, Status> {
    let request = ReadRequest {
        resource_name: name.to_owned(),
        read_offset: offset,
        read_limit: limit,
    };
    let mut stream = client.read(request).await?.into_inner();
    let mut content = Vec::new();
    while let Some(message) = stream.message().await? {
        content.extend_from_slice(&message.data);
    }
    Ok(content)
}

/// Asserts a refusal with this code whose message holds this text.
#[track_caller]
pub(crate) fn assert_refused<T: std::fmt::Debug>(
    outcome: Result<T, Status>,
    code: Code,
    text: &str,
) {
    let status = outcome.expect_err("a refusal");
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(text), "{status}");
}
