//! Misbehaviour on the wire, of a peer or of a proxy in front of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::pages::{Balancer, Offers, Page};
use bytes::{BufMut as _, Bytes, BytesMut};
use gorego_storage::{Blob, BlobStore, BreakerState, DigestFunction, Error};
use gorego_storage_conformance as conformance;
use gorego_storage_remote::{RemoteAddress, RemoteOptions, RemoteStore};
use h2::{Reason, SendStream, server::SendResponse};
use prost::Message as _;
use reapi::bytestream::{ReadRequest, ReadResponse};
use tokio::{net::TcpListener, task::JoinSet};

/// The outcome of the first call, which for a download follows some of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Reset(Reason),
    NoTrailers,
    MidMessage,
    Internal,
    BadDetails,
    GoAway(Reason),
}

const CONTENT: usize = 200_000;
const BEFORE_THE_CUT: usize = 100_000;

fn content() -> Bytes {
    conformance::content(1, CONTENT)
}

/// A peer with one blob, without capabilities and `FindMissingBlobs`.
struct Wire {
    address: String,
    calls: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Wire {
    async fn start(cut: Cut) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let calls = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let count = Arc::clone(&calls);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, cut, Arc::clone(&count)));
            }
        });
        Self {
            address,
            calls,
            _tasks: tasks,
        }
    }

    fn store(&self, retries: u32) -> RemoteStore {
        RemoteStore::new(&RemoteOptions {
            retries,
            ..RemoteOptions::new(RemoteAddress::Tcp(self.address.clone()))
        })
        .unwrap()
    }
}

async fn serve(stream: tokio::net::TcpStream, cut: Cut, calls: Arc<AtomicUsize>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let mut answers = JoinSet::new();
    let (broken, mut is_broken) = tokio::sync::mpsc::channel::<Reason>(1);
    loop {
        tokio::select! {
            call = connection.accept() => {
                let Some(Ok((request, respond))) = call else { return };
                answers.spawn(answer(request, respond, cut, Arc::clone(&calls), broken.clone()));
            }
            Some(reason) = is_broken.recv() => connection.abrupt_shutdown(reason),
        }
    }
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    cut: Cut,
    calls: Arc<AtomicUsize>,
    broken: tokio::sync::mpsc::Sender<Reason>,
) {
    let headers = http::Response::builder().header("content-type", "application/grpc");
    let path = request.uri().path().to_owned();
    let first = !path.ends_with("Capabilities") && calls.fetch_add(1, Ordering::SeqCst) == 0;
    if path.ends_with("FindMissingBlobs") && first && cut != Cut::BadDetails {
        let headers = headers.body(()).unwrap();
        let mut send = respond.send_response(headers, false).unwrap();
        end(&mut send, cut);
        return;
    }
    if path.ends_with("FindMissingBlobs") {
        let headers = headers
            .header("grpc-status", "7")
            .header("grpc-status-details-bin", "!!! no base64");
        respond
            .send_response(headers.body(()).unwrap(), true)
            .unwrap();
        return;
    }
    if !path.ends_with("Read") {
        let headers = headers.header("grpc-status", "12");
        respond
            .send_response(headers.body(()).unwrap(), true)
            .unwrap();
        return;
    }
    let asked = request.into_body().data().await.unwrap().unwrap();
    let asked = ReadRequest::decode(&asked[5..]).unwrap();
    let from = usize::try_from(asked.read_offset).unwrap();
    let mut send = respond
        .send_response(headers.body(()).unwrap(), false)
        .unwrap();
    let trailers = |code: &'static str, details: Option<&'static str>| {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", code.parse().unwrap());
        if let Some(details) = details {
            trailers.insert("grpc-status-details-bin", details.parse().unwrap());
        }
        trailers
    };
    if !first {
        send.send_data(framed(content().slice(from..)), false)
            .unwrap();
        send.send_trailers(trailers("0", None)).unwrap();
        return;
    }
    send.send_data(framed(content().slice(..BEFORE_THE_CUT)), false)
        .unwrap();
    // A reset would overtake what was sent.
    tokio::time::sleep(Duration::from_millis(100)).await;
    match cut {
        Cut::Reset(_) | Cut::NoTrailers | Cut::MidMessage => end(&mut send, cut),
        Cut::Internal => send.send_trailers(trailers("13", None)).unwrap(),
        Cut::BadDetails => send.send_trailers(trailers("14", Some("%%%"))).unwrap(),
        Cut::GoAway(reason) => {
            broken.send(reason).await.unwrap();
            std::future::pending::<()>().await;
        }
    }
}

