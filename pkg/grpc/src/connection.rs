//! One connection, from the handshake to its end.

use std::{
    convert::Infallible, future::ready, net::SocketAddr, pin::pin, sync::Arc, time::Duration,
};

use futures::FutureExt as _;
use gorego_limits::Client;
use gorego_tls::ServerTls;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::{
    Memory, Service,
    greeting::{self, Fault, Faults},
    head::refuse_foreign,
    idle::{Activity, Idle},
    io::{CallGuard, Coalesced},
    router::Router,
    watchdog::StreamExecutor,
    windows::Windows,
};

/// A client that has not shown by then that it speaks TLS, where due, and HTTP/2 is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that does not answer a ping within the second time is gone.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// A response's bytes within the HTTP/2 layer, beyond which it takes no more.
const SEND_BUFFER: usize = 64 * 1024;
/// The most cancelled calls that the HTTP/2 layer holds until it processes them. Beyond that it
/// ends the connection and every other call on it. A client that stops may cancel all of its calls,
/// and a multiplexing proxy may do so several times in one burst. Each takes about a kilobyte, and
/// its headers. [`CallGuard`] limits how many a client cancels over time.
const MAX_PENDING_RESETS: usize = 1024;
/// The most streams that the HTTP/2 layer may end for a breach of the protocol during the life of a
/// connection. Each may wait to be sent to a client that reads nothing, at a few hundred bytes
/// each. A connection between balancers lives for weeks.
const MAX_BREACHES: usize = 4096;
/// The headers of one call as the HTTP/2 layer takes them. More than a call may have
/// ([`crate::head::MAX_HEADERS`]), so that the refusal is a gRPC status. Beyond it the layer refuses
/// the stream, and beyond four times as much the connection. Headers may take a hundred times as much memory
/// as they did on the wire, times the calls that begin in one burst.
const MAX_HEADER_LIST: u32 = 64 * 1024;
/// The table of remembered headers of a connection, which need not be repeated. Names, tokens and
/// the like fit; a larger table would be memory held by idle connections.
const HEADER_TABLE: u32 = 4 * 1024;

/// What all connections share.
#[derive(Clone, Debug)]
pub(crate) struct Connections<R> {
    pub(crate) router: R,
    /// TLS settings of new connections.
    pub(crate) tls: Option<watch::Receiver<ServerTls>>,
    /// Reports clients that were not let in.
    pub(crate) faults: Arc<Faults>,
    /// Every task that belongs to a connection.
    pub(crate) tasks: TaskTracker,
    /// Those that can make room for others.
    pub(crate) idle: Idle,
    pub(crate) memory: Memory,
    pub(crate) idle_timeout: Duration,
    pub(crate) grace: Duration,
    /// Ask clients to go away once what they are doing is done.
    pub(crate) drain: CancellationToken,
    /// Stop at once, if `drain` has come before.
    pub(crate) abort: CancellationToken,
    /// Held by each connection, and so counts them.
    pub(crate) live: Arc<()>,
}

impl<S: Service> Connections<Arc<Router<S>>> {
    /// Serves one client until it leaves or is told to.
    pub(crate) async fn serve(self, stream: TcpStream) {
        let Ok(peer) = stream.peer_addr() else {
            // It is gone already.
            return;
        };
        // An IPv4 address, also where the listener is one of IPv6.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        // Small messages must not wait for the acknowledgement of earlier ones.
        let _ = stream.set_nodelay(true);
        let activity = self.idle.connection();
        let faults = Arc::clone(&self.faults);
        if let Err(why) = self.greet(stream, peer, activity).await {
            if let Some(fault) = why.downcast_ref() {
                faults.report(peer, fault);
            } else {
                debug!("connection of {peer} ended: {why}");
            }
        }
    }

