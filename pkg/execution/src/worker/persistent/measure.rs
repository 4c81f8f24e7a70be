//! The resources of a worker.

use std::time::Duration;

use gorego_sandbox::{LiveCommand, LiveUsage};
use tokio::{task::spawn_blocking, time::sleep};

/// A worker is silent if it used at most one part in this many of the period.
const SHARE: u32 = 100;

/// Returns what the processes of a worker use; `None` if it does not run.
pub(super) async fn measure(live: LiveCommand) -> Option<LiveUsage> {
    let measured = spawn_blocking(move || LiveCommand::measure(&[live]).pop().flatten());
    measured.await.ok().flatten()
}

/// Waits until a worker has done nothing for a period. A worker that does not understand its request waits for more,
/// while one that starts or compiles works.
pub(super) async fn silence(live: LiveCommand, period: Duration) {
    let processor = async || {
        let usage = measure(live.clone()).await;
        usage.unwrap_or_default().processor
    };
    let mut before = processor().await;
    loop {
        sleep(period).await;
        let now = processor().await;
        if now.saturating_sub(before) <= period / SHARE {
            return;
        }
        before = now;
    }
}
