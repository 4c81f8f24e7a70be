//! One connection, from the handshake to its end.

use std::{io, pin::pin, sync::Arc, time::Duration};

use gorego_limits::Client;
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
    Memory, Tls,
    idle::Idle,
    io::{Coalesced, Prefaced},
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
/// The headers of one call.
const MAX_HEADERS: u32 = 16 * 1024;

/// What all connections share.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    pub(crate) router: Arc<Router>,
    pub(crate) tls: Option<Tls>,
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

impl Connections {
    /// Serves one client until it leaves or is told to.
    pub(crate) async fn serve(self, stream: TcpStream) {
        let peer = stream.peer_addr().ok();
        // Small messages must not wait for the acknowledgement of earlier ones.
        let _ = stream.set_nodelay(true);
        if let Err(why) = self.greet(stream).await {
            debug!(?peer, "connection ended: {why}");
        }
    }

    async fn greet(self, stream: TcpStream) -> Result<(), BoxError> {
        let Some(tls) = self.tls.clone() else {
            let stream = self.in_time(Prefaced::expect(stream)).await?;
            return self.serve_http2(stream).await;
        };
        let handshake = async {
            let stream = tls.acceptor().accept(stream).await?;
            Prefaced::expect(stream).await
        };
        let stream = self.in_time(handshake).await?;
        self.serve_http2(stream).await
    }

    /// Runs a handshake, which neither its client nor the end of the server may draw out.
    async fn in_time<S>(
        &self,
        handshake: impl Future<Output = io::Result<S>>,
    ) -> Result<S, BoxError> {
        let handshake = timeout(HANDSHAKE_TIMEOUT, handshake);
        let outcome = self.drain.run_until_cancelled(handshake).await;
        Ok(outcome.ok_or("shutting down")???)
    }

    async fn serve_http2<S>(self, stream: S) -> Result<(), BoxError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = self.router;
        let service = service_fn(move |request: http::Request<Incoming>| {
            let router = Arc::clone(&router);
            async move { Ok::<_, std::convert::Infallible>(router.call(request).await) }
        });
        let activity = self.idle.connection();
        let executor = StreamExecutor {
            tasks: self.tasks,
            activity: activity.clone(),
            client: Client::new(self.grace),
            idle_timeout: self.idle_timeout,
        };
        let io = Coalesced::new(stream);
        let live = self.live;
        // One is held by who accepts them.
        let windows = Windows::new(&self.memory, Arc::strong_count(&live).saturating_sub(1));
        let connection =
            builder(executor, &windows).serve_connection(TokioIo::new(io.clone()), service);
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
                ended = connection => Ok(ended?),
                () = abort.cancelled() => Err("cut off".into()),
                () = activity.has_to_be_closed() => Err("without a call, it made room".into()),
            }
        })
        .await
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

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
        .max_header_list_size(MAX_HEADERS)
        .auto_date_header(false);
    builder
}
