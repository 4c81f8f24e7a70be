//! Accepting connections, and ending them in order.

use std::{io, sync::Arc, time::Duration};

use gorego_limits::is_out_of_descriptors;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{Error, Options, Service, connection::Connections, idle::Idle, router::Router};

/// How long to wait before accepting again when the system has no more sockets to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The number of idle connections closed when no descriptors are left: the next clients need some,
/// and so do files.
const CLOSED_AT_ONCE: usize = 32;
/// How long tasks may take to notice that their connection is gone.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// Answers on `listener` until `shutdown` is cancelled. Then health says so, new calls are refused
/// and running ones may end, for at most `options.limits.drain_timeout`. Returns when nothing of
/// the server is left running.
pub async fn serve<S: Service>(
    listener: TcpListener,
    service: S,
    options: Options,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let limits = options.limits;
    let memory = options.memory.clone();
    let drain = shutdown.child_token();
    let connections = Connections {
        tls: options.tls.clone(),
        faults: Arc::default(),
        router: Arc::new(Router::new(service, options, drain.clone())?),
        tasks: TaskTracker::new(),
        idle: Idle::default(),
        memory,
        idle_timeout: limits.idle_timeout,
        grace: limits.grace,
        drain: drain.clone(),
        abort: CancellationToken::new(),
        live: Arc::default(),
    };
    // Whatever ends this future, also when it is dropped, ends what it started.
    let ends = (drain.drop_guard(), connections.abort.clone().drop_guard());
    let tasks = connections.tasks.clone();
    shutdown
        .run_until_cancelled(accept(listener, connections, limits.max_connections))
        .await;
    tasks.close();
    if timeout(limits.drain_timeout, tasks.wait()).await.is_err() {
        info!(
            "{} calls and connections are cut off after {:?}",
            tasks.len(),
            limits.drain_timeout
        );
    }
    drop(ends);
    let _ = timeout(ABORT_GRACE, tasks.wait()).await;
    Ok(())
}

/// Accepts for ever. A connection for which there is no room waits until another ends, or has no
/// call and is closed.
async fn accept<S: Service>(
    listener: TcpListener,
    connections: Connections<Arc<Router<S>>>,
    max_connections: usize,
) {
    let room = Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS)));
    loop {
        let stream = accept_one(&listener, &connections.idle).await;
        let permit = tokio::select! {
            biased;
            permit = Arc::clone(&room).acquire_owned() => permit,
            never = connections.idle.make_room() => match never {},
        };
        let Ok(permit) = permit else {
            return;
        };
        let connection = connections.clone().serve(stream);
        connections.tasks.spawn(async move {
            connection.await;
            drop(permit);
        });
    }
}

async fn accept_one(listener: &TcpListener, idle: &Idle) -> TcpStream {
    let mut warned = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // The client gave up while it was waiting: nothing is wrong here.
            Err(error) if is_clients_own(&error) => {}
            Err(error) => {
                if !std::mem::replace(&mut warned, true) {
                    warn!("cannot accept a connection, trying again: {error}");
                }
                if is_out_of_descriptors(&error) {
                    idle.close_some(CLOSED_AT_ONCE);
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_clients_own(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}
