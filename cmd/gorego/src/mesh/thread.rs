//! The thread of the links: other nodes must not take this one for dead while actions and calls use all processors.

use std::{io, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The name of the thread, at most 15 bytes.
const NAME: &str = "gorego-links";

/// A thread with a runtime for links and gossip. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct LinkThread {
    handle: Handle,
    _ends: DropGuard,
}

impl LinkThread {
    /// Starts the thread, and waits for its runtime.
    pub(super) async fn start() -> io::Result<Self> {
        let ends = CancellationToken::new();
        let ended = ends.clone();
        let (started, starting) = oneshot::channel();
        let run = move || {
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(why) => return drop(started.send(Err(why))),
            };
            let handle = runtime.handle().clone();
            // This fails if the caller does not wait. Then the thread ends at once.
            let _ = started.send(Ok(handle));
            runtime.block_on(ended.cancelled());
            // A lookup of a name may block for long, and is not waited for.
            runtime.shutdown_background();
        };
        thread::Builder::new().name(NAME.to_owned()).spawn(run)?;
        let handle = starting.await.map_err(io::Error::other)??;
        Ok(Self {
            handle,
            _ends: ends.drop_guard(),
        })
    }

    /// Returns the runtime of the thread.
    pub(super) const fn runtime(&self) -> &Handle {
        &self.handle
    }
}
