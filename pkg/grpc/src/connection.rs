//! One connection, from the handshake to its end.

use std::{
    convert::Infallible,
    future::{pending, ready},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::FutureExt as _;
use gorego_limits::Client;
use gorego_tls::NodeIdentity;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::{
    Options, Peer, Peers, Service, Socket,
    greeting::{self, BoxError, Fault, Faults, HANDSHAKE_TIMEOUT},
    head::refuse_foreign,
    idle::{Activity, Idle},
    placement::Placement,
    router::Router,
    watchdog::StreamExecutor,
    windows::Windows,
    wire::Wire,
};

/// The interval between pings, and the time in which a client has to answer one.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// The most bytes of a response within the HTTP/2 layer.
const SEND_BUFFER: usize = 64 * 1024;
/// The most cancelled calls that wait in the HTTP/2 layer; beyond it the layer ends the connection. A client that
/// stops, or a proxy, may cancel all of its calls in one burst. Each takes about a kilobyte, and its headers. [`Wire`]
/// limits cancelled calls over time.
const MAX_PENDING_RESETS: usize = 1024;
/// The most streams that the HTTP/2 layer ends for a breach of the protocol during the life of a connection. Each
/// takes a few hundred bytes until the client reads it. A connection between balancers lives for weeks.
const MAX_BREACHES: usize = 4096;
/// The most bytes of headers in a call that the HTTP/2 layer reads. It exceeds [`crate::head::MAX_HEADERS`], so that
/// the refusal is a gRPC status. Beyond it the layer refuses the stream, and beyond four times as much the connection.
/// Headers may take a hundred times as much memory as they did on the wire, times the calls that begin in one burst.
const MAX_HEADER_LIST: u32 = 64 * 1024;
/// The bytes of a connection's table of headers that need not be repeated. Names and tokens fit; a larger table would
/// be memory held by idle connections.
const HEADER_TABLE: u32 = 4 * 1024;

/// The state that all connections share.
#[derive(Debug)]
pub(crate) struct Connections<S> {
    pub(crate) options: Options,
    pub(crate) router: Arc<Router<S>>,
    pub(crate) faults: Faults,
    /// The tasks of all connections.
    pub(crate) tasks: TaskTracker,
    /// The connections that can make room for others.
    pub(crate) idle: Arc<Idle>,
    /// Cancelled when clients are to leave after their calls in progress.
    pub(crate) drain: CancellationToken,
    /// Cancelled, after `drain`, when connections are to end at once.
    pub(crate) abort: CancellationToken,
}

impl<S: Service> Connections<S> {
    /// Serves one client until it leaves or is disconnected.
    pub(crate) async fn serve(self: Arc<Self>, stream: impl Socket, placement: Placement) {
        let Ok(peer) = stream.peer_addr() else {
            // The client has disconnected.
            return;
        };
        // IPv4 addresses are plain also where the listener is one of IPv6.
        let address = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        // Small messages must not wait for the acknowledgement of earlier ones.
        let _ = stream.set_nodelay();
        let activity = self.idle.connection();
        let Err(why) = self.greet(stream, address, (activity, placement)).await else {
            return;
        };
        if let Some(fault) = why.downcast_ref() {
            self.faults.report(address, fault);
        } else {
            debug!("connection of {address} ended: {why}");
        }
    }

    /// Serves a client after its handshake. Both are boxed: the memory of the handshake is freed after it, and that
    /// of TLS is taken only where it is used.
    async fn greet(
        self: &Arc<Self>,
        stream: impl Socket,
        address: SocketAddr,
        (activity, placement): (Arc<Activity>, Placement),
    ) -> Result<(), BoxError> {
        let mut peer = Peer {
            address,
            node: None,
        };
        let Some(tls) = &self.options.tls else {
            let greeting = Box::pin(greeting::http2(stream, "grpc"));
            let stream = self.in_time(&activity, greeting).await?;
            return Box::pin(self.serve_http2(stream, peer, (activity, placement), pending()))
                .await;
        };
        let mut tls = tls.clone();
        let config = Arc::clone(&tls.borrow_and_update().config);
        let greeting = Box::pin(greeting::tls(stream, config));
        let stream = self.in_time(&activity, greeting).await?;
        let shown = stream.get_ref().1.peer_certificates();
        let node = shown.and_then(|chain| NodeIdentity::of(chain.first()?));
        peer.node = node.map(Arc::new);
        // Nodes connect again on their own, and prove their names by the new files.
        let changed = async {
            if self.options.peers == Peers::Clients || tls.changed().await.is_err() {
                pending::<()>().await;
            }
        };
        Box::pin(self.serve_http2(stream, peer, (activity, placement), changed)).await
    }

    /// Runs a handshake, which neither its client nor the shutdown may prolong, and which makes room for others like
    /// any connection without a call.
    async fn in_time<T>(
        &self,
        activity: &Activity,
        handshake: impl Future<Output = Result<T, BoxError>>,
    ) -> Result<T, BoxError> {
        tokio::select! {
            outcome = timeout(HANDSHAKE_TIMEOUT, handshake) => outcome.map_err(|_| {
                let (handshake, scheme) = match self.options.tls {
                    Some(_) => ("TLS handshake and HTTP/2 preface", "grpcs"),
                    None => ("HTTP/2 preface", "grpc"),
                };
                Fault::Unfinished { handshake, scheme }
            })?,
            () = self.drain.cancelled() => Err("shutting down".into()),
            () = activity.has_to_close() => Err("closed in its handshake to make room".into()),
        }
    }

    async fn serve_http2<IO>(
        self: &Arc<Self>,
        stream: IO,
        peer: Peer,
        (activity, placement): (Arc<Activity>, Placement),
        outdated: impl Future<Output = ()>,
    ) -> Result<(), BoxError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = Arc::clone(&self.router);
        let wire = Wire::new(stream, peer.address);
        let client = Client::new(self.options.limits.grace);
        let caller = client.clone();
        let announced = placement.clone();
        let service = service_fn(move |request: http::Request<Incoming>| {
            announced.announce(request.uri().path());
            // At once, so that large headers are freed before the next call is accepted.
            let answer = if let Some(refusal) = refuse_foreign(&request) {
                let call = caller.call();
                call.run(|| router.refused(&request, peer.address, &refusal));
                ready(refusal).left_future()
            } else {
                let (router, peer) = (Arc::clone(&router), peer.clone());
                // Boxed, since the future of a call is large, and moved several times before it runs.
                Box::pin(async move { router.call(request, peer).await }).right_future()
            };
            answer.map(Ok::<_, Infallible>)
        });
        let executor = StreamExecutor {
            tasks: self.tasks.clone(),
            activity: Arc::clone(&activity),
            client,
            idle_timeout: self.options.limits.idle_timeout,
            placement,
        };
        // All connections hold this value, and so does the task that accepts them.
        let connections = Arc::strong_count(self).saturating_sub(1);
        let windows = Windows::new(&self.options.memory, connections);
        let mut connection =
            pin!(builder(executor, &windows).serve_connection(TokioIo::new(wire.clone()), service));
        // Pinned here, since each layer of futures would have room for it twice.
        let served = pin!(async {
            tokio::select! {
                ended = connection.as_mut() => return Ok(ended?),
                () = self.drain.cancelled() => {}
                () = activity.has_to_close() => {}
                () = outdated => {}
            }
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                // First, so that the client is notified before it is cut off.
                biased;
                ended = connection.as_mut() => Ok(ended?),
                () = self.abort.cancelled() => Err("cut off".into()),
                () = activity.may_be_closed(&self.drain) => Err("closed without a call".into()),
            }
        });
        wire.drive(served).await
    }
}

/// Sets every limit of HTTP/2 that hyper exposes. h2 has others: the overhead of small unread data frames (half of
/// the connection's window), empty data frames (100 in a connection's life), and remembered streams that the server
/// has reset (50, for a second).
fn builder(executor: StreamExecutor, windows: &Windows) -> http2::Builder<StreamExecutor> {
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .max_frame_size(windows.frame)
        .max_send_buf_size(SEND_BUFFER)
        .max_concurrent_streams(windows.calls)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_BREACHES)
        .max_header_list_size(MAX_HEADER_LIST)
        .header_table_size(HEADER_TABLE)
        // No client of a build cache needs the date.
        .auto_date_header(false);
    builder
}
