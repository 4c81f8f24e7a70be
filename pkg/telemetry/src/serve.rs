//! Metrics over HTTP, for a few who ask now and then.

use std::{convert::Infallible, mem, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::Metrics;

/// Where they are, on any host name.
pub const PATH: &str = "/metrics";

/// Connections at once; others wait until one of them ends.
const MAX_CONNECTIONS: usize = 64;
/// From a connection's first byte to its last: it is for one request, and no client may hold on to
/// it by asking slowly, or by not reading.
const LIFETIME: Duration = Duration::from_secs(10);
/// What is read of a request.
const MAX_HEADERS: usize = 16 * 1024;
/// How long a request that is being answered has to end at shutdown.
const GRACE: Duration = Duration::from_secs(1);
/// How long to wait before accepting again when the system has no more sockets to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers on `listener` until `shutdown` is cancelled, and for at most a second after that.
/// Whatever ends this future ends what it started.
pub async fn serve(listener: TcpListener, metrics: Metrics, shutdown: CancellationToken) {
    let metrics = Arc::new(metrics);
    let mut connections = JoinSet::new();
    loop {
        let room = connections.len() < MAX_CONNECTIONS;
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            stream = accept(&listener), if room => {
                let connection = connection(stream, Arc::clone(&metrics), shutdown.clone());
                connections.spawn(connection);
            }
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(GRACE, ended).await;
}

async fn accept(listener: &TcpListener) -> TcpStream {
    let mut warned = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                if !mem::replace(&mut warned, true) {
                    warn!("cannot accept a connection for metrics, trying again: {error}");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers one request.
async fn connection(stream: TcpStream, metrics: Arc<Metrics>, shutdown: CancellationToken) {
    let service = service_fn(move |request: Request<_>| {
        let response = respond(&request, &metrics);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let served = async {
        let mut connection = pin!(connection);
        tokio::select! {
            ended = &mut connection => return ended,
            () = shutdown.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    match timeout(LIFETIME, served).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => debug!("a connection for metrics ended: {why}"),
        Err(_) => debug!("a connection for metrics took longer than {LIFETIME:?}"),
    }
}

fn respond<B>(request: &Request<B>, metrics: &Metrics) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        let there = format!("there is nothing here; metrics are at {PATH}\n");
        return plain(StatusCode::NOT_FOUND, there);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let only = format!("{PATH} can be read, by GET or HEAD, and nothing else\n");
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, only);
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(header::ALLOW, allowed);
        return response;
    }
    let accept = request.headers().get(header::ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok());
    match metrics.expose(accept.unwrap_or_default()) {
        Ok(told) => response(StatusCode::OK, told.content_type, told.text),
        Err(why) => {
            error!("the metrics cannot be told: {why}");
            let failed = "the metrics cannot be told\n".to_owned();
            plain(StatusCode::INTERNAL_SERVER_ERROR, failed)
        }
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", text)
}

fn response(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    response
}
