//! SIGTERM and SIGINT: the first asks for an orderly end, the second for an end at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Both signals, listened to from now on.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from the system's default.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Cancels `shutdown` at the first signal; ends the process at the second.
    pub(crate) async fn obey(mut self, shutdown: CancellationToken) {
        let name = self.next().await.0;
        // Before anything that could fail, such as a log that nobody reads any more.
        shutdown.cancel();
        tracing::info!("{name}: ending; once more ends at once");
        let (name, number) = self.next().await;
        tracing::warn!("{name} again: ending at once");
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
