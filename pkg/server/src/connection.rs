//! One connection, from the handshake to its end.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::{
    Tls,
    idle::{Activity, Idle},
    io::{Coalesced, Prefaced, ResetGuard},
    router::Router,
    watchdog::StreamExecutor,
};

/// A client that has not shown by then that it speaks TLS, where due, and HTTP/2 is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that does not answer a ping within the second time is gone.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Unread bytes of one request, where there are few connections. The window bounds both a stream's
/// speed (this much per round trip: 110 MB/s over 20 ms, and several uploads run at a time) and the
/// memory that an upload holds while the disk is behind.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// The same where there are many; over loopback the disk is slower than this.
const LEAST_STREAM_WINDOW: u32 = 1024 * 1024;
/// What one upload on each connection may hold together, as long as each gets the least.
const STREAM_WINDOWS: u32 = 32 * 1024 * 1024;
/// Unread bytes of all requests of a connection: 160 MB/s over 50 ms.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Uploads come in frames of up to this size from clients that follow the server's wish, which
/// saves reads and bookkeeping; larger ones gain nothing measurable.
const MAX_FRAME: u32 = 256 * 1024;
/// A response's bytes within the HTTP/2 layer, beyond which it takes no more.
const SEND_BUFFER: usize = 256 * 1024;
/// Calls at once on one connection. Bazel runs up to 100.
const MAX_STREAMS: u32 = 256;
/// Cancelled calls that the HTTP/2 layer holds until it gets to them. Beyond that it ends the
/// connection, and every other call on it. A client that stops may cancel all that it has, and what
/// multiplexes clients may do so several times in one burst. Each takes about a kilobyte, and its
/// headers. What a client cancels over time is bounded by [`ResetGuard`].
const MAX_PENDING_RESETS: usize = 1024;
/// Streams that the HTTP/2 layer itself ends for a breach of the protocol, during the whole life of
/// a connection. Each may wait to be sent to a client that reads nothing, so there has to be a limit,
/// at a few hundred bytes each. A connection between balancers lives for weeks.
const MAX_BREACHES: usize = 4096;
/// The headers of one call as the HTTP/2 layer takes them. More than a call may have
/// ([`crate::grpc::MAX_HEADERS`]), so that the refusal is a gRPC status. Beyond it the layer refuses
/// the stream, and beyond four times as much the connection. Headers may take a hundred times as much memory
/// as they did on the wire, times the calls that begin in one burst.
const MAX_HEADER_LIST: u32 = 64 * 1024;
/// What is remembered of a connection's headers so that they need not be repeated. Names, tokens and
/// the like fit; more is memory that an idle connection holds.
const HEADER_TABLE: u32 = 4 * 1024;

/// What all connections share.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    pub(crate) router: Arc<Router>,
    pub(crate) tls: Option<Tls>,
    /// Every task that belongs to a connection.
    pub(crate) tasks: TaskTracker,
    /// Those that can make room for others.
    pub(crate) idle: Idle,
    pub(crate) idle_timeout: Duration,
    /// Ask clients to go away once what they are doing is done.
    pub(crate) drain: CancellationToken,
    /// Stop at once, if `drain` has come before.
    pub(crate) abort: CancellationToken,
    /// Held by each connection, and so counts them.
    pub(crate) live: Arc<()>,
}

impl Connections {
    /// Serves one client until it leaves or is told to.
    pub(crate) async fn serve(self, stream: TcpStream) {
        let peer = stream.peer_addr().ok();
        // Small messages must not wait for the acknowledgement of earlier ones.
        let _ = stream.set_nodelay(true);
        let activity = self.idle.connection();
        if let Err(why) = self.greet(stream, peer, activity).await {
            debug!(?peer, "connection ended: {why}");
        }
    }

    async fn greet(
        self,
        stream: TcpStream,
        peer: Option<SocketAddr>,
        activity: Activity,
    ) -> Result<(), BoxError> {
        let Some(tls) = self.tls.clone() else {
            let handshake = Prefaced::expect(stream);
            let stream = self.in_time(&activity, handshake).await?;
            return self.serve_http2(stream, peer, activity).await;
        };
        let handshake = async {
            let stream = tls.acceptor().accept(stream).await?;
            Prefaced::expect(stream).await
        };
        let stream = self.in_time(&activity, handshake).await?;
        self.serve_http2(stream, peer, activity).await
    }

    /// Runs a handshake, which neither its client nor the end of the server may draw out, and which
    /// makes room for others like any connection without a call.
    async fn in_time<S>(
        &self,
        activity: &Activity,
        handshake: impl Future<Output = io::Result<S>>,
    ) -> Result<S, BoxError> {
        tokio::select! {
            outcome = timeout(HANDSHAKE_TIMEOUT, handshake) => Ok(outcome??),
            () = self.drain.cancelled() => Err("shutting down".into()),
            () = activity.has_to_close() => Err("closed in its handshake to make room".into()),
        }
    }

    async fn serve_http2<S>(
        self,
        stream: S,
        peer: Option<SocketAddr>,
        activity: Activity,
    ) -> Result<(), BoxError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = self.router;
        let service = service_fn(move |request: http::Request<Incoming>| {
            let router = Arc::clone(&router);
            async move { Ok::<_, std::convert::Infallible>(router.call(request).await) }
        });
        let executor = StreamExecutor {
            tasks: self.tasks,
            activity: activity.clone(),
            idle_timeout: self.idle_timeout,
        };
        let io = Coalesced::new(ResetGuard::new(stream, peer));
        let live = self.live;
        // One is held by who accepts them.
        let window = stream_window(Arc::strong_count(&live).saturating_sub(1));
        let connection =
            builder(executor, window).serve_connection(TokioIo::new(io.clone()), service);
        let (drain, abort) = (self.drain, self.abort);
        io.drive(async move {
            let mut connection = pin!(connection);
            tokio::select! {
                ended = &mut connection => return Ok(ended?),
                () = drain.cancelled() => {}
                () = activity.has_to_close() => {}
            }
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                // First, so that the client is told before it is cut off.
                biased;
                ended = connection => Ok(ended?),
                () = abort.cancelled() => Err("cut off".into()),
                () = activity.has_to_be_closed() => Err("closed without a call".into()),
            }
        })
        .await
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A new connection's share, being one of so many.
fn stream_window(connections: usize) -> u32 {
    let connections = u32::try_from(connections).unwrap_or(u32::MAX).max(1);
    (STREAM_WINDOWS / connections).clamp(LEAST_STREAM_WINDOW, STREAM_WINDOW)
}

/// Every limit of HTTP/2 that can be chosen. hyper does not pass on what else h2 bounds: the overhead
/// of small frames of data that nobody has read (half of the connection's window), frames without any
/// (100 in a connection's life), and streams that the server has reset and remembers (50, for a second).
fn builder(executor: StreamExecutor, window: u32) -> http2::Builder<StreamExecutor> {
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(window)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_BREACHES)
        .max_header_list_size(MAX_HEADER_LIST)
        .header_table_size(HEADER_TABLE)
        // No client of ours tunnels through CONNECT, or wants the date.
        .auto_date_header(false);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_connections_have_wide_windows_and_many_share_what_there_is() {
        const MIB: u32 = 1024 * 1024;
        assert_eq!([0, 1, 8].map(stream_window), [4 * MIB; 3]);
        assert_eq!(stream_window(16), 2 * MIB);
        assert_eq!([32, 1000, usize::MAX].map(stream_window), [MIB; 3]);
    }
}
