//! The connections of the HTTP server, each for one request.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::IpAddr,
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
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Site, site::Answers};

/// The number of connections served at once. For a new one beyond that, the oldest one without a request is closed; if
/// all have requests, it waits for the first answer to end.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// The longest wait for the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// The age at which a connection is closed, for example one whose client reads too slowly.
const AGE: Duration = Duration::from_secs(40);
/// The age at which a connection with events is closed. Browsers open another.
const EVENTS_AGE: Duration = Duration::from_mins(10);
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
    /// Set once the head of the request is complete.
    has_request: Arc<AtomicBool>,
    /// Set once the connection carries events.
    pub(super) has_events: Arc<AtomicBool>,
}

/// Serves `site` on `listener` until `shutdown` is cancelled, and for at most a second after that.
/// Dropping the future closes all connections.
pub async fn serve(listener: TcpListener, site: Site, shutdown: CancellationToken) {
    let answers = Arc::new(Answers::new(site, shutdown.clone()));
    let mut connections = Connections::default();
    let accepting = async {
        loop {
            tokio::select! {
                biased;
                Some(_) = connections.tasks.join_next() => {}
                (stream, address) = accept(&listener) => {
                    connections.make_room().await;
                    connections.add(stream, address, &answers);
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = answers.sample() => {}
    }
    drop(listener);
    connections.close().await;
}

/// The open connections.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// The connections that had no request yet, the oldest first.
    without_request: VecDeque<(Arc<AtomicBool>, AbortHandle)>,
}

impl Connections {
    /// Waits until another connection can be served, at once if one has no request yet.
    async fn make_room(&mut self) {
        self.forget_requested();
        if self.tasks.len() < MAX_CONNECTIONS {
            return;
        }
        if let Some((_, oldest)) = self.without_request.pop_front() {
            debug!("connection for metrics closed before its request: too many are open");
            oldest.abort();
        }
        self.tasks.join_next().await;
    }

    fn add(&mut self, stream: TcpStream, address: IpAddr, answers: &Arc<Answers>) {
        let has_request = Arc::<AtomicBool>::default();
        let peer = Peer {
            address,
            has_request: Arc::clone(&has_request),
            has_events: Arc::default(),
        };
        let task = connection(stream, peer, Arc::clone(answers));
        let task = self.tasks.spawn(task);
        self.without_request.push_back((has_request, task));
    }

    /// Closes the connections without a request, then the others once their requests are answered, or late.
    async fn close(mut self) {
        self.forget_requested();
        for (_, task) in self.without_request {
            task.abort();
        }
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let _ = timeout(GRACE, ended).await;
    }

    fn forget_requested(&mut self) {
        let waits = |(has_request, task): &(Arc<AtomicBool>, AbortHandle)| {
            !has_request.load(Relaxed) && !task.is_finished()
        };
        self.without_request.retain(waits);
    }
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

async fn connection(stream: TcpStream, peer: Peer, answers: Arc<Answers>) {
    // The end of a response must not wait for the acknowledgement of its beginning.
    let _ = stream.set_nodelay(true);
    let has_events = Arc::clone(&peer.has_events);
    let service = service_fn(move |request| {
        peer.has_request.store(true, Relaxed);
        let (answers, peer) = (Arc::clone(&answers), peer.clone());
        async move { Ok::<_, Infallible>(answers.answer(request, peer).await) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let aged = async {
        sleep(AGE).await;
        if has_events.load(Relaxed) {
            sleep(EVENTS_AGE).await;
        }
    };
    tokio::select! {
        ended = connection => if let Err(why) = ended {
            debug!("connection for metrics failed: {why}");
        },
        () = aged => debug!("connection for metrics closed: its client reads too slowly"),
    }
}
