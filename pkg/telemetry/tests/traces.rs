//! Tests of the delivery of spans to a collector: dropped spans, the wait at shutdown, and trust.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{convert::Infallible, fs, time::Duration};

use bytes::Bytes;
use gorego_telemetry::{
    Calls,
    traces::{Collector, CollectorOptions, EndedSpans, Protocol, context::Sampling, layer},
};
use gorego_tls::{ClientAuth, ClientFiles, ServerFiles};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{layer::SubscriberExt as _, registry};

/// The most spans that wait for the collector.
const QUEUE: u64 = 4096;
const PATIENCE: Duration = Duration::from_mins(1);

/// Begins and ends traced calls, whose spans then wait for the collector.
fn ended(calls: u64) -> EndedSpans {
    let (layer, spans) = layer();
    let observer = Calls::new(Some(Sampling::new(1.0)));
    tracing::subscriber::with_default(registry().with(layer), || {
        for _ in 0..calls {
            let path = "/google.bytestream.ByteStream/Read";
            let call = observer.began(path, &HeaderMap::new(), ([127, 0, 0, 1], 1).into());
            call.ended(0);
        }
    });
    spans
}

fn plain(address: String) -> CollectorOptions {
    CollectorOptions {
        address,
        path: String::new(),
        protocol: Protocol::Grpc,
        tls: None,
        headers: watch::channel(HeaderMap::new()).1,
    }
}

#[test]
fn spans_beyond_the_queue_are_dropped_and_counted() {
    let spans = ended(QUEUE + 10);
    assert_eq!(spans.dropped()(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_never_answers_does_not_prolong_the_end() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let spans = ended(700);
    let dropped = spans.dropped();
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    let collector = Collector::new(plain(address)).unwrap();
    let end = spans.export(collector, "1.2.3", shutdown);
    tokio::time::timeout(Duration::from_secs(3), end)
        .await
        .unwrap();
    assert_eq!(dropped(), 700);
}

#[tokio::test]
async fn a_collector_with_tls_gets_spans_if_its_authority_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let cert_file = write("own.pem", own.cert.pem());
    let files = ServerFiles {
        cert_file: cert_file.clone(),
        key_file: write("own.key", own.signing_key.serialize_pem()),
        client_auth: ClientAuth::None,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, mut requests) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(
        listener,
        TlsAcceptor::from(files.load().unwrap().config),
        sender,
    ));
    let trusted = |ca_file| {
        let files = ClientFiles {
            ca_file: Some(ca_file),
            identity: None,
        };
        Collector::new(CollectorOptions {
            tls: Some(watch::channel(files.load().unwrap()).1),
            ..plain(format!("localhost:{port}"))
        })
    };
    let (done, shutdown) = (CancellationToken::new(), CancellationToken::new());
    done.cancel();
    let spans = ended(1);
    let dropped = spans.dropped();
    let untrusted = trusted(write("other.pem", other.cert.pem())).unwrap();
    spans.export(untrusted, "1.2.3", done).await;
    assert_eq!(dropped(), 1);
    let collector = trusted(cert_file).unwrap();
    tasks.spawn(ended(2).export(collector, "1.2.3", shutdown));
    let request = tokio::time::timeout(PATIENCE, requests.recv()).await;
    let (path, message): (String, Bytes) = request.unwrap().unwrap();
    assert_eq!(
        path,
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    );
    let sent = String::from_utf8_lossy(&message);
    assert_eq!(sent.matches("google.bytestream.ByteStream/Read").count(), 2);
    assert!(
        sent.contains("service.version") && sent.contains("1.2.3"),
        "{sent}"
    );
}

/// Accepts what is exported over TLS, and sends it to the test.
async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    sender: mpsc::UnboundedSender<(String, Bytes)>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(stream) = tls.accept(stream).await else {
            continue;
        };
        let service = service_fn(|request: Request<Incoming>| {
            let sender = sender.clone();
            async move {
                let path = request.uri().path().to_owned();
                let message = request.into_body().collect().await.unwrap().to_bytes();
                sender.send((path, message)).unwrap();
                let response = Response::builder()
                    .header("content-type", "application/grpc")
                    .header("grpc-status", "0");
                Ok::<_, Infallible>(response.body(Full::<Bytes>::default()).unwrap())
            }
        });
        let stream = TokioIo::new(stream);
        let _ = http2::Builder::new(TokioExecutor::new())
            .serve_connection(stream, service)
            .await;
    }
}
