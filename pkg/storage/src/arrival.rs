//! The moment at which the answer of a store begins to arrive, for callers that then ask no other store.

use std::sync::Arc;

use tokio::{sync::Notify, task_local};

task_local! {
    static CURRENT: Arc<Notify>;
}

/// The arrival of the answer to one operation on a store. Only stores at the other end of a connection report it.
#[derive(Debug, Default)]
pub struct Arrival(Arc<Notify>);

impl Arrival {
    /// Runs an operation whose answer reports its arrival here.
    pub async fn scope<T>(&self, operation: impl Future<Output = T>) -> T {
        CURRENT.scope(Arc::clone(&self.0), operation).await
    }

    /// Waits until a part of the answer has arrived since the last call.
    pub async fn begun(&self) {
        self.0.notified().await;
    }

    /// Reports that a part of the answer to the operation of the current task has arrived.
    pub fn report() {
        // Most operations have no observer.
        let _ = CURRENT.try_with(|arrival| arrival.notify_one());
    }
}
