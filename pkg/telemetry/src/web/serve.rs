//! The connections of the HTTP server.

use std::{
    convert::Infallible,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Site, site::Answers};

/// The number of connections served at once. Others wait in the listener's queue.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// The longest wait for the head of a request, which is also the longest time between two requests.
const HEAD: Duration = Duration::from_secs(10);
/// The age at which a connection gets no further request, so that slow clients cannot hold all of them.
const AGE: Duration = Duration::from_secs(30);
/// The age at which a connection with events is closed. Browsers open another.
const EVENTS_AGE: Duration = Duration::from_mins(10);
/// The time that the last response gets.
const LAST_RESPONSE: Duration = Duration::from_secs(10);
/// The largest head of a request, in bytes.
const MAX_HEADERS: usize = 16 * 1024;
/// The time that running requests get at shutdown.
const GRACE: Duration = Duration::from_secs(1);
/// The pause after a failed `accept`, for example when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The client of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: IpAddr,
    /// Set once the connection carries events.
    pub(super) has_events: Arc<AtomicBool>,
}

/// Serves `site` on `listener` until `shutdown` is cancelled, and for at most a second after that.
/// Dropping the future closes all connections.
pub async fn serve(listener: TcpListener, site: Site, shutdown: CancellationToken) {
    let answers = Arc::new(Answers::new(site, shutdown.clone()));
    let sampled = answers.sample();
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            let room = connections.len() < MAX_CONNECTIONS;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next() => {}
                (stream, address) = accept(&listener), if room => {
                    let has_events = Arc::default();
                    let peer = Peer { address, has_events };
                    let answers = Arc::clone(&answers);
                    connections.spawn(connection(stream, peer, answers, shutdown.clone()));
                }
            }
        }
    };
    tokio::join!(accepting, sampled);
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(GRACE, ended).await;
}

async fn accept(listener: &TcpListener) -> (TcpStream, IpAddr) {
    let mut failed = false;
    loop {
        match listener.accept().await {
            Ok((stream, address)) => return (stream, address.ip()),
            Err(why) if !failed => {
                warn!("failed to accept a connection for metrics, retrying: {why}");
                failed = true;
            }
            Err(_) => {}
        }
        sleep(ACCEPT_PAUSE).await;
    }
}

async fn connection(
    stream: TcpStream,
    peer: Peer,
    answers: Arc<Answers>,
    shutdown: CancellationToken,
) {
    // A small response must not wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let has_events = Arc::clone(&peer.has_events);
    let service = service_fn(move |request| {
        let (answers, peer) = (Arc::clone(&answers), peer.clone());
        async move { Ok::<_, Infallible>(answers.answer(request, peer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let aged = async {
        sleep(AGE).await;
        if has_events.load(Relaxed) {
            sleep(EVENTS_AGE).await;
        }
    };
    let ended = tokio::select! {
        ended = &mut connection => Some(ended),
        () = shutdown.cancelled() => None,
        () = aged => None,
    };
    let ended = if let Some(ended) = ended {
        Ok(ended)
    } else {
        connection.as_mut().graceful_shutdown();
        timeout(LAST_RESPONSE, connection).await
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(why)) => debug!("connection for metrics failed: {why}"),
        Err(_) => debug!("connection for metrics closed: its client reads too slowly"),
    }
}
