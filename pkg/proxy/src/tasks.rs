//! Work that outlives the call that started it.

use gorego_limits::Call;
use gorego_storage::{Digest, Error, Result};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The tasks of a proxy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Tasks {
    /// Runs `work` until the proxy is closed.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        // The work outlives the call, but queues for memory with others of its connection.
        let call = Call::current().detached();
        self.tracker.spawn(call.scope(async move {
            cancel.run_until_cancelled(work).await;
        }));
    }

    /// Runs the write of a blob or a result to its end, even if the caller goes away.
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        digest: &Digest,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let ended = self.tracker.spawn(Call::current().scope(work)).await;
        ended.map_err(|error| Error::Unavailable(format!("write of {digest} failed: {error}")))?
    }

    /// Cancels what [`Self::spawn`] runs, and waits for the end of all tasks.
    pub(crate) async fn close(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}
