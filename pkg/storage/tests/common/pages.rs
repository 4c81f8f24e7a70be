//! A balancer that answers calls with pages of HTTP.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "tests, each using a part"
)]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use gorego_storage::{BreakerOptions, RemoteAddress, RemoteOptions, RemoteStore};
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

pub struct Balancer {
    pub address: String,
    /// The number of calls answered with the page.
    pub pages: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Balancer {
    /// Answers each call with this page, apart from `Capabilities`, which it does not have.
    pub async fn start(page: Page) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let pages = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&pages);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, page, Arc::clone(&count)));
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

async fn serve(stream: TcpStream, page: Page, pages: Arc<AtomicUsize>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if request.uri().path().ends_with("Capabilities") {
            let head = http::Response::builder().header("grpc-status", "12");
            respond.send_response(head.body(()).unwrap(), true).unwrap();
            continue;
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
