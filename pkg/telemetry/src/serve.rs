//! An HTTP/1 server for the metrics, with one request for each connection.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

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

/// The path of the metrics.
pub const PATH: &str = "/metrics";

/// The number of connections served at once. Others wait in the listener's queue.
const MAX_CONNECTIONS: usize = 64;
/// The longest time from accepting a connection to closing it, so that slow clients cannot hold all
/// of them.
const LIFETIME: Duration = Duration::from_secs(10);
/// The largest head of a request, in bytes.
const MAX_HEADERS: usize = 16 * 1024;
/// The time that running requests get at shutdown.
const GRACE: Duration = Duration::from_secs(1);
/// The pause after a failed `accept`, for example when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves metrics on `listener` until `shutdown` is cancelled, and for at most a second after that.
/// Dropping the future closes all connections.
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
    let mut failed = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(why) if !failed => {
                warn!("failed to accept a connection for metrics, retrying: {why}");
                failed = true;
            }
            Err(_) => {}
        }
        sleep(ACCEPT_PAUSE).await;
    }
}

/// Answers the one request of a connection.
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
        Ok(Err(why)) => debug!("connection for metrics failed: {why}"),
        Err(_) => debug!("connection for metrics closed after {LIFETIME:?}"),
    }
}

fn respond<B>(request: &Request<B>, metrics: &Metrics) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        let text = format!("not found; metrics are at {PATH}\n");
        return plain(StatusCode::NOT_FOUND, text);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let text = format!("{PATH} accepts GET and HEAD only\n");
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, text);
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(header::ALLOW, allowed);
        return response;
    }
    let accept = request.headers().get(header::ACCEPT);
    let accept = accept.and_then(|accept| accept.to_str().ok());
    match metrics.expose(accept.unwrap_or_default()) {
        Ok((content_type, text)) => response(StatusCode::OK, content_type, text),
        Err(why) => {
            error!("failed to encode metrics: {why}");
            let failed = "failed to encode metrics\n".to_owned();
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
