//! The runtime on which calls run.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// The runtime on which calls run, if it is not that on which their connections begin: work for calls then delays no
/// connection without such calls. A connection moves there with the first of them.
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
    /// Set if the next call runs on the runtime on which the connection began.
    stays: Arc<AtomicBool>,
    /// Set once the connection is to move.
    moves: Arc<AtomicBool>,
}

impl Placement {
    pub(crate) fn new(runtime: Option<&CallRuntime>) -> Self {
        Self {
            runtime: runtime.cloned(),
            stays: Arc::default(),
            moves: Arc::default(),
        }
    }

    /// Runs the connection, whose calls the future announces. Encrypting and framing their content takes more time than
    /// most of them, so that the connection moves to their runtime with the first one.
    pub(crate) async fn run(
        self,
        tasks: TaskTracker,
        connection: impl Future<Output = ()> + Send + 'static,
    ) {
        let mut connection = Box::pin(connection);
        let has_ended = poll_fn(|cx| match connection.as_mut().poll(cx) {
            Poll::Pending if self.moves.load(Relaxed) => Poll::Ready(false),
            polled => polled.map(|()| true),
        });
        if !has_ended.await
            && let Some(runtime) = &self.runtime
        {
            tasks.spawn_on(connection, &runtime.handle);
        }
    }

    /// Records the path of the call that is spawned next. The HTTP/2 layer creates the future of a call, and then spawns
    /// it in the same poll.
    pub(crate) fn announce(&self, path: &str) {
        if let Some(runtime) = &self.runtime {
            let stays = runtime.except.contains(&path);
            self.stays.store(stays, Relaxed);
            if !stays {
                self.moves.store(true, Relaxed);
            }
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
    use tokio::{
        runtime::Builder,
        sync::{mpsc, oneshot},
        task::yield_now,
    };

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

    #[tokio::test]
    async fn a_connection_moves_to_the_runtime_of_its_calls_with_the_first_of_them() {
        let other = Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let runtime = CallRuntime {
            handle: other.handle().clone(),
            except: &["/near"],
        };
        let (sender, mut places) = mpsc::unbounded_channel();
        let (next, mut calls) = mpsc::unbounded_channel();
        let placement = Placement::new(Some(&runtime));
        let announced = placement.clone();
        let connection = async move {
            while let Some(path) = calls.recv().await {
                announced.announce(path);
                yield_now().await;
                sender.send(Handle::current().id()).unwrap();
            }
        };
        let tasks = TaskTracker::new();
        tasks.spawn(placement.run(tasks.clone(), connection));
        let (here, there) = (Handle::current().id(), other.handle().id());
        for (path, place) in [("/near", here), ("/far", there), ("/near", there)] {
            next.send(path).unwrap();
            assert_eq!(places.recv().await, Some(place), "{path}");
        }
        drop(next);
        assert_eq!(places.recv().await, None);
        other.shutdown_background();
    }
}
