//! Accepting connections until the server shuts down.

use std::{io, sync::Arc, time::Duration};

use gorego_limits::is_out_of_descriptors;
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    Error, Listen, Options, Service, connection::Connections, greeting::Faults, idle::Idle,
    placement::Placement, router::Router,
};

/// The pause before accepting again when the system has no more sockets to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The number of idle connections closed when no descriptors are left: the next clients need some, and so do
/// files.
const CLOSED_AT_ONCE: usize = 32;
/// The time in which tasks may notice that their connection was cut off.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// Serves on `listener` until `shutdown` is cancelled. Then health reports it, new calls are refused, and calls in
/// progress may take up to `options.limits.drain_timeout`. Returns when no task of the server is left.
pub async fn serve<S: Service>(
    listener: impl Listen,
    service: S,
    options: Options,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let drain_timeout = options.limits.drain_timeout;
    let drain = shutdown.child_token();
    let connections = Arc::new(Connections {
        router: Arc::new(Router::new(service, &options, drain.clone())?),
        faults: Faults::of(options.peers),
        options,
        tasks: TaskTracker::new(),
        idle: Arc::default(),
        drain: drain.clone(),
        abort: CancellationToken::new(),
    });
    // When this future ends or is dropped, so does everything that it started.
    let ends = (drain.drop_guard(), connections.abort.clone().drop_guard());
    let tasks = connections.tasks.clone();
    shutdown
        .run_until_cancelled(accept(listener, connections))
        .await;
    tasks.close();
    if timeout(drain_timeout, tasks.wait()).await.is_err() {
        let left = tasks.len();
        info!("{left} calls and connections cut off: they did not end within {drain_timeout:?}");
    }
    drop(ends);
    let _ = timeout(ABORT_GRACE, tasks.wait()).await;
    Ok(())
}

/// Accepts connections for ever. At the limit, a connection waits until another one ends, or has no call and is
/// closed.
async fn accept<S: Service>(listener: impl Listen, connections: Arc<Connections<S>>) {
    let most = connections.options.limits.max_connections;
    let room = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
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
        let placement = Placement::new(connections.options.calls.as_ref());
        let connection = Arc::clone(&connections).serve(stream, placement.clone());
        let connection = async move {
            connection.await;
            drop(permit);
        };
        let tasks = &connections.tasks;
        tasks.spawn(placement.run(tasks.clone(), connection));
    }
}

async fn accept_one<L: Listen>(listener: &L, idle: &Idle) -> L::Socket {
    let mut warned = false;
    loop {
        match listener.accept().await {
            Ok(socket) => return socket,
            // The client gave up while it was in the listener's queue.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !std::mem::replace(&mut warned, true) {
                    warn!("failed to accept a connection, retrying: {error}");
                }
                if is_out_of_descriptors(&error) {
                    idle.close_some(CLOSED_AT_ONCE);
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
