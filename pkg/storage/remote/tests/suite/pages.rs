//! A balancer that answers calls with pages of HTTP.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use gorego_storage_remote::{BreakerOptions, RemoteAddress, RemoteOptions, RemoteStore};
use prost::Message as _;
use reapi::v2;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// The page that answers each call.
#[derive(Clone, Copy)]
pub struct Page {
    pub status: u16,
    pub content_type: &'static str,
    pub body: &'static str,
}

/// The answer to `Capabilities`.
#[derive(Clone, Copy)]
pub enum Offers {
    Unimplemented,
    Zstd,
    ThePage,
}

pub struct Balancer {
    pub address: String,
    /// The number of calls answered with the page.
    pub pages: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Balancer {
    /// Answers each call with this page, apart from `Capabilities`, which it does not have.
    pub async fn start(page: Page) -> Self {
        Self::offering(Offers::Unimplemented, page).await
    }

    /// Answers each call with this page, apart from `Capabilities`.
    pub async fn offering(offers: Offers, page: Page) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let pages = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&pages);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, offers, page, Arc::clone(&count)));
            }
        });
        Self {
            address,
            pages,
            _tasks: tasks,
        }
    }

    /// A store whose breaker opens with the first failure, but for the time of a call's retries.
    pub fn store(&self, retries: u32) -> RemoteStore {
        let options = RemoteOptions {
            retries,
            zstd: true,
            breaker: BreakerOptions {
                failures: retries + 1,
                ..BreakerOptions::default()
            },
            ..RemoteOptions::new(RemoteAddress::Tcp(self.address.clone()))
        };
        RemoteStore::new(&options).unwrap()
    }

    pub fn answered(&self) -> usize {
        self.pages.load(Ordering::SeqCst)
    }
}

async fn serve(stream: TcpStream, offers: Offers, page: Page, pages: Arc<AtomicUsize>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let is_capabilities = request.uri().path().ends_with("Capabilities");
        match offers {
            Offers::Unimplemented if is_capabilities => {
                let head = http::Response::builder().header("grpc-status", "12");
                respond.send_response(head.body(()).unwrap(), true).unwrap();
                continue;
            }
            Offers::Zstd if is_capabilities => {
                let head = http::Response::builder().header("content-type", "application/grpc");
                let mut send = respond
                    .send_response(head.body(()).unwrap(), false)
                    .unwrap();
                send.send_data(zstd_capabilities(), false).unwrap();
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                send.send_trailers(trailers).unwrap();
                continue;
            }
            _ => {}
        }
        pages.fetch_add(1, Ordering::SeqCst);
        let head = http::Response::builder()
            .status(page.status)
            .header("content-type", page.content_type);
        let head = head.body(()).unwrap();
        let mut send = respond.send_response(head, page.body.is_empty()).unwrap();
        if !page.body.is_empty() {
            send.send_data(Bytes::from_static(page.body.as_bytes()), true)
                .unwrap();
        }
    }
}

/// A gRPC message of the capabilities of a cache that takes compressed content.
fn zstd_capabilities() -> Bytes {
    let zstd = vec![v2::compressor::Value::Zstd as i32];
    let message = v2::ServerCapabilities {
        cache_capabilities: Some(v2::CacheCapabilities {
            supported_compressors: zstd.clone(),
            supported_batch_update_compressors: zstd,
            ..v2::CacheCapabilities::default()
        }),
        ..v2::ServerCapabilities::default()
    };
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut framed).unwrap();
    framed.freeze()
}