    async fn greet(
        self,
        stream: TcpStream,
        peer: SocketAddr,
        activity: Activity,
    ) -> Result<(), BoxError> {
        let Some(tls) = &self.tls else {
            let greeting = Box::pin(greeting::http2(stream, "grpc"));
            let stream = self.in_time(&activity, greeting).await?;
            return Box::pin(self.serve_http2(stream, peer, activity)).await;
        };
        let config = Arc::clone(&tls.borrow().config);
        // In memory that goes when it is done: connections last longer.
        let greeting = Box::pin(greeting::tls(stream, config));
        let stream = self.in_time(&activity, greeting).await?;
        // In memory of its own: a connection without TLS needs less, and one in its handshake none.
        Box::pin(self.serve_http2(stream, peer, activity)).await
    }

    /// Runs a handshake. Neither its client nor the end of the server may prolong it, and it makes
    /// room for others like any connection without a call.
    async fn in_time<T>(
        &self,
        activity: &Activity,
        handshake: impl Future<Output = Result<T, BoxError>>,
    ) -> Result<T, BoxError> {
        tokio::select! {
            outcome = timeout(HANDSHAKE_TIMEOUT, handshake) => outcome.map_err(|_| {
                let (handshake, scheme) = match self.tls {
                    Some(_) => ("TLS handshake and HTTP/2 preface", "grpcs"),
                    None => ("HTTP/2 preface", "grpc"),
                };
                Fault::Unfinished { handshake, scheme, within: HANDSHAKE_TIMEOUT }
            })?,
            () = self.drain.cancelled() => Err("shutting down".into()),
            () = activity.has_to_close() => Err("closed in its handshake to make room".into()),
        }
    }

    async fn serve_http2<IO>(
        self,
        stream: IO,
        peer: SocketAddr,
        activity: Activity,
    ) -> Result<(), BoxError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = self.router;
        let service = service_fn(move |request: http::Request<Incoming>| {
            // At once, so that large headers are gone before the next call is accepted.
            let answer = if let Some(refusal) = refuse_foreign(&request) {
                ready(refusal).left_future()
            } else {
                let router = Arc::clone(&router);
                async move { router.call(request).await }.right_future()
            };
            answer.map(Ok::<_, Infallible>)
        });
        let executor = StreamExecutor {
            tasks: self.tasks,
            activity: activity.clone(),
            client: Client::new(self.grace),
            idle_timeout: self.idle_timeout,
        };
        let guard = CallGuard::new(stream, peer);
        let pause = guard.pause();
        let io = Coalesced::new(guard);
        let live = self.live;
        // One is held by who accepts them.
        let windows = Windows::new(&self.memory, Arc::strong_count(&live).saturating_sub(1));
        let mut connection =
            pin!(builder(executor, &windows).serve_connection(TokioIo::new(io.clone()), service));
        let (drain, abort) = (self.drain, self.abort);
        // Pinned here, since each layer of futures would have room for all that is in it twice.
        let served = pin!(async {
            tokio::select! {
                ended = connection.as_mut() => return Ok(ended?),
                () = drain.cancelled() => {}
                () = activity.has_to_close() => {}
            }
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                // First, so that the client is told before it is cut off.
                biased;
                ended = connection.as_mut() => Ok(ended?),
                () = abort.cancelled() => Err("cut off".into()),
                () = has_to_be_closed(&activity, &drain) => Err("closed without a call".into()),
            }
        });
        io.drive(pause.end_at_each_turn(served)).await
    }
}

/// Waits until a client that was asked to leave has had its time, which is short at the server's end.
async fn has_to_be_closed(activity: &Activity, drain: &CancellationToken) {
    let ending = async {
        drain.cancelled().await;
        activity.has_to_be_closed(true).await;
    };
    tokio::select! {
        () = activity.has_to_be_closed(false) => {}
        () = ending => {}
    }
}

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Sets every limit of HTTP/2 that hyper exposes. Limits of h2 that it does not: the overhead of
/// small unread data frames (half of the connection's window), empty data frames (100 in a
/// connection's life), and remembered streams that the server has reset (50, for a second).
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
        // No client of ours tunnels through CONNECT, or wants the date.
        .auto_date_header(false);
    builder
}