/// Ends an answer as no gRPC server does.
fn end(send: &mut SendStream<Bytes>, cut: Cut) {
    match cut {
        Cut::Reset(reason) => send.send_reset(reason),
        Cut::MidMessage => {
            let begun = Bytes::from_static(&[0, 0, 0, 0, 9, 1, 2]);
            send.send_data(begun, true).unwrap();
        }
        _ => send.send_data(Bytes::new(), true).unwrap(),
    }
}

fn framed(data: Bytes) -> Bytes {
    let message = ReadResponse { data }.encode_to_vec();
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap());
    framed.extend_from_slice(&message);
    framed.freeze()
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, future).await.expect("it hangs")
}

#[tokio::test(start_paused = true)]
async fn a_download_resumes_however_it_was_cut_off() {
    let content = content();
    let digest = DigestFunction::Sha256.digest(&content);
    for cut in [
        Cut::Reset(Reason::CANCEL),
        Cut::Reset(Reason::NO_ERROR),
        Cut::Reset(Reason::ENHANCE_YOUR_CALM),
        Cut::NoTrailers,
        Cut::MidMessage,
        Cut::Internal,
        Cut::BadDetails,
        Cut::GoAway(Reason::ENHANCE_YOUR_CALM),
    ] {
        let peer = Wire::start(cut).await;
        let store = peer.store(2);
        let read = within(async { store.get(&digest, 0).await?.into_bytes().await }).await;
        assert!(
            read.as_ref().is_ok_and(|read| *read == content),
            "{cut:?}: {read:?}"
        );
        assert_eq!(peer.calls.load(Ordering::SeqCst), 2, "{cut:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn status_details_that_are_no_base64_are_ignored() {
    let peer = Wire::start(Cut::BadDetails).await;
    let (store, asked) = (peer.store(0), [DigestFunction::Sha256.digest(b"x")]);
    let error = within(store.find_missing(&asked)).await.unwrap_err();
    let refused = matches!(
        error,
        Error::Refused {
            code: tonic::Code::PermissionDenied,
            ..
        }
    );
    assert!(refused, "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_closed_as_too_busy_is_no_refusal() {
    let digest = DigestFunction::Sha256.digest(&content());
    let busy = Reason::ENHANCE_YOUR_CALM;
    for cut in [Cut::Reset(busy), Cut::GoAway(busy)] {
        let peer = Wire::start(cut).await;
        let store = peer.store(0);
        let read = within(async { store.get(&digest, 0).await?.into_bytes().await }).await;
        let error = read.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_answer_was_cut_off_is_retried() {
    let asked = [DigestFunction::Sha256.digest(b"x")];
    for cut in [Cut::Reset(Reason::NO_ERROR), Cut::MidMessage] {
        let peer = Wire::start(cut).await;
        let store = peer.store(1);
        let error = within(store.find_missing(&asked)).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        assert_eq!(peer.calls.load(Ordering::SeqCst), 2);
    }
}

const UNAVAILABLE: &str = "<html><head><style>b{}</style></head><b>Service unavailable</b></html>";

#[tokio::test]
async fn a_balancers_error_page_is_an_outage_that_names_the_page_and_the_peer() {
    for (status, body) in [429, 502, 503, 504]
        .into_iter()
        .flat_map(|status| [(status, UNAVAILABLE), (status, "")])
    {
        let content_type = "text/html";
        let balancer = Balancer::start(Page {
            status,
            content_type,
            body,
        })
        .await;
        let (store, asked) = (balancer.store(1), [DigestFunction::Sha256.digest(b"x")]);
        let error = within(store.find_missing(&asked)).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
        let error = error.to_string();
        let quoted = if body.is_empty() {
            ""
        } else {
            ": \"Service unavailable\""
        };
        for said in [
            &balancer.address,
            &format!("HTTP {status} "),
            &format!("{content_type}{quoted}; the proxy in front of it"),
        ] {
            assert!(error.contains(said), "{said} in {error}");
        }
        assert_eq!(balancer.answered(), 2, "one retry");
        assert_eq!(*store.breaker().borrow(), BreakerState::Open);
    }
}

#[tokio::test]
async fn an_http_error_is_a_refusal_with_the_code_that_grpc_maps_it_to() {
    use tonic::Code;
    let asked = [DigestFunction::Sha256.digest(b"x")];
    for (status, mapped) in [
        (400, Code::Internal),
        (401, Code::Unauthenticated),
        (403, Code::PermissionDenied),
        (404, Code::Unimplemented),
        (200, Code::Unknown),
        (302, Code::Unknown),
        (500, Code::Unknown),
    ] {
        let page = Page {
            status,
            content_type: "text/html; charset=utf-8",
            body: "<p>Sign in",
        };
        let balancer = Balancer::start(page).await;
        let store = balancer.store(1);
        let error = within(store.find_missing(&asked)).await.unwrap_err();
        let refused =
            matches!(&error, Error::Refused { code, foreign: true, .. } if *code == mapped);
        assert!(refused, "{status}: {error:?}");
        assert!(error.to_string().contains("Sign in"), "{error}");
        assert_eq!(balancer.answered(), 1, "no retry");
        assert_eq!(*store.breaker().borrow(), BreakerState::Closed);
    }
}

#[tokio::test]
async fn an_upload_rejected_by_a_proxy_as_too_large_is_a_temporary_error_that_names_the_setting() {
    let page = Page {
        status: 413,
        content_type: "text/html",
        body: "<h1>Request Entity Too Large",
    };
    let balancer = Balancer::start(page).await;
    let store = balancer.store(3);
    let content = content();
    let digest = DigestFunction::Sha256.digest(&content);
    let error = within(store.put(&digest, Blob::Bytes(content)))
        .await
        .unwrap_err();
    let refused = matches!(
        &error,
        Error::Refused {
            code: tonic::Code::OutOfRange,
            ..
        }
    );
    assert!(refused && error.may_pass(), "{error:?}");
    for said in ["HTTP 413", "client_max_body_size", &balancer.address] {
        assert!(error.to_string().contains(said), "{said} in {error}");
    }
    assert_eq!(balancer.answered(), 1, "no retry");
    assert_eq!(*store.breaker().borrow(), BreakerState::Closed);
}

const NOT_FOUND: Page = Page {
    status: 404,
    content_type: "text/html",
    body: "<h1>default backend",
};

#[tokio::test]
async fn an_error_page_does_not_change_the_known_capabilities() {
    let balancer = Balancer::offering(Offers::ThePage, NOT_FOUND).await;
    let store = balancer.store(0);
    for asked in 1..=2 {
        let error = within(store.capabilities()).await.unwrap_err();
        assert!(error.to_string().contains("HTTP 404"), "{error}");
        assert_eq!(balancer.answered(), asked);
    }
}

#[tokio::test]
async fn a_page_in_answer_to_compressed_content_does_not_turn_compression_off() {
    let balancer = Balancer::offering(Offers::Zstd, NOT_FOUND).await;
    let store = balancer.store(0);
    for len in [10_000, 2 << 20] {
        let content = conformance::content(1, len);
        let digest = DigestFunction::Sha256.digest(&content);
        let errors = [
            within(store.put(&digest, Blob::Bytes(content.clone())))
                .await
                .unwrap_err(),
            within(store.put(&digest, Blob::stream(futures::stream::iter([Ok(content)]))))
                .await
                .unwrap_err(),
            within(store.get(&digest, 0)).await.unwrap_err(),
        ];
        for error in errors {
            assert!(error.to_string().contains("HTTP 404"), "{error}");
        }
    }
    let known = within(store.capabilities()).await.unwrap();
    assert!(known.zstd_streams && known.zstd_batches, "{known:?}");
}

#[tokio::test]
async fn too_many_requests_pause_calls_and_count_as_no_outage() {
    let page = Page {
        status: 429,
        content_type: "text/plain",
        body: "too many requests",
    };
    let balancer = Balancer::start(page).await;
    let store = balancer.store(1);
    let asked = [DigestFunction::Sha256.digest(b"x")];
    within(store.find_missing(&asked)).await.unwrap_err();
    assert_eq!(*store.breaker().borrow(), BreakerState::Open);
    assert_eq!(store.outages(), 0);
}
