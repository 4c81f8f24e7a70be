//! SIGTERM and SIGINT: the first starts an orderly shutdown, the second ends the process at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Handles both signals from now on. The future cancels `shutdown` at the first signal, and ends the
/// process at the second.
pub(crate) fn handle(shutdown: CancellationToken) -> io::Result<impl Future<Output = ()>> {
    let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
    let (mut terminated, mut interrupted) = (signal(terminate)?, signal(interrupt)?);
    Ok(async move {
        for is_second in [false, true] {
            let (name, kind) = tokio::select! {
                _ = terminated.recv() => ("SIGTERM", terminate),
                _ = interrupted.recv() => ("SIGINT", interrupt),
            };
            if is_second {
                tracing::warn!("second signal ({name}): ending at once");
                std::process::exit(128 + kind.as_raw_value());
            }
            // Before logging, which may block or fail.
            shutdown.cancel();
            tracing::info!("{name}: shutting down; a second signal ends the process at once");
        }
    })
}
