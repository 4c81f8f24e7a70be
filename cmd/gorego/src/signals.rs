//! SIGTERM and SIGINT: the first starts an orderly shutdown, the second ends the process at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Handlers of both signals.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Handles the signals from now on.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Cancels `shutdown` at the first signal; ends the process at the second.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let name = self.next().await.0;
        // Before logging, which may block or fail.
        shutdown.cancel();
        tracing::info!("{name}: shutting down; a second signal ends the process at once");
        let (name, number) = self.next().await;
        tracing::warn!("second signal ({name}): ending at once");
        std::process::exit(128 + number);
    }

    async fn next(&mut self) -> (&'static str, i32) {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", terminate.as_raw_value()),
            _ = self.interrupt.recv() => ("SIGINT", interrupt.as_raw_value()),
        }
    }
}
