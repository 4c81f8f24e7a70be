//! The runtime on which calls run.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// The runtime on which calls run, if it is not that of their connections: work for calls then delays no connection.
#[derive(Clone, Debug)]
pub struct CallRuntime {
    /// The runtime.
    pub handle: Handle,
    /// The paths of the calls that run on the runtime of their connection nevertheless.
    pub except: &'static [&'static str],
}

/// Spawns the calls of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Placement {
    runtime: Option<CallRuntime>,
    /// Set if the next call runs on the runtime of the connection.
    stays: Arc<AtomicBool>,
}

impl Placement {
    pub(crate) fn new(runtime: Option<&CallRuntime>) -> Self {
        Self {
            runtime: runtime.cloned(),
            stays: Arc::default(),
        }
    }

    /// Records the path of the call that is spawned next. The HTTP/2 layer creates the future of a call, and then spawns
    /// it in the same poll.
    pub(crate) fn announce(&self, path: &str) {
        if let Some(runtime) = &self.runtime {
            self.stays.store(runtime.except.contains(&path), Relaxed);
        }
    }

    /// Spawns a call.
    pub(crate) fn spawn(
        &self,
        tasks: &TaskTracker,
        call: impl Future<Output = ()> + Send + 'static,
    ) {
        match &self.runtime {
            Some(runtime) if !self.stays.load(Relaxed) => tasks.spawn_on(call, &runtime.handle),
            _ => tasks.spawn(call),
        };
    }
}

#[cfg(test)]
mod tests {
    use tokio::{runtime::Builder, sync::oneshot};

    use super::*;

    #[tokio::test]
    async fn excepted_calls_run_with_their_connection_and_others_do_not() {
        let other = Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let runtime = CallRuntime {
            handle: other.handle().clone(),
            except: &["/near"],
        };
        let (placement, tasks) = (Placement::new(Some(&runtime)), TaskTracker::new());
        let place = async |path| {
            let (sender, receiver) = oneshot::channel();
            placement.announce(path);
            placement.spawn(&tasks, async move {
                let _ = sender.send(Handle::current().id());
            });
            receiver.await.unwrap()
        };
        assert_eq!(place("/near").await, Handle::current().id());
        assert_eq!(place("/far").await, other.handle().id());
        assert_eq!(place("/near").await, Handle::current().id());
        other.shutdown_background();
    }
}
